#pragma once

#include "volley/bench/m2n_bench.h"

namespace volley::bench {

/// Cores for the two ends of a plain round trip.
struct PlainPlaces {
  uint32_t near_core = 0;
  uint32_t far_core = 0;
};

/// Measures what m2n_bound_seconds() needs for one size, some 100 ms, in threads of its own, which
/// have ended on return. Errors: kUnavailable (sockets, pinning).
Result<M2nSteps> measure_m2n_steps(const M2nBenchOptions& options, const PlainPlaces& places,
                                   uint64_t bytes);

}  // namespace volley::bench
