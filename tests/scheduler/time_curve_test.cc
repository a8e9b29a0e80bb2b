// Goal: a curve learned from samples says what a batch size takes, between and beyond the sizes
// that were measured. Method: samples of known functions.

#include "volley/scheduler/time_curve.h"

#include <gtest/gtest.h>

namespace volley::scheduler {
namespace {

void teach(TimeCurve& curve, uint32_t rows, Nanos time, Nanos now = 0, uint32_t samples = 20) {
  for (uint32_t i = 0; i < samples; ++i) curve.add(rows, time, now);
}

TEST(TimeCurve, BucketsArePowersOfTwo) {
  EXPECT_EQ(TimeCurve::bucket_of(1), 0u);
  EXPECT_EQ(TimeCurve::bucket_of(2), 1u);
  EXPECT_EQ(TimeCurve::bucket_of(2.5), 2u);
  EXPECT_EQ(TimeCurve::bucket_of(4), 2u);
  EXPECT_EQ(TimeCurve::bucket_of(5), 3u);
  EXPECT_EQ(TimeCurve::bucket_of(65'536), 16u);
  EXPECT_EQ(TimeCurve::bucket_of(1e9), 16u);
}

TEST(TimeCurve, NothingIsKnownBeforeFourSamples) {
  TimeCurve curve;
  EXPECT_FALSE(curve.at(8).has_value());
  teach(curve, 8, 1'000, 0, TimeCurve::kSamplesMin - 1);
  EXPECT_FALSE(curve.at(8).has_value());
  EXPECT_FALSE(curve.measured(8));
  curve.add(8, 1'000, 0);
  EXPECT_DOUBLE_EQ(curve.at(8).value(), 1'000);
  EXPECT_TRUE(curve.measured(5));  // The same bucket.
  EXPECT_FALSE(curve.measured(4));
  curve.add(0, 77, 0);  // An empty dispatch says nothing.
  EXPECT_DOUBLE_EQ(curve.at(8).value(), 1'000);
}

TEST(TimeCurve, FollowsAnAffineCostFromTwoPoints) {
  TimeCurve curve;
  const auto cost = [](uint32_t rows) { return Nanos{1'000 + 50 * rows}; };
  teach(curve, 8, cost(8));
  teach(curve, 32, cost(32));
  EXPECT_NEAR(curve.at(16).value(), cost(16), 1);
  EXPECT_NEAR(curve.at(4).value(), cost(4), 1);
  EXPECT_NEAR(curve.at(64).value(), cost(64), 1);
}

TEST(TimeCurve, BeyondThePointsIsNeverSteeperThanInProportion) {
  TimeCurve one;
  teach(one, 16, 1'000);
  EXPECT_DOUBLE_EQ(one.at(4).value(), 1'000);  // One point shows no slope.
  EXPECT_DOUBLE_EQ(one.at(64).value(), 1'000);

  TimeCurve steep;  // More than in proportion: say, beyond the cache.
  teach(steep, 16, 1'000);
  teach(steep, 32, 4'000);
  EXPECT_DOUBLE_EQ(steep.at(8).value(), 500);
  EXPECT_DOUBLE_EQ(steep.at(64).value(), 8'000);

  TimeCurve falling;
  teach(falling, 16, 1'000);
  teach(falling, 32, 900);
  EXPECT_DOUBLE_EQ(falling.at(4).value(), 1'000);
  EXPECT_DOUBLE_EQ(falling.at(64).value(), 900);
}

TEST(TimeCurve, LowerBoundAssumesTheBestOfWhatIsFresh) {
  TimeCurve curve;
  EXPECT_DOUBLE_EQ(curve.lower_bound(8, 0), 0);
  teach(curve, 16, 1'000, 0);
  EXPECT_DOUBLE_EQ(curve.lower_bound(4, 0), 250);
  EXPECT_DOUBLE_EQ(curve.lower_bound(64, 0), 1'000);
  teach(curve, 2, 700, 0);
  EXPECT_DOUBLE_EQ(curve.lower_bound(4, 0), 700);
  EXPECT_DOUBLE_EQ(curve.lower_bound(4, TimeCurve::kStale + 1), 0);
  EXPECT_FALSE(curve.fresh(16, TimeCurve::kStale + 1));
  EXPECT_TRUE(curve.measured(16));
}

TEST(TimeCurve, AStaleBucketStartsAnew) {
  TimeCurve curve;
  teach(curve, 16, 1'000, 0);
  teach(curve, 16, 5'000, TimeCurve::kStale + 1, TimeCurve::kSamplesMin);
  EXPECT_DOUBLE_EQ(curve.at(16).value(), 5'000);
}

TEST(TimeCurve, AnOutlierCountsLittleAndAChangeIsFollowed) {
  TimeCurve curve;
  teach(curve, 16, 1'000);
  curve.add(16, 100'000'000, 0);
  EXPECT_LT(curve.at(16).value(), 1'200);
  teach(curve, 16, 100'000, 0, 200);
  EXPECT_NEAR(curve.at(16).value(), 100'000, 1'000);
}

TEST(TimeCurve, ABoundOnlyLowers) {
  TimeCurve curve;
  for (int i = 0; i < 10; ++i) curve.add_bound(16, 500, 0);
  EXPECT_DOUBLE_EQ(curve.at(16).value(), 500);  // Better than nothing.
  for (int i = 0; i < 10; ++i) curve.add_bound(16, 9'000, 0);
  EXPECT_DOUBLE_EQ(curve.at(16).value(), 500);
  for (int i = 0; i < 100; ++i) curve.add_bound(16, 100, 0);
  EXPECT_NEAR(curve.at(16).value(), 100, 2);
  // Another size: what is expected there is the measure.
  for (int i = 0; i < 100; ++i) curve.add_bound(64, 9'000, 0);
  EXPECT_FALSE(curve.measured(64));
}

}  // namespace
}  // namespace volley::scheduler
