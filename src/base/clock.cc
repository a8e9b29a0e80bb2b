#include "volley/base/clock.h"

#include <sys/random.h>
#include <time.h>

#include "volley/base/check.h"

namespace volley {

Nanos monotonic_now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return Nanos{now.tv_sec} * kSecond + now.tv_nsec;
}

uint64_t random_u64() {
  uint64_t value;
  VOLLEY_CHECK(getrandom(&value, sizeof value, 0) == sizeof value);
  return value;
}

}  // namespace volley
