// Goal: sampling does what its contract says, to the bit and on every instruction set; it draws
// from the filtered distribution, depends on (seed, position) alone, and refuses logits that are
// not finite. Method: a plain version by a full sort gives the same bits over seeded shapes and
// filters; the filters against a plain computation in double, the distribution by chi-square with
// fixed seeds, the edges one by one.

#include "kernels/sample/sample.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "kernel_testing.h"
#include "kernels/common/math.h"

namespace volley::kernels::testing {
namespace {

SampledToken sample_token(std::span<const float> logits, const SamplingParams& params,
                          uint64_t position, SampleScratch& scratch) {
  static const CpuKernels& kernels = **select_cpu_kernels("auto");
  return kernels.sample_token(logits, params, position, scratch);
}

/// The contract word by word, with a full sort.
class PlainSampler {
 public:
  explicit PlainSampler(const std::vector<float>& logits) : logits_(logits), order_(logits.size()) {
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](size_t a, size_t b) { return logits_[a] > logits_[b]; });
  }

  SampledToken sample(const SamplingParams& params, uint64_t position) const {
    for (const float logit : logits_) {
      if (!std::isfinite(logit)) return {};
    }
    if (logits_.empty()) return {};
    size_t token = order_.front();
    if (params.temperature != 0.0f) {
      std::vector<float> kept = exponentials(params.temperature);
      size_t prefix = order_.size();
      if (params.top_k != 0) prefix = std::min<size_t>(prefix, params.top_k);
      if (params.top_p < 1.0f) {
        const double wanted = params.top_p * sum(prefix_of(kept, prefix));
        // Sums grow with the prefix.
        size_t too_short = 0;
        while (prefix - too_short > 1) {
          const size_t middle = (prefix + too_short) / 2;
          (sum(prefix_of(kept, middle)) >= wanted ? prefix : too_short) = middle;
        }
      }
      kept = prefix_of(kept, prefix);
      for (float& p : kept) p = p >= params.min_p ? p : 0.0f;
      token = draw(kept, params.seed, position);
    }
    const double logprob =
        double{logits_[token]} - logits_[order_.front()] - std::log(sum(exponentials(1.0f)));
    return {.token = static_cast<int32_t>(token), .logprob = static_cast<float>(logprob)};
  }

 private:
  std::vector<float> exponentials(float temperature) const {
    std::vector<float> result(logits_.size());
    for (size_t i = 0; i < result.size(); ++i) {
      result[i] = exp_f32((logits_[i] - logits_[order_.front()]) / temperature);
    }
    return result;
  }
  std::vector<float> prefix_of(const std::vector<float>& p, size_t count) const {
    std::vector<float> result(p.size(), 0.0f);
    for (size_t i = 0; i < count; ++i) result[order_[i]] = p[order_[i]];
    return result;
  }
  static double add_tree(std::vector<double> lane) {
    for (size_t half = 8; half > 0; half /= 2) {
      for (size_t j = 0; j < half; ++j) lane[j] += lane[j + half];
    }
    return lane[0];
  }
  static double sum_chunk(const std::vector<float>& p, size_t chunk) {
    std::vector<double> lane(16);
    for (size_t i = chunk * 1024; i < std::min(p.size(), (chunk + 1) * 1024); ++i) {
      lane[i % 16] += p[i];
    }
    return add_tree(lane);
  }
  static double sum(const std::vector<float>& p) {
    double total = 0;
    for (size_t chunk = 0; chunk * 1024 < p.size(); ++chunk) total += sum_chunk(p, chunk);
    return total;
  }
  static size_t draw(const std::vector<float>& kept, uint64_t seed, uint64_t position) {
    const uint32_t word =
        philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0},
                   {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)})[0];
    const double target = word * 0x1p-32 * sum(kept);
    std::vector<float> p((kept.size() + 1023) / 1024 * 1024);
    std::copy(kept.begin(), kept.end(), p.begin());
    double before = 0;
    // Chooses among parts [first, first + count) and leaves the sum before the chosen one.
    const auto choose = [&](size_t first, size_t count, auto sum_of) {
      double running = before;
      size_t chosen = first;
      for (size_t i = first; i < first + count; ++i) {
        if (sum_of(i) == 0) continue;
        chosen = i;
        before = running;
        running += sum_of(i);
        if (running > target) break;
      }
      return chosen;
    };
    const size_t chunk = choose(0, p.size() / 1024, [&](size_t i) { return sum_chunk(p, i); });
    const size_t group = choose(chunk * 64, 64, [&](size_t i) {
      const auto first = p.begin() + static_cast<std::ptrdiff_t>(i * 16);
      return add_tree({first, first + 16});
    });
    return choose(group * 16, 16, [&](size_t i) { return double{p[i]}; });
  }

  std::vector<float> logits_;
  std::vector<size_t> order_;
};

