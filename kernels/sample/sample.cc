// Sampling without a sort of the vocabulary. Every filter keeps the tokens before some place in the
// order (logit descending, id ascending), so it is enough to find that place: a bracket of logits
// around it is halved, each time by one pass that sums or counts what is above its middle, until
// few tokens are left inside; only these are sorted. Sums have their fixed order over ids, whatever
// led to the place, so how it is found cannot change a bit.

#include "kernels/sample/sample.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/sample/passes.h"
#include "volley/base/random.h"

namespace volley::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
/// No bracket is halved any more once it holds so few tokens: to sort them costs about what another
/// pass over a usual vocabulary does.
constexpr uint32_t kCandidatesMax = 512;
/// A bracket is first halved by value, which logits are spread over about evenly; after so many
/// times by the bits, which ends after 32 more for any logits.
constexpr int kStepsByValueMax = 24;
/// Beyond this many temperatures below the largest logit the exponential is 0 (it is from 87.34 on)
/// even when the difference and the quotient were rounded.
constexpr double kExponentMax = 88.0;

size_t chunks_of(size_t vocab) {
  return (vocab + kSampleChunk - 1) / kSampleChunk;
}

float next_below(float value) {
  return std::nextafter(value, -kInfinity);
}

/// The bits of a float as an integer of the same order; its own inverse.
int32_t flip(int32_t bits) {
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}

/// A number strictly between, or one of the two when there is none.
float middle_of(float lo, float hi, int step) {
  if (step < kStepsByValueMax) {
    const float middle = 0.5f * lo + 0.5f * hi;
    if (lo < middle && middle < hi) return middle;
  }
  const int64_t sum = int64_t{flip(std::bit_cast<int32_t>(lo))} + flip(std::bit_cast<int32_t>(hi));
  return std::bit_cast<float>(flip(static_cast<int32_t>(sum >> 1)));
}

/// The row while filters are applied to it.
class Row {
 public:
  Row(const SamplePasses& passes, std::span<const float> logits, const LogitScan& range,
      SampleScratch& scratch)
      : passes_(passes), logits_(logits), range_(range), scratch_(scratch) {}

  /// Where the first `k` tokens end; k is below their number. Spoils scratch.lane_largest.
  SampleCut top_k(uint32_t k) {
    float lo = next_below(range_.smallest);
    // Each lane has a token as large as its largest, so the k-th largest lane is not above the k-th
    // largest token, and for a small k not far below it. The last chunk may have lanes without ids.
    const size_t last_chunk = (logits_.size() - 1) % kSampleChunk + 1;
    const size_t lanes =
        (chunks_of(logits_.size()) - 1) * kSampleGroup + std::min<size_t>(last_chunk, kSampleGroup);
    if (k <= lanes) {
      const auto begin = scratch_.lane_largest.begin();
      std::nth_element(begin, begin + (k - 1), begin + static_cast<std::ptrdiff_t>(lanes),
                       std::greater<>());
      lo = next_below(begin[k - 1]);
    }
    const Bracket bracket = narrow(lo, [k](const SampleSet& above) { return above.count >= k; });
    return cut_after(sort_candidates(bracket)[k - bracket.above_hi.count - 1]);
  }

  /// Where the shortest prefix with a sum >= `wanted` ends. All tokens together have it, and so
  /// have those with logits above `lo`.
  SampleCut top_p(double wanted, float lo) {
    const Bracket bracket =
        narrow(lo, [wanted](const SampleSet& above) { return above.sum >= wanted; });
    const std::span<const uint32_t> sorted = sort_candidates(bracket);
    // A sum in sorted order tells about where; the sums of the contract decide.
    size_t last = guess_last(sorted, wanted - bracket.above_hi.sum);
    const auto enough = [&](size_t index) {
      return passes_.before(logits_, scratch_.probability.data(), cut_after(sorted[index])).sum >=
             wanted;
    };
    while (last + 1 < sorted.size() && !enough(last)) ++last;
    while (last > 0 && enough(last - 1)) --last;
    return cut_after(sorted[last]);
  }

