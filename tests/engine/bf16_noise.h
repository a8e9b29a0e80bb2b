#pragma once

// How far a run with bf16 storage may be from an exact one: derived from the number of roundings
// and their size, and from how much the model amplifies noise, which is measured in f32. Nothing
// here runs in bf16.

#include <vector>

#include "engine/goldens.h"
#include "volley/model/weights.h"

namespace volley::engine {

/// Expected root mean square errors of one prompt: of the gaps (goldens.h) between the largest
/// logit and every other one, and between every chosen expert and every rejected one.
struct Bf16Noise {
  std::vector<std::vector<double>> logits;                      ///< [position][gap]
  std::vector<std::vector<std::vector<double>>> router_logits;  ///< [layer][position][gap]
};

/// One per prompt. Aborts when a tensor cannot be read.
std::vector<Bf16Noise> expect_bf16_noise(const model::Checkpoint& checkpoint,
                                         const GoldenCase& golden);

}  // namespace volley::engine
