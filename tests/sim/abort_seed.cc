#include "sim/abort_seed.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>

namespace volley::sim {

namespace {

char message[64];

void print_seed(int) {
  // Only what a signal handler may call.
  const ssize_t written = write(STDERR_FILENO, message, std::strlen(message));
  static_cast<void>(written);
  std::signal(SIGABRT, SIG_DFL);
}

}  // namespace

void announce_seed(uint64_t seed) {
  std::snprintf(message, sizeof message, "reproduce with seed=%llu\n",
                static_cast<unsigned long long>(seed));
  std::signal(SIGABRT, print_seed);
}

}  // namespace volley::sim
