#include "workload.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace volley::simulation {

uint32_t LengthOptions::longest() const {
  switch (kind) {
    case Kind::kFixed:
      return static_cast<uint32_t>(a);
    case Kind::kUniform:
      return static_cast<uint32_t>(b);
    case Kind::kLognormal:
      return max;
  }
  return 1;
}

uint32_t draw_length(const LengthOptions& options, SplitMix64& random) {
  switch (options.kind) {
    case LengthOptions::Kind::kFixed:
      return static_cast<uint32_t>(options.a);
    case LengthOptions::Kind::kUniform: {
      const auto from = static_cast<uint64_t>(options.a), to = static_cast<uint64_t>(options.b);
      return static_cast<uint32_t>(from + random.below(to - from + 1));
    }
    case LengthOptions::Kind::kLognormal: {
      // Box and Muller.
      const double radius = std::sqrt(-2 * std::log(1 - random.unit()));
      const double normal = radius * std::cos(2 * std::numbers::pi * random.unit());
      const double length = std::round(options.a * std::exp(options.b * normal));
      return static_cast<uint32_t>(std::clamp<double>(length, 1, options.max));
    }
  }
  return 1;
}

double draw_gap(double rate, SplitMix64& random) {
  return -std::log(1 - random.unit()) / rate;
}

}  // namespace volley::simulation
