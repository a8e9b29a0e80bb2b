#pragma once

#include "volley/bench/m2n_bench.h"

namespace volley::bench {

/// Measures what m2n_bound_seconds() needs for one size, about 50 ms. For tcp a thread of this
/// process is the other end; it has ended on return. Errors: kUnavailable (sockets).
Result<M2nSteps> measure_m2n_steps(const M2nBenchOptions& options, uint64_t bytes, bool polling);

}  // namespace volley::bench
