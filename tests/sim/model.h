#pragma once

// The modelled model: every value is a hash of all that it depends on, so that any row, block,
// answer or order that is wrong changes the tokens.

#include <cstdint>
#include <span>
#include <vector>

#include "sim/world.h"

namespace volley::sim {

struct ModelShape {
  uint32_t layers = 2;
  uint32_t experts = 4;
  uint32_t top_k = 2;
};

inline constexpr int32_t kVocabulary = 1000;

inline uint64_t embed(int32_t token, uint32_t position) {
  return mix(static_cast<uint64_t>(token), position);
}
/// A row after attention over `keys`, the rows of its own and all earlier positions in this layer.
uint64_t attend(uint32_t layer, std::span<const uint64_t> keys);
/// The experts of a row, ascending, appended to `chosen`.
void choose_experts(const ModelShape& shape, uint32_t layer, uint64_t row,
                    std::vector<uint32_t>& chosen);
inline uint64_t expert_answer(uint32_t layer, uint32_t expert, uint64_t row) {
  return mix(mix(row, layer), expert);
}
/// The residual row with one more answer added; the order matters.
inline uint64_t combine(uint64_t row, uint64_t answer) {
  return mix(row, answer);
}
inline int32_t sample(uint64_t row) {
  return static_cast<int32_t>(row % kVocabulary);
}

/// The tokens that follow the prompt, computed in one place and without any batching.
std::vector<int32_t> reference_tokens(const ModelShape& shape, std::span<const int32_t> prompt,
                                      uint32_t count, std::span<const int32_t> stop);

}  // namespace volley::sim
