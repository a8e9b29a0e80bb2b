#pragma once

#include <span>

namespace volley::kernels {

/// probability[i] = exp((logits[i] - largest) / temperature), each operation in f32 with the
/// exponential of kernels/common/math.h, by the best instruction set there is: all give the same
/// bits.
void relative_probabilities(std::span<const float> logits, float largest, float temperature,
                            float* probability);

}  // namespace volley::kernels
