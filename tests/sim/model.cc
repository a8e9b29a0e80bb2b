#include "sim/model.h"

#include <algorithm>

namespace volley::sim {

uint64_t attend(uint32_t layer, std::span<const uint64_t> keys) {
  uint64_t sum = layer;
  for (const uint64_t key : keys) sum = mix(sum, key);
  return sum;
}

void choose_experts(const ModelShape& shape, uint32_t layer, uint64_t row,
                    std::vector<uint32_t>& chosen) {
  const size_t begin = chosen.size();
  for (uint64_t draw = 0; chosen.size() - begin < shape.top_k; ++draw) {
    const auto expert = static_cast<uint32_t>(mix(mix(row, layer + 77), draw) % shape.experts);
    if (std::find(chosen.begin() + static_cast<std::ptrdiff_t>(begin), chosen.end(), expert) ==
        chosen.end()) {
      chosen.push_back(expert);
    }
  }
  std::sort(chosen.begin() + static_cast<std::ptrdiff_t>(begin), chosen.end());
}

std::vector<int32_t> reference_tokens(const ModelShape& shape, std::span<const int32_t> prompt,
                                      uint32_t count, std::span<const int32_t> stop) {
  std::vector<int32_t> tokens(prompt.begin(), prompt.end());
  std::vector<std::vector<uint64_t>> keys(shape.layers);
  std::vector<int32_t> out;
  std::vector<uint32_t> chosen;
  for (uint32_t position = 0; out.size() < count; ++position) {
    uint64_t row = embed(tokens[position], position);
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      keys[layer].push_back(row);
      row = attend(layer, keys[layer]);
      chosen.clear();
      choose_experts(shape, layer, row, chosen);
      const uint64_t routed = row;
      for (const uint32_t expert : chosen) row = combine(row, expert_answer(layer, expert, routed));
    }
    if (position + 1 < tokens.size()) continue;
    out.push_back(sample(row));
    tokens.push_back(out.back());
    if (std::find(stop.begin(), stop.end(), out.back()) != stop.end()) break;
  }
  return out;
}

}  // namespace volley::sim
