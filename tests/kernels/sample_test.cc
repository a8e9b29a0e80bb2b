// Goal: sampling draws from the filtered distribution that its contract describes, depends on
// (seed, position) alone, and refuses logits that are not finite. Method: the filters against a
// plain computation over a full sort, the distribution by chi-square with fixed seeds, the edges
// one by one.

#include "kernels/sample/sample.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "kernel_testing.h"

namespace volley::kernels::testing {
namespace {

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

TEST(Sample, DrawsFromTheFilteredDistribution) {
  const std::vector<float> small = random_logits(1, 12, 2.0f);
  const std::vector<float> large = random_logits(2, 1000, 5.0f);  // Beyond the first sorted step.
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
