// Goal: the router chooses the largest logits with ties to the lower id, lists them ascending,
// weighs them by softmax, and marks rows with bad logits, with the same bits everywhere. Method:
// seeded logits with many ties against a plain sort in double precision; edge cases by hand.

#include <algorithm>
#include <numeric>

#include "kernel_testing.h"

namespace volley::kernels::testing {
namespace {

struct Routes {
  std::vector<uint32_t> expert;
  std::vector<float> weight;
};

Routes route(const CpuKernels& kernels, ThreadPool& pool, const RowBuffer& logits, uint32_t top_k,
             bool normalize) {
  Routes routes = {std::vector<uint32_t>(logits.rows() * top_k, 77),
                   std::vector<float>(logits.rows() * top_k, 77.0f)};
  kernels.router({.logits = logits.rows_in(),
                  .experts = static_cast<uint32_t>(logits.width()),
                  .top_k = top_k,
                  .normalize = normalize,
                  .expert = routes.expert.data(),
                  .weight = routes.weight.data()},
                 pool);
  return routes;
}

TEST(Router, ChoosesAndWeighsAsAPlainSortDoes) {
  uint64_t seed = 60;
  ThreadPool one(1);
  for (const auto& [experts, top_k] :
       {std::pair{1u, 1u}, {5u, 3u}, {8u, 2u}, {16u, 16u}, {60u, 4u}, {128u, 8u}}) {
    for (const uint32_t rows : {0u, 1u, 9u}) {
      for (const bool normalize : {false, true}) {
        SplitMix64 random(++seed);
        RowBuffer logits(rows, experts, DType::kF32);
        for (uint32_t r = 0; r < rows; ++r) {
          for (uint32_t i = 0; i < experts; ++i) {
            // Rows with coarse logits have ties.
            const float logit = random_f32(random, 6.0f);
            logits.set(r, i, r % 2 == 0 ? logit : std::round(logit));
          }
        }
        const Routes expected = route(reference_kernels(), one, logits, top_k, normalize);
        for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
          const Routes actual = route(kernels, pool, logits, top_k, normalize);
          EXPECT_EQ(actual.expert, expected.expert) << name << ", seed " << seed;
          for (size_t i = 0; i < expected.weight.size(); ++i) {
            EXPECT_TRUE(same_bits(actual.weight[i], expected.weight[i]))
                << name << ", seed " << seed << ", index " << i << ": " << std::hexfloat
                << actual.weight[i] << " and " << expected.weight[i];
          }
        });
        for (uint32_t r = 0; r < rows; ++r) {
          std::vector<uint32_t> order(experts);
          std::iota(order.begin(), order.end(), 0u);
          std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
            const float x = logits.at(r, a), y = logits.at(r, b);
            return x > y || (x == y && a < b);
          });
          const double largest = logits.at(r, order[0]);
          std::sort(order.begin(), order.begin() + top_k);
          double sum = 0, chosen = 0;
          for (uint32_t i = 0; i < experts; ++i) sum += std::exp(logits.at(r, i) - largest);
          for (uint32_t j = 0; j < top_k; ++j) chosen += std::exp(logits.at(r, order[j]) - largest);
          for (uint32_t j = 0; j < top_k; ++j) {
            ASSERT_EQ(expected.expert[r * top_k + j], order[j]) << "seed " << seed << ", row " << r;
            const double exact =
                std::exp(logits.at(r, order[j]) - largest) / (normalize ? chosen : sum);
            // Differences of up to 12 are rounded (12 u), exponentials within 2 ulp (4 u), twice in
            // each quotient; sums of `experts` and `top_k` terms, two quotients.
            const double relative = gamma(2 * (12 + 4) + experts + top_k + 2);
            ASSERT_NEAR(expected.weight[r * top_k + j], exact, relative * exact);
          }
        }
      }
    }
  }
}

TEST(Router, TiesGoToTheLowerExpert) {
  RowBuffer logits(2, 6, DType::kF32);
  const float ties[2][6] = {{1, 1, 1, 1, 1, 1}, {0, 2, 1, 2, 1, 2}};
  for (int r = 0; r < 2; ++r) {
    for (int i = 0; i < 6; ++i) logits.set(r, i, ties[r][i]);
  }
  for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
    EXPECT_EQ(route(kernels, pool, logits, 4, true).expert,
              (std::vector<uint32_t>{0, 1, 2, 3, 1, 2, 3, 5}))
        << name;
  });
}

TEST(Router, MarksRowsWithBadLogits) {
  SplitMix64 random(70);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const uint32_t place : {0u, 4u, 19u}) {
      auto logits = RowBuffer::random(random, 3, 20, DType::kF32);
      logits.set(1, place, bad);
      for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
        const Routes routes = route(kernels, pool, logits, 2, true);
        for (const size_t i : {2, 3}) {
          EXPECT_EQ(routes.expert[i], kInvalidExpert) << name;
          EXPECT_EQ(routes.weight[i], 0.0f) << name;
        }
        for (const size_t i : {0, 1, 4, 5}) EXPECT_LT(routes.expert[i], 20u) << name;
      });
    }
  }
}

TEST(Router, SurvivesExtremeLogits) {
  RowBuffer logits(1, 3, DType::kF32);
  logits.set(0, 0, -3e38f);
  logits.set(0, 1, 3e38f);
  logits.set(0, 2, 0.0f);
  for_each_variant([&](const CpuKernels& kernels, ThreadPool& pool, const std::string& name) {
    const Routes routes = route(kernels, pool, logits, 2, true);
    EXPECT_EQ(routes.expert, (std::vector<uint32_t>{1, 2})) << name;
    EXPECT_EQ(routes.weight, (std::vector<float>{1.0f, 0.0f})) << name;
  });
}

}  // namespace
}  // namespace volley::kernels::testing
