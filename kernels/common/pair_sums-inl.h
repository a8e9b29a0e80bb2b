// Sums over pairs of bf16 elements, see gemm.h and attention.h: by plain FMAs, or by VDPBF16PS,
// with equal bits. Included once per target of Highway.

#if defined(VOLLEY_KERNELS_PAIR_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VOLLEY_KERNELS_PAIR_SUMS_INL_H_
#undef VOLLEY_KERNELS_PAIR_SUMS_INL_H_
#else
#define VOLLEY_KERNELS_PAIR_SUMS_INL_H_
#endif

#include <immintrin.h>

#include <cstring>

#include "kernels/common/vector-inl.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

// Opens a region like HWY_BEFORE_NAMESPACE, where AVX-512 code may also use the bf16 instructions
// by their intrinsics. Compilers make them of nothing else, so the code of the plain `avx512` set,
// in the same region, stays free of them.
#undef VOLLEY_BEFORE_NAMESPACE
#if HWY_TARGET == HWY_AVX3
#define VOLLEY_BEFORE_NAMESPACE()                   \
  HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16") \
  static_assert(true, "takes the semicolon")
#else
#define VOLLEY_BEFORE_NAMESPACE() HWY_BEFORE_NAMESPACE()
#endif

VOLLEY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

/// While it lives, this thread's FMAs treat denormals as fma_flushed (math.h) does. Keep the
/// arithmetic meant by it in functions that are not inlined: the compiler does not know that MXCSR
/// matters to them.
class FlushDenormals {
 public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero); }
  ~FlushDenormals() { _mm_setcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  static constexpr uint32_t kFlushToZero = 0x8000;
  static constexpr uint32_t kDenormalsAreZero = 0x0040;
  uint32_t saved_;
};

/// 16 pairs of bf16, the even element in the low half of each 32-bit lane.
struct PairBits {
  hn::Vec<U32Tag> part[kParts];
};

HWY_INLINE PairBits load_pairs(const Bf16* source) {
  PairBits result;
  for (size_t i = 0; i < kParts; ++i) {
    result.part[i] =
        hn::LoadU(U32Tag(), reinterpret_cast<const uint32_t*>(source + i * 2 * kPartLanes));
  }
  return result;
}

HWY_INLINE F32x16 even_of(const PairBits& pairs) {
  F32x16 result;
  for (size_t i = 0; i < kParts; ++i) {
    result.part[i] = hn::BitCast(F32Tag(), hn::ShiftLeft<16>(pairs.part[i]));
  }
  return result;
}

HWY_INLINE F32x16 odd_of(const PairBits& pairs) {
  F32x16 result;
  for (size_t i = 0; i < kParts; ++i) {
    const auto high = hn::And(pairs.part[i], hn::Set(U32Tag(), 0xffff0000u));
    result.part[i] = hn::BitCast(F32Tag(), high);
  }
  return result;
}

#if HWY_TARGET == HWY_AVX3
HWY_INLINE __m512bh load_dot_pairs(const Bf16* source) {
  return (__m512bh)_mm512_loadu_si512(source);
}

HWY_INLINE __m512bh broadcast_dot_pair(const Bf16* pair) {
  int bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return (__m512bh)_mm512_set1_epi32(bits);
}

/// As store16, of numbers that are normal or zero: the instruction would flush others.
HWY_INLINE void store_normal16(F32x16 value, Bf16* target) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                      (__m256i)_mm512_cvtneps_pbh(value.part[0].raw));
}

/// Two steps of fma_flushed per lane: the odd elements, then the even ones.
HWY_INLINE F32x16 add_dot_pairs(F32x16 sum, __m512bh x, __m512bh y) {
  sum.part[0].raw = _mm512_dpbf16_ps(sum.part[0].raw, x, y);
  return sum;
}
#endif

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET
#endif  // VOLLEY_KERNELS_PAIR_SUMS_INL_H_
