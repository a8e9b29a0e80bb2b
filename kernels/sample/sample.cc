// Sampling of one token from its logits. Every filter of SamplingParams keeps a prefix of the
// tokens sorted by (logit descending, id ascending), so the sort is done lazily: only as far as a
// filter or the draw has to look, which for usual distributions is a few dozen tokens of a large
// vocabulary.

#include "kernels/sample/sample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "kernels/sample/relative_probabilities.h"
#include "volley/base/random.h"

namespace volley::kernels {
namespace {

// How many tokens the first sort step orders, and by what factor the ordered prefix then grows.
constexpr size_t kFirstSorted = 64;
constexpr size_t kSortGrowth = 8;

/// The tokens in sorted order, sorted as far as somebody asked.
class LazyOrder {
 public:
  LazyOrder(std::span<const float> logits, std::vector<uint32_t>& order)
      : logits_(logits), order_(order) {
    order_.resize(logits.size());
    std::iota(order_.begin(), order_.end(), 0u);
  }

  uint32_t token_at(size_t rank) {
    if (rank >= sorted_count_) sort_beyond(rank);
    return order_[rank];
  }

 private:
  void sort_beyond(size_t rank) {
    const auto before = [this](uint32_t a, uint32_t b) {
      return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
    };
    const size_t wanted = std::max({rank + 1, kFirstSorted, sorted_count_ * kSortGrowth});
    const size_t count = std::min(order_.size(), wanted);
    const auto begin = order_.begin() + static_cast<std::ptrdiff_t>(sorted_count_);
    const auto end = order_.begin() + static_cast<std::ptrdiff_t>(count);
    if (count < order_.size()) std::nth_element(begin, end, order_.end(), before);
    std::sort(begin, end, before);
    sorted_count_ = count;
  }

  std::span<const float> logits_;
  std::vector<uint32_t>& order_;
  size_t sorted_count_ = 0;
};

/// Uniform in [0, 1), a function of seed and position alone.
double uniform(uint64_t seed, uint64_t position) {
  const std::array<uint32_t, 4> counter = {static_cast<uint32_t>(position),
                                           static_cast<uint32_t>(position >> 32), 0, 0};
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(seed),
                                       static_cast<uint32_t>(seed >> 32)};
  return philox4x32(counter, key)[0] * 0x1p-32;
}

/// Draws by scratch.probability, the probabilities relative to the largest.
uint32_t draw(std::span<const float> logits, const SamplingParams& params, uint64_t position,
              SampleScratch& scratch) {
  const std::vector<float>& probability = scratch.probability;
  LazyOrder order(logits, scratch.order);

  size_t kept = logits.size();
  double total = 0.0;
  if (params.top_k != 0 && params.top_k < kept) {
    kept = params.top_k;
    for (size_t rank = 0; rank < kept; ++rank) total += probability[order.token_at(rank)];
  } else {
    for (const float p : probability) total += p;
  }
  if (params.top_p < 1.0f) {
    const double wanted = params.top_p * total;
    double sum = 0.0;
    for (size_t rank = 0; rank < kept; ++rank) {
      sum += probability[order.token_at(rank)];
      if (sum >= wanted) {
        kept = rank + 1;
        total = sum;
      }
    }
  }
  if (params.min_p > 0.0f) {
    double sum = 0.0;
    size_t rank = 0;
    // The largest probability is exactly 1, so the first token always stays.
    for (; rank < kept && probability[order.token_at(rank)] >= params.min_p; ++rank) {
      sum += probability[order.token_at(rank)];
    }
    kept = rank;
    total = sum;
  }

  const double target = uniform(params.seed, position) * total;
  double sum = 0.0;
  uint32_t token = order.token_at(0);
  for (size_t rank = 0; rank < kept; ++rank) {
    const uint32_t candidate = order.token_at(rank);
    // A token without probability is never drawn, not even when rounding lets `sum` fall short of
    // `total`.
    if (probability[candidate] == 0.0f) break;
    token = candidate;
    sum += probability[token];
    if (sum > target) break;
  }
  return token;
}

}  // namespace

SampledToken sample_token(std::span<const float> logits, const SamplingParams& params,
                          uint64_t position, SampleScratch& scratch) {
  if (logits.empty()) return {};
  uint32_t best = 0;
  for (uint32_t id = 0; id < logits.size(); ++id) {
    if (!std::isfinite(logits[id])) return {};
    if (logits[id] > logits[best]) best = id;
  }
  const float largest = logits[best];
  scratch.probability.resize(logits.size());
  float* probability = scratch.probability.data();
  uint32_t token = best;
  if (params.temperature != 0.0f) {
    relative_probabilities(logits, largest, params.temperature, probability);
    token = draw(logits, params, position, scratch);
  }
  if (params.temperature != 1.0f) relative_probabilities(logits, largest, 1.0f, probability);
  double sum = 0.0;
  for (const float p : scratch.probability) sum += p;
  const double logprob = static_cast<double>(logits[token]) - largest - std::log(sum);
  return {.token = static_cast<int32_t>(token), .logprob = static_cast<float>(logprob)};
}

}  // namespace volley::kernels
