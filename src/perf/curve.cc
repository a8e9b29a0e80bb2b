#include "volley/perf/curve.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace volley::perf {

Result<Curve> Curve::make(std::vector<Point> points) {
  if (points.empty()) return invalid_argument("a curve needs at least one point");
  double last = 0;
  for (const Point& point : points) {
    if (!std::isfinite(point.x) || !std::isfinite(point.y)) {
      return invalid_argument("the point ({}, {}) is not finite", point.x, point.y);
    }
    if (point.x <= last) {
      return invalid_argument("x = {} must be above {}, which is before it", point.x, last);
    }
    last = point.x;
  }
  return Curve(std::move(points));
}

double Curve::at(double x) const {
  const auto right = std::upper_bound(points_.begin(), points_.end(), x,
                                      [](double value, const Point& p) { return value < p.x; });
  if (right == points_.begin()) return points_.front().y;
  if (right == points_.end()) return points_.back().y;
  const Point& left = *(right - 1);
  const double part = std::log(x / left.x) / std::log(right->x / left.x);
  return std::lerp(left.y, right->y, part);
}

}  // namespace volley::perf
