#pragma once

#include <cstdint>

#include "volley/bench/kernel_report.h"

namespace volley::bench {

/// The arithmetic limits of the pool's threads: loops on registers alone, the best of repetitions
/// that together last about `seconds` for each kind. The other fields stay 0.
Limits measure_arithmetic(ThreadPool& pool, double seconds);

}  // namespace volley::bench
