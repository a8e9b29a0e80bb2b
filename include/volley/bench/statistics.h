#pragma once

#include <span>

namespace volley::bench {

/// The value at `share` (0 to 1) of the sorted `values`, which must not be empty: the smallest one
/// that at least this share of them does not exceed (nearest rank). Sorts `values`.
double quantile(std::span<double> values, double share);

}  // namespace volley::bench