/// Probabilities after all filters, in double precision, by the words of the contract.
std::map<int32_t, double> plain_distribution(const std::vector<float>& logits,
                                             const SamplingParams& params) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  });
  if (params.top_k != 0 && params.top_k < order.size()) order.resize(params.top_k);
  const auto weight = [&](int32_t token) {
    return std::exp((double{logits[token]} - logits[order[0]]) / params.temperature);
  };
  const auto total = [&] {
    double sum = 0;
    for (const int32_t token : order) sum += weight(token);
    return sum;
  };
  if (params.top_p < 1.0f) {
    const double wanted = params.top_p * total();
    double sum = 0;
    size_t kept = 0;
    while (kept < order.size() && sum < wanted) sum += weight(order[kept++]);
    order.resize(kept);
  }
  std::erase_if(order, [&](int32_t token) { return weight(token) < params.min_p; });
  const double sum = total();
  std::map<int32_t, double> distribution;
  for (const int32_t token : order) distribution[token] = weight(token) / sum;
  return distribution;
}

SampledToken sample(const std::vector<float>& logits, const SamplingParams& params,
                    uint64_t position = 0) {
  SampleScratch scratch;
  return sample_token(logits, params, position, scratch);
}

/// Draws at many positions; expects only tokens of the plain distribution, in its proportions.
void expect_distribution(const std::vector<float>& logits, const SamplingParams& params) {
  const auto distribution = plain_distribution(logits, params);
  constexpr int kDraws = 10'000;
  std::map<int32_t, int> count;
  SampleScratch scratch;
  for (int i = 0; i < kDraws; ++i) {
    ++count[sample_token(logits, params, static_cast<uint64_t>(i), scratch).token];
  }
  double chi_square = 0;
  int cells = 0;
  double rare_expected = 0, rare_seen = 0;  // Cells too small for the statistic are pooled.
  for (const auto& [token, probability] : distribution) {
    if (probability * kDraws < 10) {
      rare_expected += probability * kDraws;
      rare_seen += count[token];
    } else {
      chi_square += std::pow(count[token] - probability * kDraws, 2) / (probability * kDraws);
      ++cells;
    }
  }
  if (rare_expected >= 1) {
    chi_square += std::pow(rare_seen - rare_expected, 2) / rare_expected;
    ++cells;
  }
  for (const auto& [token, seen] : count) {
    EXPECT_TRUE(distribution.contains(token)) << "token " << token << " was filtered out";
  }
  // Mean and variance of chi-square are df and 2 df; five deviations are never reached by chance.
  const double freedom = std::max(cells - 1, 1);
  EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2 * freedom)) << cells << " cells";
}

std::vector<float> random_logits(uint64_t seed, size_t count, float scale) {
  SplitMix64 random(seed);
  return random_vector(random, count, scale);
}

/// Kinds of rows that take different ways through the search for a cut.
std::vector<std::vector<float>> rows_of(size_t vocab) {
  SplitMix64 random(vocab);
  std::vector<std::vector<float>> rows(8, std::vector<float>(vocab));
  for (size_t i = 0; i < vocab; ++i) {
    rows[0][i] = random_f32(random, 0.5f);                                          // Flat.
    rows[1][i] = -1.5f * std::log(1.0f + static_cast<float>(random.below(vocab)));  // Peaked.
    rows[2][i] = std::round(random_f32(random, 4.0f));                              // Many ties.
    rows[3][i] = -1e30f * static_cast<float>(random.unit());                        // Far apart.
    rows[4][i] = random_f32(random, 300.0f);                                    // Most underflow.
    rows[5][i] = i % 2 == 0 ? -0.0f : 0.0f;                                     // All equal.
    rows[6][i] = random_f32(random, 1e-30f);                                    // Nearly equal.
    rows[7][i] = -std::ldexp(1.0f, static_cast<int>(random.below(200)) - 130);  // Of any size.
  }
  return rows;
}

