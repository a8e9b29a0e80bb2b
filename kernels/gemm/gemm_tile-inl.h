// The inner product of gemm.h for a few rows and one panel, shared by gemm and grouped_ffn.
// Included once per target of Highway.
//
// A block of rows times some vectors of the panel is held in registers while k ascends; no sum is
// ever split, so blocking does not change bits. Which instruction adds a pair of bf16 products is
// the only difference between the instruction sets.

#if defined(VOLLEY_KERNELS_GEMM_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VOLLEY_KERNELS_GEMM_TILE_INL_H_
#undef VOLLEY_KERNELS_GEMM_TILE_INL_H_
#else
#define VOLLEY_KERNELS_GEMM_TILE_INL_H_
#endif

#include <algorithm>

#include "kernels/common/pair_sums-inl.h"
#include "kernels/common/types.h"
#include "kernels/common/vector-inl.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

VOLLEY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

/// Rows that share one pass over the weights held in registers.
inline constexpr uint32_t kBlockRows = 6;
/// Vectors of features in a panel.
inline constexpr uint32_t kPanelVectors = kPanel / 16;
/// F32x16 accumulators that fit into registers beside the weights and the broadcast inputs: 24 of
/// 32 512-bit registers, or 6 pairs of the 16 256-bit ones.
inline constexpr uint32_t kAccumulators = HWY_TARGET == HWY_AVX3 ? 24 : 6;
/// Inputs per chunk where bf16 inputs are widened first: 6 rows of 512 f32 are 12 KiB of the L1
/// cache.
inline constexpr uint32_t kChunk = 512;

/// The sums of a block: [vector of the panel][row][16].
struct BlockSums {
  alignas(64) float sum[kPanelVectors * kBlockRows][16];
};

/// f32 weights: `x` and the panel advance by one k a step.
struct F32Products {
  using Input = float;
  using Weight = float;
  static constexpr uint32_t kWeightsPerStep = kPanel;

  template <uint32_t kRows, uint32_t kVectors>
  static HWY_INLINE void step(const float* const* x, uint32_t i, const float* weight,
                              F32x16 (&acc)[kVectors][kRows]) {
#pragma GCC unroll 8
    for (uint32_t v = 0; v < kVectors; ++v) {
      const F32x16 w = load16(weight + v * 16);
      // Inputs are re-read from the L1 cache: held in registers as well, they make AVX2 spill,
      // which halves its speed (44 instead of 95 GFLOP/s at 64 rows of 2048 x 1024, EPYC, one
      // thread).
#pragma GCC unroll 8
      for (uint32_t r = 0; r < kRows; ++r) acc[v][r] = mul_add(broadcast(x[r][i]), w, acc[v][r]);
    }
  }
};

/// bf16 weights by plain FMAs: `x` is f32 and advances by two k a step. Needs FlushDenormals.
struct WidenedProducts {
  using Input = float;
  using Weight = Bf16;
  static constexpr uint32_t kWeightsPerStep = 2 * kPanel;

  template <uint32_t kRows, uint32_t kVectors>
  static HWY_INLINE void step(const float* const* x, uint32_t i, const Bf16* weight,
                              F32x16 (&acc)[kVectors][kRows]) {
#pragma GCC unroll 8
    for (uint32_t v = 0; v < kVectors; ++v) {
      const PairBits w = load_pairs(weight + v * 32);
      const F32x16 odd = odd_of(w);
#pragma GCC unroll 8
      for (uint32_t r = 0; r < kRows; ++r) {
        acc[v][r] = mul_add(broadcast(x[r][2 * i + 1]), odd, acc[v][r]);
      }
      const F32x16 even = even_of(w);
#pragma GCC unroll 8
      for (uint32_t r = 0; r < kRows; ++r) {
        acc[v][r] = mul_add(broadcast(x[r][2 * i]), even, acc[v][r]);
      }
    }
  }
};

#if HWY_TARGET == HWY_AVX3
/// bf16 weights by the dot instruction: `x` is the bf16 row itself.
struct DotProducts {
  using Input = Bf16;
  using Weight = Bf16;
  static constexpr uint32_t kWeightsPerStep = 2 * kPanel;

