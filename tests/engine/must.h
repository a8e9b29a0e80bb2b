#pragma once

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "volley/base/status.h"

namespace volley::engine {

/// The value of a result that a test cannot go on without: aborts with the message of an error.
template <class T>
T must(Result<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", message_of(result.status()).c_str());
    std::abort();
  }
  return std::move(result).value();
}

inline void must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", message_of(status).c_str());
  std::abort();
}

}  // namespace volley::engine