TEST(Sample, HasTheBitsOfThePlainVersion) {
  for (const size_t vocab : {1, 15, 16, 17, 1023, 1024, 1025, 2064, 32'000, 151'936}) {
    std::vector<SamplingParams> cases = {{},
                                         {.temperature = 0.0f},
                                         {.temperature = 0.7f},
                                         {.top_p = 0.9f},
                                         {.top_k = 50},
                                         {.top_k = 50, .top_p = 0.9f},
                                         {.min_p = 0.1f},
                                         {.temperature = 2.5f, .top_k = 5000, .top_p = 0.4f}};
    if (vocab < 10'000) {
      for (const float temperature : {1e-30f, 0.3f, 100.0f}) {
        for (const uint32_t top_k : {0u, 1u, 16u, 700u, 1024u, 2000u}) {
          for (const float top_p : {1e-6f, 0.5f, 0.999999f, 1.0f}) {
            cases.push_back({.temperature = temperature,
                             .top_k = top_k,
                             .top_p = top_p,
                             .min_p = top_k == 16 ? 0.3f : 0.0f});
          }
        }
      }
    }
    size_t kind = 0;
    for (const std::vector<float>& logits : rows_of(vocab)) {
      const PlainSampler plain(logits);
      for (SamplingParams params : cases) {
        params.seed = vocab + kind;
        for (uint64_t position = 0; position < (vocab < 10'000 ? 3 : 1); ++position) {
          const SampledToken expected = plain.sample(params, position);
          for (const char* isa : {"reference", "avx2", "avx512"}) {
            const auto kernels = select_cpu_kernels(isa);
            if (!kernels.ok()) continue;
            SampleScratch scratch;
            const SampledToken token = (*kernels)->sample_token(logits, params, position, scratch);
            const bool same =
                token.token == expected.token && same_bits(token.logprob, expected.logprob);
            EXPECT_TRUE(same) << isa << ", vocab " << vocab << ", kind " << kind << ", T "
                              << params.temperature << ", top_k " << params.top_k << ", top_p "
                              << params.top_p << ", min_p " << params.min_p << ": " << token.token
                              << " with " << token.logprob << ", expected " << expected.token
                              << " with " << expected.logprob;
          }
        }
      }
      ++kind;
    }
  }
}

TEST(Sample, DrawsFromTheFilteredDistribution) {
  const std::vector<float> small = random_logits(1, 12, 2.0f);
  const std::vector<float> large = random_logits(2, 1000, 5.0f);  // More than are sorted at once.
  for (const auto& logits : {small, large}) {
    expect_distribution(logits, {.seed = 1});
    expect_distribution(logits, {.temperature = 0.5f, .seed = 2});
    expect_distribution(logits, {.temperature = 3.0f, .seed = 3});
    expect_distribution(logits, {.top_k = 5, .seed = 4});
    expect_distribution(logits, {.top_p = 0.7f, .seed = 5});
    expect_distribution(logits, {.min_p = 0.2f, .seed = 6});
    expect_distribution(
        logits, {.temperature = 1.5f, .top_k = 9, .top_p = 0.9f, .min_p = 0.05f, .seed = 7});
    expect_distribution(logits, {.temperature = 2.0f, .top_k = 200, .top_p = 0.99f, .seed = 8});
  }
}

TEST(Sample, FiltersKeepExactlyThePlainPrefix) {
  // Every kept token appears and no other does, when the draw is nearly uniform.
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    std::vector<float> logits = random_logits(seed, 40, 0.3f);
    if (seed % 2 == 0) {
      for (float& logit : logits) logit = std::round(logit * 10) / 10;  // Ties.
    }
    const SamplingParams params = {.top_k = static_cast<uint32_t>(seed % 3 == 0 ? 17 : 0),
                                   .top_p = 0.3f + 0.03f * static_cast<float>(seed),
                                   .min_p = seed % 5 == 0 ? 0.7f : 0.0f,
                                   .seed = seed};
    std::set<int32_t> expected;
    for (const auto& [token, probability] : plain_distribution(logits, params))
      expected.insert(token);
    std::set<int32_t> seen;
    SampleScratch scratch;
    for (uint64_t position = 0; position < 2000; ++position) {
      seen.insert(sample_token(logits, params, position, scratch).token);
    }
    EXPECT_EQ(seen, expected) << "seed " << seed;
  }
}