  template <uint32_t kRows, uint32_t kVectors>
  static HWY_INLINE void step(const Bf16* const* x, uint32_t i, const Bf16* weight,
                              F32x16 (&acc)[kVectors][kRows]) {
    __m512bh w[kVectors];
#pragma GCC unroll 8
    for (uint32_t v = 0; v < kVectors; ++v) w[v] = load_dot_pairs(weight + v * 32);
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) {
      const __m512bh pair = broadcast_dot_pair(x[r] + 2 * size_t{i});
#pragma GCC unroll 8
      for (uint32_t v = 0; v < kVectors; ++v) acc[v][r] = add_dot_pairs(acc[v][r], pair, w[v]);
    }
  }
};
#endif

/// sum[v][r] += the products of steps [0, steps). `weight` is the first vector of the panel that is
/// wanted.
template <class Products, uint32_t kRows, uint32_t kVectors>
HWY_INLINE void multiply(const typename Products::Input* const* x,
                         const typename Products::Weight* weight, uint32_t steps,
                         float (*sum)[16]) {
  F32x16 acc[kVectors][kRows];
#pragma GCC unroll 8
  for (uint32_t v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) acc[v][r] = load16(sum[v * kRows + r]);
  }
  for (uint32_t i = 0; i < steps; ++i) {
    Products::template step<kRows, kVectors>(x, i, weight, acc);
    weight += Products::kWeightsPerStep;
  }
#pragma GCC unroll 8
  for (uint32_t v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) store16(acc[v][r], sum[v * kRows + r]);
  }
}

/// As `multiply`, for `vectors` vectors of the panel, in the widest steps the registers allow.
template <class Products, uint32_t kRows>
HWY_NOINLINE void multiply_vectors(const typename Products::Input* const* x,
                                   const typename Products::Weight* weight, uint32_t vectors,
                                   uint32_t steps, float (*sum)[16]) {
  constexpr uint32_t kVectorElements = Products::kWeightsPerStep / kPanelVectors;
  uint32_t v = 0;
  if constexpr (kRows * 4 <= kAccumulators) {
    for (; v + 4 <= vectors; v += 4) {
      multiply<Products, kRows, 4>(x, weight + v * kVectorElements, steps, sum + v * kRows);
    }
  }
  if constexpr (kRows * 2 <= kAccumulators) {
    for (; v + 2 <= vectors; v += 2) {
      multiply<Products, kRows, 2>(x, weight + v * kVectorElements, steps, sum + v * kRows);
    }
  }
  for (; v < vectors; ++v) {
    multiply<Products, kRows, 1>(x, weight + v * kVectorElements, steps, sum + v * kRows);
  }
}

template <class Products>
void multiply_rows(uint32_t row_count, const typename Products::Input* const* x,
                   const typename Products::Weight* weight, uint32_t vectors, uint32_t steps,
                   float (*sum)[16]) {
  static_assert(kBlockRows == 6);
  switch (row_count) {
    case 1:
      return multiply_vectors<Products, 1>(x, weight, vectors, steps, sum);
    case 2:
      return multiply_vectors<Products, 2>(x, weight, vectors, steps, sum);
    case 3:
      return multiply_vectors<Products, 3>(x, weight, vectors, steps, sum);
    case 4:
      return multiply_vectors<Products, 4>(x, weight, vectors, steps, sum);
    case 5:
      return multiply_vectors<Products, 5>(x, weight, vectors, steps, sum);
    default:
      return multiply_vectors<Products, 6>(x, weight, vectors, steps, sum);
  }
}

