#pragma once

// One run of an attention node and an expert node, each a process on a core of its own.

#include <string>

#include "trace_analysis.h"
#include "volley/model/weights.h"

namespace volley::benchmarks {

struct PairOptions {
  std::string fabric = "shm";
  std::string isa = "auto";
  uint32_t attention_core = 0;
  uint32_t expert_core = 1;
  uint32_t micro_batches = 1;
  uint32_t rows = 64;  ///< Sequences of each micro-batch.
  uint32_t prompt_tokens = 16;
  uint32_t steps = 48;   ///< Of each micro-batch, at least, while all of them decode.
  Nanos wire_delay = 0;  ///< Added to every message's way, in both directions.
  Nanos timeout = 120 * kSecond;
};

/// Errors: what a process says has failed, kUnavailable (a process died), kDeadlineExceeded.
Result<RunTrace> run_pair(const model::Checkpoint& checkpoint, const PairOptions& options);

}  // namespace volley::benchmarks