TEST(Sample, GreedyTakesTheLowestOfEqualLogits) {
  EXPECT_EQ(sample({1.0f, 3.0f, 2.0f, 3.0f}, {.temperature = 0.0f}).token, 1);
  EXPECT_EQ(sample({5.0f}, {.temperature = 0.0f}).token, 0);
  EXPECT_EQ(sample({-0.0f, 0.0f}, {.temperature = 0.0f}).token, 0);
  for (uint64_t position = 0; position < 50; ++position) {
    EXPECT_EQ(sample({1.0f, 3.0f, 2.0f, 3.0f}, {.top_k = 1}, position).token, 1);
    EXPECT_EQ(sample({1.0f, 3.0f, 2.0f, 3.1f}, {.temperature = 1e-30f}, position).token, 3);
  }
}

TEST(Sample, EdgesOfTheFilters) {
  const std::vector<float> logits = {0.0f, 2.0f, 1.0f};
  std::set<int32_t> seen;
  for (uint64_t position = 0; position < 500; ++position) {
    // Each of these leaves the largest alone.
    EXPECT_EQ(sample(logits, {.top_p = 1e-6f}, position).token, 1);
    EXPECT_EQ(sample(logits, {.min_p = 1.0f}, position).token, 1);
    // And each of these leaves all.
    seen.insert(sample(logits, {.top_k = 3, .top_p = 1.0f, .min_p = 0.0f}, position).token);
    seen.insert(sample(logits, {.top_k = 100}, position).token);
  }
  EXPECT_EQ(seen, (std::set<int32_t>{0, 1, 2}));
  // A token whose probability underflows is never drawn.
  for (uint64_t position = 0; position < 500; ++position) {
    EXPECT_EQ(sample({-1000.0f, 0.0f, -1000.0f}, {}, position).token, 1);
  }
}

TEST(Sample, RefusesOneBadLogitAnywhere) {
  std::vector<float> logits(1100, 1.0f);
  for (const char* isa : {"reference", "avx2", "avx512"}) {
    const auto kernels = select_cpu_kernels(isa);
    if (!kernels.ok()) continue;
    SampleScratch scratch;
    for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
      for (const size_t place : {0, 15, 16, 1023, 1024, 1087, 1088, 1099}) {
        logits[place] = bad;
        EXPECT_EQ((*kernels)->sample_token(logits, {}, 0, scratch).token, -1) << isa << place;
        logits[place] = 1.0f;
      }
    }
    EXPECT_GE((*kernels)->sample_token(logits, {}, 0, scratch).token, 0);
  }
}

TEST(Sample, RefusesLogitsThatAreNotFinite) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (size_t place = 0; place < 3; ++place) {
      std::vector<float> logits = {1.0f, 2.0f, 3.0f};
      logits[place] = bad;
      EXPECT_EQ(sample(logits, {}).token, -1);
      EXPECT_EQ(sample(logits, {.temperature = 0.0f}).token, -1);
    }
  }
  EXPECT_EQ(sample({}, {}).token, -1);
}

TEST(Sample, LogprobIsThatOfTheUnfilteredSoftmax) {
  const std::vector<float> logits = random_logits(9, 300, 4.0f);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  for (const SamplingParams& params : {SamplingParams{.temperature = 0.0f},
                                       {.temperature = 0.3f},
                                       {.temperature = 2.0f, .top_k = 20}}) {
    const SampledToken token = sample(logits, params, 5);
    EXPECT_NEAR(token.logprob, logits[static_cast<size_t>(token.token)] - std::log(sum), 2e-6);
  }
}

TEST(Sample, DependsOnSeedAndPositionAlone) {
  const std::vector<float> logits = random_logits(10, 500, 1.0f);
  SampleScratch used;
  sample_token(random_logits(11, 2000, 1.0f), {.seed = 3}, 0, used);
  std::set<int32_t> tokens;
  for (uint64_t position : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
    for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
      const SamplingParams params = {.seed = seed};
      const SampledToken fresh = sample(logits, params, position);
      EXPECT_EQ(sample_token(logits, params, position, used).token, fresh.token);
      tokens.insert(fresh.token);
    }
  }
  EXPECT_GE(tokens.size(),
            7u);  // High and low words all take part; two of nine may meet by chance.
}

}  // namespace
}  // namespace volley::kernels::testing
