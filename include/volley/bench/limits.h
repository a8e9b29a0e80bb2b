#pragma once

#include <cstdint>

#include "volley/bench/kernel_report.h"

namespace volley::bench {

/// The machine's limits with one thread on each of the first `threads` cores that this process may
/// use; about `seconds` for each kind. Blocks, pins the calling thread meanwhile, and leaves no
/// thread behind. Errors: kInvalidArgument (more threads than cores, or none), kResourceExhausted
/// (memory), kUnavailable (pinning).
Result<Limits> measure_limits(uint32_t threads, double seconds);

}  // namespace volley::bench
