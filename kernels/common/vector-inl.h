// Sixteen f32 lanes, the unit of every numerics contract, as one 512-bit or two 256-bit vectors.
// Included by
// `<op>_cpu.cc` once per target of Highway (hence no plain include guard). A kernel is written once
// against F32x16 and has the same lanes, and so the same bits, on every target.

#if defined(VOLLEY_KERNELS_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VOLLEY_KERNELS_VECTOR_INL_H_
#undef VOLLEY_KERNELS_VECTOR_INL_H_
#else
#define VOLLEY_KERNELS_VECTOR_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>
#include <cstring>
#include <limits>

#include "kernels/common/math.h"
#include "kernels/common/types.h"
#include "volley/base/bf16.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32Tag = hn::CappedTag<float, 16>;
using I32Tag = hn::RebindToSigned<F32Tag>;
using U32Tag = hn::RebindToUnsigned<F32Tag>;
using U16Tag = hn::Rebind<uint16_t, F32Tag>;
using F32Part = hn::Vec<F32Tag>;

inline constexpr size_t kPartLanes = hn::MaxLanes(F32Tag());
inline constexpr size_t kParts = 16 / kPartLanes;

struct F32x16 {
  F32Part part[kParts];
};

HWY_INLINE F32x16 broadcast(float value) {
  F32x16 result;
  for (size_t i = 0; i < kParts; ++i) result.part[i] = hn::Set(F32Tag(), value);
  return result;
}

HWY_INLINE F32x16 load16(const float* source) {
  F32x16 result;
  for (size_t i = 0; i < kParts; ++i) {
    result.part[i] = hn::LoadU(F32Tag(), source + i * kPartLanes);
  }
  return result;
}

HWY_INLINE F32x16 load16(const Bf16* source) {
  F32x16 result;
  for (size_t i = 0; i < kParts; ++i) {
    const auto bits = hn::LoadU(U16Tag(), &source[i * kPartLanes].bits);
    const auto wide = hn::ShiftLeft<16>(hn::PromoteTo(U32Tag(), bits));
    result.part[i] = hn::BitCast(F32Tag(), wide);
  }
  return result;
}

HWY_INLINE void store16(F32x16 value, float* target) {
  for (size_t i = 0; i < kParts; ++i) {
    hn::StoreU(value.part[i], F32Tag(), target + i * kPartLanes);
  }
}

/// Rounds as to_bf16 (volley/base/bf16.h) does.
HWY_INLINE void store16(F32x16 value, Bf16* target) {
  const U32Tag u32;
  for (size_t i = 0; i < kParts; ++i) {
    const auto bits = hn::BitCast(u32, value.part[i]);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u32, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(u32, 0x7fff)), odd));
    const auto quiet_nan = hn::Or(hn::ShiftRight<16>(bits), hn::Set(u32, 0x40));
    const auto is_nan = hn::RebindMask(u32, hn::IsNaN(value.part[i]));
    const auto result = hn::BitCast(I32Tag(), hn::IfThenElse(is_nan, quiet_nan, rounded));
    hn::StoreU(hn::DemoteTo(U16Tag(), result), U16Tag(), &target[i * kPartLanes].bits);
  }
}

/// The first `count` (below 16) lanes from memory, the others zero.
template <class T>
HWY_INLINE F32x16 load_first(const T* source, size_t count) {
  T buffer[16] = {};
  std::memcpy(buffer, source, count * sizeof(T));
  return load16(buffer);
}

template <class T>
HWY_INLINE void store_first(F32x16 value, size_t count, T* target) {
  T buffer[16];
  store16(value, buffer);
  std::memcpy(target, buffer, count * sizeof(T));
}

/// a * b + c, rounded once.
HWY_INLINE F32x16 mul_add(F32x16 a, F32x16 b, F32x16 c) {
  for (size_t i = 0; i < kParts; ++i) c.part[i] = hn::MulAdd(a.part[i], b.part[i], c.part[i]);
  return c;
}

HWY_INLINE F32x16 mul(F32x16 a, F32x16 b) {
  for (size_t i = 0; i < kParts; ++i) a.part[i] = hn::Mul(a.part[i], b.part[i]);
  return a;
}

HWY_INLINE F32x16 div(F32x16 a, F32x16 b) {
  for (size_t i = 0; i < kParts; ++i) a.part[i] = hn::Div(a.part[i], b.part[i]);
  return a;
}

HWY_INLINE F32x16 add(F32x16 a, F32x16 b) {
  for (size_t i = 0; i < kParts; ++i) a.part[i] = hn::Add(a.part[i], b.part[i]);
  return a;
}

HWY_INLINE F32x16 sub(F32x16 a, F32x16 b) {
  for (size_t i = 0; i < kParts; ++i) a.part[i] = hn::Sub(a.part[i], b.part[i]);
  return a;
}

HWY_INLINE F32x16 neg(F32x16 a) {
  for (size_t i = 0; i < kParts; ++i) a.part[i] = hn::Neg(a.part[i]);
  return a;
}

HWY_INLINE F32x16 max(F32x16 a, F32x16 b) {
  for (size_t i = 0; i < kParts; ++i) a.part[i] = hn::Max(a.part[i], b.part[i]);
  return a;
}

