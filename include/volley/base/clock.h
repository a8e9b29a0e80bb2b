#pragma once

#include "volley/base/ids.h"

namespace volley {

/// CLOCK_MONOTONIC in nanoseconds: the `now` that the shells hand to the pure machines.
Nanos monotonic_now();

/// A random 64-bit number from the kernel, for incarnations and default request seeds.
uint64_t random_u64();

}  // namespace volley
