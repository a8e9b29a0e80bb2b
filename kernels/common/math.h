#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace volley::kernels {

/// The constants of exp_f32, shared with its vector version (vector-inl.h), which does the same
/// operations in the same order and so gives the same bits in every lane.
namespace exp_constants {
inline constexpr float kLog2E = 0x1.715476p+0f;
/// Adding 1.5 * 2^23 leaves the nearest integer (ties to even) in the low bits of the sum.
inline constexpr float kRound = 0x1.8p+23f;
/// ln 2 = kLn2High + kLn2Low; the fused product with kLn2High makes longer splits unnecessary.
inline constexpr float kLn2High = 0x1.62e430p-1f;
inline constexpr float kLn2Low = -0x1.05c610p-29f;
/// 1 / i!. With |r| <= ln(2) / 2 the first term left out, r^8 / 8!, is below 6e-9: a tenth of an
/// ulp.
inline constexpr float kC2 = 0x1p-1f;
inline constexpr float kC3 = 0x1.555556p-3f;
inline constexpr float kC4 = 0x1.555556p-5f;
inline constexpr float kC5 = 0x1.111112p-7f;
inline constexpr float kC6 = 0x1.6c16c2p-10f;
inline constexpr float kC7 = 0x1.a01a02p-13f;
/// ln of the least normal number: below it the result is 0, so that no subnormal ever appears.
inline constexpr float kLowest = -0x1.5d589ep+6f;
/// ln of the largest finite number: above it the result is infinite.
inline constexpr float kHighest = 0x1.62e42ep+6f;
}  // namespace exp_constants

/// The exponential of the numerics contracts (softmax, SiLU, router). Within 2 ulp of the true
/// value; exp(0) is exactly 1; exactly 0 below about -87.336 and infinite above about 88.722; a NaN
/// is returned as it is.
inline float exp_f32(float x) {
  using namespace exp_constants;
  if (std::isnan(x)) return x;
  if (x < kLowest) return 0.0f;
  if (x > kHighest) return std::numeric_limits<float>::infinity();
  // x = n ln 2 + r.
  const float rounded = std::fma(x, kLog2E, kRound);
  const float n = rounded - kRound;
  const float r = std::fma(n, -kLn2Low, std::fma(n, -kLn2High, x));
  float p = kC7;
  p = std::fma(p, r, kC6);
  p = std::fma(p, r, kC5);
  p = std::fma(p, r, kC4);
  p = std::fma(p, r, kC3);
  p = std::fma(p, r, kC2);
  p = std::fma(p, r, 1.0f);
  p = std::fma(p, r, 1.0f);
  // Times 2^n in two steps: n reaches 128, which no exponent field can hold.
  const int32_t exponent = std::bit_cast<int32_t>(rounded) - std::bit_cast<int32_t>(kRound);
  const int32_t half = exponent >> 1;
  const float scale_first = std::bit_cast<float>((half + 127) << 23);
  const float scale_second = std::bit_cast<float>((exponent - half + 127) << 23);
  return p * scale_first * scale_second;
}

/// The gate of the gated FFN.
inline float silu_f32(float x) {
  return x / (1.0f + exp_f32(-x));
}

/// acc + a * b as one step of the bf16 sums: rounded once, with a denormal factor taken as zero and
/// a denormal result (one below 2^-126 when rounded to 24 bits) as zero of its sign. This is what
/// VDPBF16PS does twice per lane, and vector FMAs do under MXCSR.FTZ and DAZ.
inline float fma_flushed(float a, float b, float acc) {
  constexpr float kLeastNormal = std::numeric_limits<float>::min();
  if (std::fabs(a) < kLeastNormal) a = std::copysign(0.0f, a);
  if (std::fabs(b) < kLeastNormal) b = std::copysign(0.0f, b);
  const float sum = std::fma(a, b, acc);
  if (!(std::fabs(sum) <= kLeastNormal)) return sum;
  // So small that the denormal grid may have rounded it: round again on a grid scaled out of it.
  // The smaller factor takes the scale, so that it cannot overflow.
  constexpr float kScale = 0x1p+60f;
  const bool scale_a = std::fabs(a) < std::fabs(b);
  const float exact = std::fma(scale_a ? a * kScale : a, scale_a ? b : b * kScale, acc * kScale);
  return std::fabs(exact) < kLeastNormal * kScale ? std::copysign(0.0f, sum) : sum;
}

/// One step of a bf16 sum: the odd element of a pair first, then the even one.
inline float add_pair(float sum, float x_even, float x_odd, float y_even, float y_odd) {
  return fma_flushed(x_even, y_even, fma_flushed(x_odd, y_odd, sum));
}

/// The pairwise order in which every contract adds 16 lanes: lane j and j + 8, then + 4, + 2, + 1.
inline float add_lanes(const float (&lane)[16]) {
  float sum[8];
  for (int j = 0; j < 8; ++j) sum[j] = lane[j] + lane[j + 8];
  for (int j = 0; j < 4; ++j) sum[j] += sum[j + 4];
  for (int j = 0; j < 2; ++j) sum[j] += sum[j + 2];
  return sum[0] + sum[1];
}

}  // namespace volley::kernels