  /// Drops what is not before the cut or below min_p; the sum of the rest.
  double keep(SampleCut cut, float min_p) {
    return passes_.keep(logits_, cut, min_p, scratch_.probability.data(),
                        scratch_.chunk_sum.data());
  }

 private:
  /// The cut lies at a token with lo < logit <= hi.
  struct Bracket {
    float lo, hi;
    SampleSet above_lo, above_hi;
  };

  SampleSet above(float logit) const {
    return passes_.before(logits_, scratch_.probability.data(), {.logit = logit});
  }

  SampleCut cut_after(uint32_t id) const { return {.logit = logits_[id], .end = id + 1}; }

  /// `enough(set)` says whether the cut lies in the set, a prefix; it does in that above `lo`.
  template <class Enough>
  Bracket narrow(float lo, Enough enough) const {
    Bracket bracket{.lo = lo, .hi = range_.largest, .above_lo = above(lo), .above_hi = {}};
    for (int step = 0; bracket.above_lo.count - bracket.above_hi.count > kCandidatesMax; ++step) {
      const float middle = middle_of(bracket.lo, bracket.hi, step);
      if (!(bracket.lo < middle && middle < bracket.hi)) break;  // Many equal logits.
      const SampleSet set = above(middle);
      if (enough(set)) {
        bracket.lo = middle;
        bracket.above_lo = set;
      } else {
        bracket.hi = middle;
        bracket.above_hi = set;
      }
    }
    return bracket;
  }

  std::span<const uint32_t> sort_candidates(const Bracket& bracket) {
    uint32_t* const begin = scratch_.candidate.data();
    uint32_t* const end = begin + passes_.collect(logits_, bracket.lo, bracket.hi, begin);
    const auto before = [this](uint32_t a, uint32_t b) {
      return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
    };
    // Equal logits, of which there may be many, come in order.
    if (!std::is_sorted(begin, end, before)) std::sort(begin, end, before);
    return {begin, end};
  }

  size_t guess_last(std::span<const uint32_t> sorted, double wanted) const {
    const std::vector<float>& probability = scratch_.probability;
    const size_t last = sorted.size() - 1;
    if (logits_[sorted.front()] == logits_[sorted[last]]) {
      const double count = std::ceil(wanted / probability[sorted.front()]);
      return count < 1.0 ? 0
                         : static_cast<size_t>(std::min(count - 1.0, static_cast<double>(last)));
    }
    double sum = 0.0;
    for (size_t i = 0; i < last; ++i) {
      sum += probability[sorted[i]];
      if (sum >= wanted) return i;
    }
    return last;
  }

  const SamplePasses& passes_;
  const std::span<const float> logits_;
  const LogitScan& range_;
  SampleScratch& scratch_;
};

/// Drops from scratch.probability what the filters drop; the sum of the rest. `total` is the sum of
/// all.
double filter(const SamplePasses& passes, std::span<const float> logits, const LogitScan& range,
              const SamplingParams& params, double total, SampleScratch& scratch) {
  Row row(passes, logits, range, scratch);
  SampleCut cut{.logit = -kInfinity};
  if (params.top_k != 0 && params.top_k < logits.size()) {
    cut = row.top_k(params.top_k);
    total = row.keep(cut, 0.0f);
  }
  if (params.top_p < 1.0f) {
    // What is not above `lo` has no probability.
    const double reach = kExponentMax * params.temperature;
    float lo = next_below(static_cast<float>(std::max(range.largest - reach, -0x1.fffffep127)));
    lo = std::max(lo, next_below(std::max(range.smallest, cut.logit)));
    cut = row.top_p(params.top_p * total, lo);
  }
  if (params.top_p < 1.0f || params.min_p > 0.0f) total = row.keep(cut, params.min_p);
  return total;
}

