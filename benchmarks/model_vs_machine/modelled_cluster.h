#pragma once

// Attention and expert nodes with modelled computation, all in this process, over a real fabric.

#include <string>

#include "volley/engine/modelled.h"
#include "volley/model/weights.h"

namespace volley::benchmarks {

struct ModelledClusterOptions {
  std::string fabric = "shm";
  uint32_t attention_nodes = 2;
  uint32_t expert_nodes = 2;
  uint32_t micro_batches = 1;
  uint32_t rows = 32;  ///< Sequences of each micro-batch of each attention node.
  uint32_t prompt_tokens = 8;
  uint32_t steps = 100;  ///< Measured tokens of each sequence.
  engine::ModelledCompute compute{};
  Nanos timeout = 120 * kSecond;
};

struct ModelledRun {
  double tokens_per_s = 0;   ///< Of all attention nodes, while every sequence decodes.
  double runs_per_step = 0;  ///< Grouped FFNs of an expert node per layer and micro-batch step of
                             ///< one attention node: 1 / attention_nodes when all are merged.
};

/// Errors: those of the engines, kDeadlineExceeded.
Result<ModelledRun> run_modelled_cluster(const model::Checkpoint& checkpoint,
                                         const ModelledClusterOptions& options);

}  // namespace volley::benchmarks
