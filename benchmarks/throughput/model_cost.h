#pragma once

// What a step must at least read and compute, whoever computes it and however well.

#include <cstdint>

#include "volley/model/model_spec.h"

namespace volley::benchmarks {

struct StepCost {
  double bytes = 0;  ///< Weights and KV, each once, in bf16.
  double flops = 0;  ///< Of the parameters that the rows use; attention scores are not counted.
};

/// One decode step of all `streams` in one pass, each after `context` tokens. Of the experts those
/// count that are touched in expectation if all are equally likely.
StepCost decode_step_cost(const model::ModelSpec& spec, uint32_t streams, double context);

/// Prompts of `tokens` tokens altogether, for `streams` streams: the head is computed for the last
/// token of each only. Only flops.
double prefill_flops(const model::ModelSpec& spec, uint64_t tokens, uint32_t streams);

}  // namespace volley::benchmarks
