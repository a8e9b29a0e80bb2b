#pragma once

#include <vector>

#include "volley/base/status.h"

namespace volley::perf {

/// y as a function of x > 0: linear in log x between the points, constant before the first and
/// after the last. For efficiencies by rows or bytes, which change over decades of x.
class Curve {
 public:
  struct Point {
    double x = 0;
    double y = 0;
    bool operator==(const Point&) const = default;
  };

  /// y everywhere.
  explicit Curve(double y) : points_{{1, y}} {}
  /// Errors: kInvalidArgument (no point, x not positive or not ascending, a value not finite).
  static Result<Curve> make(std::vector<Point> points);

  double at(double x) const;
  const std::vector<Point>& points() const { return points_; }
  bool operator==(const Curve&) const = default;

 private:
  explicit Curve(std::vector<Point> points) : points_(std::move(points)) {}
  std::vector<Point> points_;  // Ascending x; at least one.
};

}  // namespace volley::perf
