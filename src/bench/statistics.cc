#include "volley/bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "volley/base/check.h"

namespace volley::bench {

double quantile(std::span<double> values, double share) {
  VOLLEY_CHECK(!values.empty() && share >= 0 && share <= 1);
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
  return values[rank == 0 ? 0 : rank - 1];
}

}  // namespace volley::bench
