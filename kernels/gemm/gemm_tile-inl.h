// The inner product of gemm.h for a few rows and panels at a time, shared by gemm and grouped_ffn.
// Included once per target of Highway.
//
// A block of rows times panels is held in registers while k ascends; no sum is ever split, so
// blocking does not change bits. k is walked in chunks only so that the f32 copy of the input rows
// stays in the L1 cache; between chunks the accumulators wait in memory.

#if defined(VOLLEY_KERNELS_GEMM_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VOLLEY_KERNELS_GEMM_TILE_INL_H_
#undef VOLLEY_KERNELS_GEMM_TILE_INL_H_
#else
#define VOLLEY_KERNELS_GEMM_TILE_INL_H_
#endif

#include <algorithm>

#include "kernels/common/types.h"
#include "kernels/common/vector-inl.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

/// Rows that share one pass over the weights held in registers.
inline constexpr uint32_t kBlockRows = 6;
/// Panels that one call of accumulate_block takes at most.
inline constexpr uint32_t kBlockPanels = 8;
/// F32x16 accumulators that fit into registers beside the weights and the broadcast inputs: 24 of
/// 32 512-bit registers, or 6 pairs of the 16 256-bit ones.
inline constexpr uint32_t kAccumulators = HWY_TARGET == HWY_AVX3 ? 24 : 6;
/// Inputs per chunk: 6 rows of 512 f32 are 12 KiB.
inline constexpr uint32_t kChunk = 512;

/// The sums of a block: [panel][row][16].
struct BlockSums {
  alignas(64) float sum[kBlockPanels * kBlockRows][16];
};

/// acc[p][r] += x[r][k] * panel[p][k] for k in [0, count), ascending. `panel_stride` is in
/// elements.
template <uint32_t kRows, uint32_t kPanels, class Weight>
HWY_INLINE void multiply(const float* const* x, const Weight* panel, size_t panel_stride,
                         uint32_t count, float (*sum)[16]) {
  F32x16 acc[kPanels][kRows];
#pragma GCC unroll 8
  for (uint32_t p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) acc[p][r] = load16(sum[p * kRows + r]);
  }
  for (uint32_t k = 0; k < count; ++k) {
#pragma GCC unroll 8
    for (uint32_t p = 0; p < kPanels; ++p) {
      const F32x16 weight = load16(panel + p * panel_stride + size_t{k} * kPanel);
      // Inputs are re-read from the L1 cache: held in registers as well, they make AVX2 spill,
      // which halves its speed (44 instead of 95 GFLOP/s at 64 rows of 2048 x 1024, bf16, EPYC, one
      // thread).
#pragma GCC unroll 8
      for (uint32_t r = 0; r < kRows; ++r) {
        acc[p][r] = mul_add(broadcast(x[r][k]), weight, acc[p][r]);
      }
    }
  }
#pragma GCC unroll 8
  for (uint32_t p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) store16(acc[p][r], sum[p * kRows + r]);
  }
}

/// As `multiply`, for any number of panels up to kBlockPanels, in the widest steps the registers
/// allow.
template <uint32_t kRows, class Weight>
void multiply_panels(const float* const* x, const Weight* panel, size_t panel_stride,
                     uint32_t panel_count, uint32_t count, float (*sum)[16]) {
  uint32_t p = 0;
  if constexpr (kRows * 8 <= kAccumulators) {
    for (; p + 8 <= panel_count; p += 8) {
      multiply<kRows, 8>(x, panel + p * panel_stride, panel_stride, count, sum + p * kRows);
    }
  }
  if constexpr (kRows * 4 <= kAccumulators) {
    for (; p + 4 <= panel_count; p += 4) {
      multiply<kRows, 4>(x, panel + p * panel_stride, panel_stride, count, sum + p * kRows);
    }
  }
  if constexpr (kRows * 2 <= kAccumulators) {
    for (; p + 2 <= panel_count; p += 2) {
      multiply<kRows, 2>(x, panel + p * panel_stride, panel_stride, count, sum + p * kRows);
    }
  }
  for (; p < panel_count; ++p) {
    multiply<kRows, 1>(x, panel + p * panel_stride, panel_stride, count, sum + p * kRows);
  }
}

template <class Weight>
void multiply_rows(uint32_t row_count, const float* const* x, const Weight* panel,
                   size_t panel_stride, uint32_t panel_count, uint32_t count, float (*sum)[16]) {
  static_assert(kBlockRows == 6);
  switch (row_count) {
    case 1:
      return multiply_panels<1>(x, panel, panel_stride, panel_count, count, sum);
    case 2:
      return multiply_panels<2>(x, panel, panel_stride, panel_count, count, sum);
    case 3:
      return multiply_panels<3>(x, panel, panel_stride, panel_count, count, sum);
    case 4:
      return multiply_panels<4>(x, panel, panel_stride, panel_count, count, sum);
    case 5:
      return multiply_panels<5>(x, panel, panel_stride, panel_count, count, sum);
    default:
      return multiply_panels<6>(x, panel, panel_stride, panel_count, count, sum);
  }
}

/// The products of `row_count` (at most kBlockRows) input rows with panels [first_panel,
/// first_panel + panel_count) of `weight`, into sums.sum[panel * row_count + row].
inline void accumulate_block(const void* const* input, DType input_dtype, uint32_t row_count,
                             const PackedMatrix& weight, uint32_t first_panel, uint32_t panel_count,
                             BlockSums& sums) {
  for (uint32_t i = 0; i < panel_count * row_count; ++i) store16(broadcast(0.0f), sums.sum[i]);
  const size_t panel_stride = size_t{weight.cols} * kPanel;
  alignas(64) float converted[kBlockRows][kChunk];
  for (uint32_t begin = 0; begin < weight.cols; begin += kChunk) {
    const uint32_t count = std::min(kChunk, weight.cols - begin);
    const float* x[kBlockRows];
    for (uint32_t r = 0; r < row_count; ++r) {
      if (input_dtype == DType::kF32) {
        x[r] = static_cast<const float*>(input[r]) + begin;
        continue;
      }
      const Bf16* source = static_cast<const Bf16*>(input[r]) + begin;
      const uint32_t whole = count / 16 * 16;
      for (uint32_t k = 0; k < whole; k += 16) store16(load16(source + k), &converted[r][k]);
      if (whole != count) {
        store16(load_first(source + whole, count - whole), &converted[r][whole]);
      }
      x[r] = converted[r];
    }
    const size_t first = first_panel * panel_stride + size_t{begin} * kPanel;
    if (weight.dtype == DType::kF32) {
      multiply_rows(row_count, x, static_cast<const float*>(weight.data) + first, panel_stride,
                    panel_count, count, sums.sum);
    } else {
      multiply_rows(row_count, x, static_cast<const Bf16*>(weight.data) + first, panel_stride,
                    panel_count, count, sums.sum);
    }
  }
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
