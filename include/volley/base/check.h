#pragma once

#include <cstdio>
#include <cstdlib>

/// Ends the process when an invariant of ours is false; on in release builds too. Never for what a
/// peer, a client, a file or a driver can influence: those are Status values.
#define VOLLEY_CHECK(condition)                                                          \
  do {                                                                                   \
    if (!(condition)) [[unlikely]] {                                                     \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)
