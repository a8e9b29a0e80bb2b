// Goal: a curve passes through its points, is linear in log x between them and constant outside,
// and is never made from points without order. Method: values computed by hand, a table of bad
// points.

#include "volley/perf/curve.h"

#include <gtest/gtest.h>

#include <limits>

namespace volley::perf {
namespace {

TEST(Curve, IsConstantFromOneNumber) {
  const Curve curve(0.7);
  for (const double x : {1e-9, 1.0, 1e12}) EXPECT_EQ(curve.at(x), 0.7);
}

TEST(Curve, IsLinearInTheLogarithmBetweenItsPoints) {
  const auto curve = Curve::make({{1, 0.2}, {100, 0.6}, {1e6, 1.0}});
  ASSERT_TRUE(curve.ok()) << curve.status();
  EXPECT_DOUBLE_EQ(curve->at(1), 0.2);
  EXPECT_DOUBLE_EQ(curve->at(10), 0.4);
  EXPECT_DOUBLE_EQ(curve->at(100), 0.6);
  EXPECT_DOUBLE_EQ(curve->at(1e4), 0.8);
  EXPECT_DOUBLE_EQ(curve->at(1e6), 1.0);
}

TEST(Curve, IsConstantOutsideItsPoints) {
  const auto curve = Curve::make({{8, 0.2}, {16, 0.6}});
  ASSERT_TRUE(curve.ok()) << curve.status();
  for (const double x : {0.0, 0.5, 7.9}) EXPECT_EQ(curve->at(x), 0.2) << x;
  for (const double x : {16.1, 1e30}) EXPECT_EQ(curve->at(x), 0.6) << x;
}

TEST(Curve, RefusesPointsWithoutOrder) {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<std::vector<Curve::Point>> bad = {
      {}, {{0, 1}}, {{-1, 1}}, {{2, 1}, {2, 1}}, {{2, 1}, {1, 1}}, {{1, infinity}}, {{infinity, 1}},
  };
  for (const auto& points : bad) {
    EXPECT_EQ(Curve::make(points).status().code(), StatusCode::kInvalidArgument) << points.size();
  }
}

}  // namespace
}  // namespace volley::perf