/// bf16 without the dot instruction: inputs are widened to f32, chunk by chunk of k; between chunks
/// the accumulators wait in memory.
inline void accumulate_widened(const void* const* input, uint32_t row_count, const Bf16* weight,
                               uint32_t cols, uint32_t vectors, BlockSums& sums) {
  const FlushDenormals flush;
  alignas(64) float widened[kBlockRows][kChunk];
  const float* x[kBlockRows];
  for (uint32_t r = 0; r < kBlockRows; ++r) x[r] = widened[r];
  for (uint32_t begin = 0; begin < cols; begin += kChunk) {
    const uint32_t count = std::min(kChunk, cols - begin);
    const uint32_t whole = count / 16 * 16;
    for (uint32_t r = 0; r < row_count; ++r) {
      const Bf16* source = static_cast<const Bf16*>(input[r]) + begin;
      for (uint32_t k = 0; k < whole; k += 16) store16(load16(source + k), &widened[r][k]);
      if (whole != count) store16(load_first(source + whole, count - whole), &widened[r][whole]);
    }
    multiply_rows<WidenedProducts>(row_count, x, weight + size_t{begin} * kPanel, vectors,
                                   (count + 1) / 2, sums.sum);
  }
}

#if HWY_TARGET == HWY_AVX3
inline void accumulate_dot(const void* const* input, uint32_t row_count, const Bf16* weight,
                           uint32_t cols, uint32_t vectors, BlockSums& sums) {
  const Bf16* x[kBlockRows];
  for (uint32_t r = 0; r < row_count; ++r) x[r] = static_cast<const Bf16*>(input[r]);
  multiply_rows<DotProducts>(row_count, x, weight, vectors, cols / 2, sums.sum);
  if (cols % 2 == 0) return;
  Bf16 last[kBlockRows][2] = {};
  for (uint32_t r = 0; r < row_count; ++r) {
    last[r][0] = x[r][cols - 1];
    x[r] = last[r];
  }
  multiply_rows<DotProducts>(row_count, x, weight + size_t{cols / 2} * 2 * kPanel, vectors, 1,
                             sums.sum);
}
#endif

/// The products of `row_count` (at most kBlockRows) input rows with panel `panel` of `weight`, into
/// sums.sum[vector * row_count + row]. Returns how many vectors of the panel hold features. kDot
/// chooses the dot instruction, where the target has it.
template <bool kDot>
uint32_t accumulate_block(const void* const* input, uint32_t row_count, const PackedMatrix& weight,
                          uint32_t panel, BlockSums& sums) {
  const uint32_t features = std::min(kPanel, weight.rows - panel * kPanel);
  const uint32_t vectors = (features + 15) / 16;
  for (uint32_t i = 0; i < vectors * row_count; ++i) store16(broadcast(0.0f), sums.sum[i]);
  const size_t first = size_t{panel} * kPanel * packed_cols(weight.cols, weight.dtype);
  if (weight.dtype == DType::kF32) {
    const float* x[kBlockRows];
    for (uint32_t r = 0; r < row_count; ++r) x[r] = static_cast<const float*>(input[r]);
    multiply_rows<F32Products>(row_count, x, static_cast<const float*>(weight.data) + first,
                               vectors, weight.cols, sums.sum);
    return vectors;
  }
  const Bf16* data = static_cast<const Bf16*>(weight.data) + first;
#if HWY_TARGET == HWY_AVX3
  if constexpr (kDot) {
    accumulate_dot(input, row_count, data, weight.cols, vectors, sums);
    return vectors;
  }
#endif
  accumulate_widened(input, row_count, data, weight.cols, vectors, sums);
  return vectors;
}

/// Blocks of nearly equal size: a last block of one or two rows would not fill the pipeline.
HWY_INLINE uint32_t block_rows(uint32_t rows_left) {
  const uint32_t blocks = (rows_left + kBlockRows - 1) / kBlockRows;
  return (rows_left + blocks - 1) / blocks;
}

/// Writes 16 features of one output row from feature `first` on, or as many as the row of `width`
/// has.
HWY_INLINE void store_features(F32x16 value, uint32_t first, uint32_t width, DType dtype,
                               void* row) {
  const uint32_t count = std::min(width - first, 16u);
  if (dtype == DType::kF32) {
    float* target = static_cast<float*>(row) + first;
    if (count == 16) {
      store16(value, target);
    } else {
      store_first(value, count, target);
    }
  } else {
    Bf16* target = static_cast<Bf16*>(row) + first;
    if (count == 16) {
      store16(value, target);
    } else {
      store_first(value, count, target);
    }
  }
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET
#endif  // VOLLEY_KERNELS_GEMM_TILE_INL_H_
