#include "volley/scheduler/time_curve.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "volley/base/check.h"

namespace volley::scheduler {
namespace {

// Samples that count: noise of 10 % leaves 2 % in the mean.
constexpr double kWindow = 16;
constexpr double kOutlier = 4;

}  // namespace

uint32_t TimeCurve::bucket_of(double rows) {
  VOLLEY_CHECK(rows > 0);
  const double limit = uint32_t{1} << (kBuckets - 1);
  const auto whole = static_cast<uint32_t>(std::ceil(std::min(rows, limit)));
  return static_cast<uint32_t>(std::bit_width(whole - 1));
}

void TimeCurve::add(uint32_t rows, Nanos time, Nanos now) {
  if (rows == 0) return;
  Point& point = points_[bucket_of(rows)];
  if (point.samples > 0 && now - point.updated > kStale) point = {};
  double value = static_cast<double>(std::max<Nanos>(time, 0));
  if (point.usable()) value = std::min(value, kOutlier * std::max(point.time, 1.0));
  if (point.samples < UINT32_MAX) ++point.samples;
  const double weight = 1.0 / std::min(kWindow, static_cast<double>(point.samples));
  point.rows += (rows - point.rows) * weight;
  point.time += (value - point.time) * weight;
  point.updated = now;
}

void TimeCurve::add_bound(uint32_t rows, Nanos bound, Nanos now) {
  if (rows == 0) return;
  const std::optional<double> known = at(rows);
  if (!known.has_value() || static_cast<double>(bound) < *known) add(rows, bound, now);
}

double TimeCurve::slope() const {
  double count = 0, rows = 0, time = 0;
  for (const Point& point : points_) {
    if (!point.usable()) continue;
    ++count;
    rows += point.rows;
    time += point.time;
  }
  rows /= count;
  time /= count;
  double covariance = 0, variance = 0;
  for (const Point& point : points_) {
    if (!point.usable()) continue;
    covariance += (point.rows - rows) * (point.time - time);
    variance += (point.rows - rows) * (point.rows - rows);
  }
  return variance > 0 ? std::max(0.0, covariance / variance) : 0;
}

std::optional<double> TimeCurve::at(double rows) const {
  const Point* below = nullptr;
  const Point* above = nullptr;
  for (const Point& point : points_) {  // Ascending in rows: the buckets do not overlap.
    if (!point.usable()) continue;
    if (point.rows <= rows) below = &point;
    if (point.rows >= rows && above == nullptr) above = &point;
  }
  if (below == nullptr && above == nullptr) return std::nullopt;
  if (below == above) return below->time;
  if (below != nullptr && above != nullptr) {
    const double part = (rows - below->rows) / (above->rows - below->rows);
    return below->time + (above->time - below->time) * part;
  }
  const Point& nearest = below != nullptr ? *below : *above;
  const double in_proportion = nearest.time * rows / nearest.rows;
  return std::clamp(nearest.time + slope() * (rows - nearest.rows),
                    std::min(nearest.time, in_proportion), std::max(nearest.time, in_proportion));
}

double TimeCurve::lower_bound(double rows, Nanos now) const {
  double bound = 0;
  for (const Point& point : points_) {
    if (!point.usable() || now - point.updated > kStale) continue;
    bound = std::max(bound, point.rows <= rows ? point.time : point.time * rows / point.rows);
  }
  return bound;
}

bool TimeCurve::measured(double rows) const {
  return points_[bucket_of(rows)].usable();
}

bool TimeCurve::fresh(double rows, Nanos now) const {
  return measured(rows) && now - points_[bucket_of(rows)].updated <= kStale;
}

}  // namespace volley::scheduler