/// Uniform in [0, 1), a function of seed and position alone.
double uniform(uint64_t seed, uint64_t position) {
  const std::array<uint32_t, 4> counter = {static_cast<uint32_t>(position),
                                           static_cast<uint32_t>(position >> 32), 0, 0};
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(seed),
                                       static_cast<uint32_t>(seed >> 32)};
  return philox4x32(counter, key)[0] * 0x1p-32;
}

struct Choice {
  size_t index = 0;
  double sum_before = 0.0;
};

/// One step of the draw: see the contract.
template <class SumOf>
Choice choose(size_t count, double sum, double target, SumOf sum_of) {
  Choice choice{.index = 0, .sum_before = sum};
  for (size_t i = 0; i < count; ++i) {
    const double part = sum_of(i);
    if (part == 0.0) continue;
    choice = {.index = i, .sum_before = sum};
    sum += part;
    if (sum > target) break;
  }
  return choice;
}

/// Draws by scratch.probability and scratch.chunk_sum.
size_t draw(size_t vocab, double target, const SampleScratch& scratch) {
  const Choice chunk =
      choose(chunks_of(vocab), 0.0, target, [&](size_t i) { return scratch.chunk_sum[i]; });
  const size_t first = chunk.index * kSampleChunk;
  const size_t ids = std::min<size_t>(kSampleChunk, vocab - first);
  const float* const probability = &scratch.probability[first];
  const Choice group =
      choose((ids + kSampleGroup - 1) / kSampleGroup, chunk.sum_before, target, [&](size_t i) {
        double lane[kSampleGroup];
        std::copy_n(probability + i * kSampleGroup, kSampleGroup, lane);
        return add_sample_lanes(lane);
      });
  const size_t first_of_group = group.index * kSampleGroup;
  const Choice token = choose(kSampleGroup, group.sum_before, target,
                              [&](size_t i) { return double{probability[first_of_group + i]}; });
  return first + first_of_group + token.index;
}

/// The first id with the largest logit.
size_t find_largest(std::span<const float> logits, float largest, const float* lane_largest) {
  const size_t lanes = chunks_of(logits.size()) * kSampleGroup;
  const auto lane = std::find(lane_largest, lane_largest + lanes, largest) - lane_largest;
  const auto from = logits.begin() + lane / kSampleGroup * kSampleChunk;
  return static_cast<size_t>(std::find(from, logits.end(), largest) - logits.begin());
}

}  // namespace

void SampleScratch::reserve(size_t vocab) {
  const size_t groups = (vocab + kSampleGroup - 1) / kSampleGroup;
  if (candidate.size() >= vocab) return;
  probability.resize(groups * kSampleGroup);
  lane_largest.resize(chunks_of(vocab) * kSampleGroup);
  chunk_sum.resize(chunks_of(vocab));
  candidate.resize(vocab);
}

SampledToken sample_token_by(const SamplePasses& passes, std::span<const float> logits,
                             const SamplingParams& params, uint64_t position,
                             SampleScratch& scratch) {
  if (logits.empty()) return {};
  scratch.reserve(logits.size());
  LogitScan range = passes.scan(logits, scratch.lane_largest.data());
  if (!range.finite) return {};
  size_t token = find_largest(logits, range.largest, scratch.lane_largest.data());
  range.largest = logits[token];  // Of two zeros, the first one's sign.
  const auto exponentials = [&](float temperature, float* probability) {
    return passes.exponentials(logits, range.largest, temperature, probability,
                               scratch.chunk_sum.data());
  };
  double unfiltered = 0.0;
  if (params.temperature != 0.0f) {
    unfiltered = exponentials(params.temperature, scratch.probability.data());
    const double kept = filter(passes, logits, range, params, unfiltered, scratch);
    token = draw(logits.size(), uniform(params.seed, position) * kept, scratch);
  }
  if (params.temperature != 1.0f) unfiltered = exponentials(1.0f, nullptr);
  const double logprob = double{logits[token]} - range.largest - std::log(unfiltered);
  return {.token = static_cast<int32_t>(token), .logprob = static_cast<float>(logprob)};
}

}  // namespace volley::kernels
