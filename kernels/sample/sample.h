#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace volley::kernels {

/// How a token is drawn. temperature 0 is greedy: the largest logit, ties to the lower id.
struct SamplingParams {
  float temperature = 1.0f;  ///< >= 0
  uint32_t top_k = 0;        ///< 0: off. Keeps the k largest (ties to the lower id).
  /// (0, 1]. Keeps the shortest prefix, by probability, that sums to >= top_p.
  float top_p = 1.0f;
  float min_p = 0.0f;  ///< [0, 1]. Drops what is below min_p times the largest probability.
  uint64_t seed = 0;
};

struct SampledToken {
  int32_t token = -1;  ///< -1: a logit was not finite, or there was none.
  /// Natural logarithm of the token's probability under softmax(logits), before temperature and
  /// filters.
  float logprob = 0.0f;
};

/// Scratch memory reused between calls, so that sampling allocates only until it has seen its
/// largest vocabulary.
struct SampleScratch {
  std::vector<uint32_t> order;
  std::vector<float> probability;
};

/// Draws one token. The filters apply in the order temperature, top-k, top-p, min-p, over tokens
/// sorted by (logit descending, id ascending). The uniform number is the first word of
/// philox4x32({position, position >> 32, 0, 0}, {seed, seed >> 32}), so (seed, position) alone
/// decide it and a replayed request draws the same tokens. Host code on every backend.
///
/// Numerics: p = exp((logit - largest) / temperature) in f32 (kernels/common/math.h). Sums are in
/// double: over the whole vocabulary in ascending id, over a sorted prefix in sorted order. The
/// token is the first at which the prefix sum exceeds the uniform number times the sum of all kept.
SampledToken sample_token(std::span<const float> logits, const SamplingParams& params,
                          uint64_t position, SampleScratch& scratch);

}  // namespace volley::kernels