/// exp_f32 of math.h in every lane: the same operations in the same order.
HWY_INLINE F32x16 exp16(F32x16 x) {
  using namespace exp_constants;
  const F32Tag f32;
  const I32Tag i32;
  F32x16 result;
  for (size_t i = 0; i < kParts; ++i) {
    const F32Part v = x.part[i];
    const F32Part rounded = hn::MulAdd(v, hn::Set(f32, kLog2E), hn::Set(f32, kRound));
    const F32Part n = hn::Sub(rounded, hn::Set(f32, kRound));
    F32Part r = hn::MulAdd(n, hn::Set(f32, -kLn2High), v);
    r = hn::MulAdd(n, hn::Set(f32, -kLn2Low), r);
    F32Part p = hn::Set(f32, kC7);
    p = hn::MulAdd(p, r, hn::Set(f32, kC6));
    p = hn::MulAdd(p, r, hn::Set(f32, kC5));
    p = hn::MulAdd(p, r, hn::Set(f32, kC4));
    p = hn::MulAdd(p, r, hn::Set(f32, kC3));
    p = hn::MulAdd(p, r, hn::Set(f32, kC2));
    p = hn::MulAdd(p, r, hn::Set(f32, 1.0f));
    p = hn::MulAdd(p, r, hn::Set(f32, 1.0f));
    const auto bias = hn::Set(i32, 127);
    const auto exponent =
        hn::Sub(hn::BitCast(i32, rounded), hn::BitCast(i32, hn::Set(f32, kRound)));
    const auto half = hn::ShiftRight<1>(exponent);
    const auto scale_first = hn::ShiftLeft<23>(hn::Add(half, bias));
    const auto scale_second = hn::ShiftLeft<23>(hn::Add(hn::Sub(exponent, half), bias));
    p = hn::Mul(hn::Mul(p, hn::BitCast(f32, scale_first)), hn::BitCast(f32, scale_second));
    // Outside the range the lanes above hold rubbish.
    p = hn::IfThenZeroElse(hn::Lt(v, hn::Set(f32, kLowest)), p);
    p = hn::IfThenElse(hn::Gt(v, hn::Set(f32, kHighest)),
                       hn::Set(f32, std::numeric_limits<float>::infinity()), p);
    result.part[i] = hn::IfThenElse(hn::IsNaN(v), v, p);
  }
  return result;
}

/// exp_f32 in every lane, with its bits, for x that is at most 0 or NaN: then one scaling does, and
/// nothing overflows.
HWY_INLINE F32x16 exp16_nonpositive(F32x16 x) {
  using namespace exp_constants;
  const F32Tag f32;
  const I32Tag i32;
  F32x16 result;
  for (size_t i = 0; i < kParts; ++i) {
    const F32Part v = x.part[i];
    const F32Part rounded = hn::MulAdd(v, hn::Set(f32, kLog2E), hn::Set(f32, kRound));
    const F32Part n = hn::Sub(rounded, hn::Set(f32, kRound));
    F32Part r = hn::MulAdd(n, hn::Set(f32, -kLn2High), v);
    r = hn::MulAdd(n, hn::Set(f32, -kLn2Low), r);
    F32Part p = hn::Set(f32, kC7);
    p = hn::MulAdd(p, r, hn::Set(f32, kC6));
    p = hn::MulAdd(p, r, hn::Set(f32, kC5));
    p = hn::MulAdd(p, r, hn::Set(f32, kC4));
    p = hn::MulAdd(p, r, hn::Set(f32, kC3));
    p = hn::MulAdd(p, r, hn::Set(f32, kC2));
    p = hn::MulAdd(p, r, hn::Set(f32, 1.0f));
    p = hn::MulAdd(p, r, hn::Set(f32, 1.0f));
    // 2^n: the bits of `rounded` are those of kRound plus n, so shifted they are n + 127 in the
    // exponent field once the bits of kRound - 127 are taken away.
    const auto bias = hn::Set(i32, std::bit_cast<int32_t>(kRound) - 127);
    const auto scale = hn::ShiftLeft<23>(hn::Sub(hn::BitCast(i32, rounded), bias));
    p = hn::Mul(p, hn::BitCast(f32, scale));
    result.part[i] = hn::IfThenZeroElse(hn::Lt(v, hn::Set(f32, kLowest)), p);
  }
  return result;
}

/// silu_f32 of math.h in every lane.
HWY_INLINE F32x16 silu16(F32x16 x) {
  return div(x, add(broadcast(1.0f), exp16(neg(x))));
}

/// The lanes added in the order of add_lanes (math.h).
HWY_INLINE float add_across(F32x16 value) {
  float lane[16];
  store16(value, lane);
  return add_lanes(lane);
}

HWY_INLINE float max_across(F32x16 value) {
  float lane[16];
  store16(value, lane);
  float largest = lane[0];
  for (int i = 1; i < 16; ++i) largest = lane[i] > largest ? lane[i] : largest;
  return largest;
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET
#endif  // VOLLEY_KERNELS_VECTOR_INL_H_
