#pragma once

#include <array>
#include <cstdint>

namespace volley {

/// SplitMix64: the sequential generator of simulations and tests. One seed gives one sequence.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t next();
  /// Uniform in [0, bound); `bound` must not be 0. The bias is below 2^-32 for bounds under 2^32.
  uint64_t below(uint64_t bound) { return next() % bound; }
  /// Uniform in [0, 1) with 53 bits.
  double unit() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  bool chance(double probability) { return unit() < probability; }

 private:
  uint64_t state_;
};

/// Philox4x32-10 (Salmon et al., SC '11): a counter-based generator. The value at a counter does
/// not depend on what was drawn before, so sampling can be replayed at any position.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

}  // namespace volley
