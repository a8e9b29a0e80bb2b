#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "volley/base/ids.h"

namespace volley::scheduler {

/// A time as a function of the rows of a micro-batch, learned while serving. Samples go into
/// buckets by powers of two of rows; between the buckets' means the time is linear. Time does not
/// shrink in proportion to rows: a small batch costs nearly as much.
class TimeCurve {
 public:
  /// Bucket k holds the rows in (2^(k-1), 2^k]; the last one all above, too.
  static constexpr uint32_t kBuckets = 17;
  /// Samples before a bucket counts; a sample is a step's mean.
  static constexpr uint32_t kSamplesMin = 4;
  /// A bucket without samples for so long is out of date, and its next sample starts it anew:
  /// contexts have grown, or the machine has become busy.
  static constexpr Nanos kStale = 30 * kSecond;

  struct Point {
    double rows = 0;       ///< Mean of the samples'.
    double time = 0;       ///< Mean in ns; the last sixteen or so count.
    uint32_t samples = 0;  ///< At most UINT32_MAX.
    Nanos updated = 0;

    bool usable() const { return samples >= kSamplesMin; }
  };

  static uint32_t bucket_of(double rows);

  /// A sample. Beyond four times the bucket's mean it counts as that much: a preempted thread says
  /// nothing about the work.
  void add(uint32_t rows, Nanos time, Nanos now);
  /// A time that has some waiting in it: a sample when nothing was known or expected to be that
  /// short.
  void add_bound(uint32_t rows, Nanos bound, Nanos now);

  /// The expected time in ns: between two usable buckets linear; beyond them from the
  /// nearest one with the slope of the least-squares line through all, but never steeper than in
  /// proportion. nullopt: nothing is measured.
  std::optional<double> at(double rows) const;
  /// The least that the time can be if it grows with rows, and at most in proportion, by what is
  /// not stale. 0: nothing is.
  double lower_bound(double rows, Nanos now) const;
  /// Whether the bucket of `rows` has samples to go by.
  bool measured(double rows) const;
  /// Whether they are not stale.
  bool fresh(double rows, Nanos now) const;

  const std::array<Point, kBuckets>& points() const { return points_; }

 private:
  /// Of the least-squares line through the usable points; 0 for fewer than two.
  double slope() const;

  std::array<Point, kBuckets> points_{};
};

}  // namespace volley::scheduler
