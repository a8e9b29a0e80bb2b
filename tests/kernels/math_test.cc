// Goal: exp_f32 keeps its contract: at most 2 ulp from the true value, exact at 0, 0 and infinity
// beyond its range, NaN stays NaN. That the vector versions have the same bits is seen in the
// router, attention and FFN tests. Method: a dense sweep over all exponents against std::exp in
// double; the edges one by one.

#include "kernels/common/math.h"

#include <gtest/gtest.h>

#include "kernel_testing.h"

namespace volley::kernels {
namespace {

TEST(Exp, IsWithinTwoUlpOverItsRange) {
  double worst_ulp = 0.0;
  float worst_input = 0.0f;
  const auto measure = [&](float x) {
    const double exact = std::exp(double{x});
    const float nearest = static_cast<float>(exact);
    const double ulp = double{std::nextafter(nearest, INFINITY)} - nearest;
    const double error_ulp = std::abs(exp_f32(x) - exact) / ulp;
    if (error_ulp > worst_ulp) {
      worst_ulp = error_ulp;
      worst_input = x;
    }
  };
  // Every 1009th float of both signs (a prime, so that no pattern of low bits is missed), then a
  // dense sweep of the range itself.
  for (uint32_t bits = 0; bits < 0x42b20000u; bits += 1009) {
    const float x = std::bit_cast<float>(bits);
    if (x <= exp_constants::kHighest) measure(x);
    if (-x >= exp_constants::kLowest) measure(-x);
  }
  for (double x = -87.3; x < 88.7; x += 1.0 / 4099) measure(static_cast<float>(x));
  EXPECT_LE(worst_ulp, 2.0) << "at " << std::hexfloat << worst_input;
}

TEST(Exp, IsExactAtZeroAndBeyondItsRange) {
  using namespace exp_constants;
  EXPECT_EQ(exp_f32(0.0f), 1.0f);
  EXPECT_EQ(exp_f32(-0.0f), 1.0f);
  EXPECT_EQ(exp_f32(std::nextafter(kLowest, -INFINITY)), 0.0f);
  EXPECT_EQ(exp_f32(-INFINITY), 0.0f);
  EXPECT_EQ(exp_f32(std::nextafter(kHighest, INFINITY)), INFINITY);
  EXPECT_EQ(exp_f32(INFINITY), INFINITY);
  EXPECT_TRUE(std::isnan(exp_f32(NAN)));
  EXPECT_TRUE(std::isnormal(exp_f32(kLowest)));
  EXPECT_TRUE(std::isfinite(exp_f32(kHighest)));
}

TEST(Silu, HasItsLimits) {
  EXPECT_EQ(silu_f32(0.0f), 0.0f);
  EXPECT_EQ(silu_f32(200.0f), 200.0f);
  EXPECT_EQ(silu_f32(-200.0f), 0.0f);
  EXPECT_NEAR(silu_f32(1.0f), 1.0 / (1.0 + std::exp(-1.0)), 1e-6);
}

TEST(AddLanes, AddsPairwiseInTheStatedOrder) {
  // Values for which another order gives another sum: 2^24 absorbs a single 1, but not a pair of
  // them.
  float lane[16] = {};
  lane[0] = 0x1p24f;
  lane[1] = 1.0f;
  lane[9] = 1.0f;
  EXPECT_EQ(add_lanes(lane), 0x1p24f + 2.0f);  // 1 + 9 first, then with lane 0.
  lane[9] = 0.0f;
  lane[8] = 1.0f;
  EXPECT_EQ(add_lanes(lane), 0x1p24f);  // Each 1 alone meets 2^24, a tie to even.
}

}  // namespace
}  // namespace volley::kernels
