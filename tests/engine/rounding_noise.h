#pragma once

// How far a run with bf16 storage, fp8 dispatches or pre_reduce may be from an exact one: derived
// from the number of roundings and their size, and from how much the model amplifies noise, which
// is measured in f32. Nothing here runs in bf16 or fp8.

#include <vector>

#include "engine/goldens.h"
#include "volley/model/weights.h"

namespace volley::engine {

/// Expected root mean square errors of one prompt: of the gaps (goldens.h) between the largest
/// logit and every other one, and between every chosen expert and every rejected one.
struct RoundingNoise {
  std::vector<std::vector<double>> logits;                      ///< [position][gap]
  std::vector<std::vector<std::vector<double>>> router_logits;  ///< [layer][position][gap]
};

/// What a run rounds.
struct Roundings {
  bool bf16 = true;           ///< Weights and activations are stored in bf16, else in f32.
  bool fp8_dispatch = false;  ///< Rows go to the experts as E4M3.
  bool pre_reduce = false;    ///< Expert nodes send sums, which are rounded as rows are.
};

/// One per prompt. Aborts when a tensor cannot be read.
std::vector<RoundingNoise> expect_noise(const model::Checkpoint& checkpoint,
                                        const GoldenCase& golden, const Roundings& roundings);

}  // namespace volley::engine
