#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace volley::kernels {

/// Ids whose probabilities are summed as one part: see the order of sums below.
inline constexpr uint32_t kSampleChunk = 1024;
/// Ids that a chunk's draw steps over at once, and the lanes of a chunk's sum.
inline constexpr uint32_t kSampleGroup = 16;

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

/// Memory of one thread that samples, reused between calls: nothing is allocated for a vocabulary
/// that is not larger than any before.
struct SampleScratch {
  /// For vocabularies of up to `vocab` tokens.
  void reserve(size_t vocab);

  std::vector<float> probability;   ///< [vocab], up to a multiple of kSampleGroup.
  std::vector<float> lane_largest;  ///< [chunks][kSampleGroup]
  std::vector<double> chunk_sum;    ///< [chunks]
  std::vector<uint32_t> candidate;  ///< [vocab]
};

/// Draws one token of one row, `CpuKernels::sample_token`. Any number of threads may call it, each
/// with a scratch of its own. The logits are f32 [vocab], vocab < 2^31.
///
/// Probabilities: p[id] = exp((logit[id] - largest) / temperature), each operation in f32 with the
/// exponential of kernels/common/math.h. So the largest is exactly 1.
///
/// Sums are in double and over all ids; a dropped token counts as p = 0. Chunk c has the ids in
/// [1024 c, 1024 (c + 1)). Lane j of a chunk adds its ids with id mod 16 = j in ascending order;
/// the lanes are added j and j + 8, then + 4, + 2, + 1 (as add_lanes of math.h); chunks are added
/// in ascending order. Rounding is monotonic, so a set never has a smaller sum than its subset,
/// whatever the order.
///
/// Kept set: the order of tokens is (logit descending, id ascending).
///   1. top_k: the first top_k.
///   2. top_p: of these the shortest prefix whose sum is >= top_p times the sum of all of these.
///   3. min_p: of these the ones with p >= min_p.
///
/// Draw: target = u * (sum of the kept), u = w * 2^-32, w the first word of
/// philox4x32({position, position >> 32, 0, 0}, {seed, seed >> 32}); so (seed, position) alone
/// decide, and a replayed request draws the same tokens. The walk is in ascending id, in three
/// steps: over chunks by their sums; over the chunk's groups of 16 neighbouring ids by their sums
/// (a group is added like lanes); over the group's ids. Each step starts from the sum before what
/// the last one chose, adds part after part, and chooses the first part at which the sum exceeds
/// the target, or, when rounding leaves none, the last whose own sum is not zero. Parts of zero sum
/// are passed over, so a token without probability is never drawn.
///
/// logprob: logit - largest - ln(sum of exp(logit - largest) over all ids), in double, the sum in
/// the order above.
using SampleFunction = SampledToken (*)(std::span<const float> logits, const SamplingParams& params,
                                        uint64_t position, SampleScratch& scratch);

}  // namespace volley::kernels
