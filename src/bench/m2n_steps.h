#pragma once

#include "volley/bench/m2n_bench.h"

namespace volley::bench {

struct M2nStepOptions {
  uint32_t near_core = 0, far_core = 0;  ///< For the two ends of what needs two.
  bool sockets = false;                  ///< Else memory.
  uint64_t bytes = 0;
  uint64_t answer_bytes = 0;
  bool stream = false;  ///< Else round trips.
};

/// Measures what the bounds need for one shape, some 100 ms, in threads of its own, which have
/// ended on return. Errors: kUnavailable (sockets, pinning).
Result<M2nSteps> measure_m2n_steps(const M2nStepOptions& options);

}  // namespace volley::bench
