#pragma once

#include <span>
#include <vector>

#include "volley/base/status.h"

namespace volley::perf {

/// One observation: y, and what it is to be a sum of multiples of.
struct LinearSample {
  std::vector<double> x;  ///< None is negative.
  double y = 0;           ///< Above 0.
};

struct LinearFit {
  std::vector<double> coefficients;  ///< None is negative.
  /// |fitted - y| / y over the samples.
  double median_error = 0, worst_error = 0;
  size_t worst_sample = 0;
};

/// The non-negative coefficients with the least sum of squared relative errors: times of
/// microseconds count as much as those of milliseconds. What the samples cannot tell apart gets
/// fewer coefficients, the others are 0. Errors: kInvalidArgument (no sample, samples of different
/// lengths or of more than 8 terms, a value out of range).
Result<LinearFit> fit_linear(std::span<const LinearSample> samples);

}  // namespace volley::perf
