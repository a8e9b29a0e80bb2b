#pragma once

// What transformers computes in f32 for the tiny checkpoints of tests/data/goldens; made by
// make_model_goldens.py in that folder.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace volley::engine {

/// A row-major matrix of f32.
struct Table {
  size_t cols = 0;
  std::vector<float> values;

  size_t rows() const { return values.size() / cols; }
  std::span<const float> row(size_t index) const {
    return std::span<const float>(values).subspan(index * cols, cols);
  }
  bool operator==(const Table&) const = default;
};

/// Largest minus smallest value.
double range_of(const Table& table);

/// The indices of the `top_k` largest values, ascending.
std::vector<uint32_t> choose(std::span<const float> values, size_t top_k);

/// By how much values of the `top_k` largest golden ones exceed the others, one gap per pair, in an
/// order that `golden` alone fixes. All gaps positive: the same are the largest.
std::vector<double> gaps(std::span<const float> values, std::span<const float> golden,
                         size_t top_k);

struct GoldenPrompt {
  std::vector<int32_t> tokens;       ///< The prompt and its 16 greedy tokens.
  Table logits;                      ///< [tokens][vocab]; row i is for the token after position i.
  std::vector<Table> router_logits;  ///< Per layer [tokens][experts], before the softmax.
};

struct GoldenCase {
  std::string name;
  std::string folder;  ///< The checkpoint.
  std::vector<GoldenPrompt> prompts;

  size_t positions() const;
  uint32_t tokens_max() const;  ///< Of the longest prompt.
  double logit_spread() const;  ///< Standard deviation over all prompts.
};

/// Aborts on errors: the files are committed.
GoldenCase load_golden_case(const std::string& name);

}  // namespace volley::engine
