#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace volley::simulation {

/// Times with their number, mean and quantiles: fixed memory, quantiles to 0.3 %. Samples have
/// weights, so that histograms of folded replicas add up.
class Histogram {
 public:
  void add(double seconds, double weight = 1) {
    count_ += weight;
    sum_ += seconds * weight;
    longest_ = seconds > longest_ ? seconds : longest_;
    buckets_[bucket_of(seconds)] += weight;
  }
  void merge(const Histogram& other, double weight) {
    count_ += other.count_ * weight;
    sum_ += other.sum_ * weight;
    longest_ = other.longest_ > longest_ ? other.longest_ : longest_;
    for (size_t i = 0; i < kBuckets; ++i) buckets_[i] += other.buckets_[i] * weight;
  }
  double count() const { return count_; }
  /// 0 without samples, as the others.
  double mean() const { return count_ > 0 ? sum_ / count_ : 0; }
  double max() const { return longest_; }
  double quantile(double share) const {
    if (count_ <= 0) return 0;
    double below = 0;
    for (size_t i = 0; i < kBuckets; ++i) {
      below += buckets_[i];
      if (below < share * count_) continue;
      const double middle = kLeast * std::exp2((static_cast<double>(i) + 0.5) / kPerOctave);
      return middle < longest_ ? middle : longest_;
    }
    return longest_;
  }

 private:
  static constexpr double kLeast = 1e-7;  ///< Seconds; all below count as this.
  static constexpr double kPerOctave = 128;
  static constexpr size_t kBuckets = 44 * 128;  ///< Up to 1.7e6 seconds.

  static size_t bucket_of(double seconds) {
    if (!(seconds > kLeast)) return 0;
    const double place = std::log2(seconds / kLeast) * kPerOctave;
    return place < kBuckets ? static_cast<size_t>(place) : kBuckets - 1;
  }

  double count_ = 0, sum_ = 0, longest_ = 0;
  std::array<double, kBuckets> buckets_{};
};

}  // namespace volley::simulation
