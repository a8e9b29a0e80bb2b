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

/// Weights that will be wanted after these, fetched into the L2 cache while these are multiplied.
struct Ahead {
  const void* data = nullptr;
  uint32_t lines_per_step = 0;  ///< 0, 1 or 2.
};

/// sum[v][r] += the products of steps [0, steps). `weight` is the first vector of the panel that is
/// wanted; kAhead is ahead.lines_per_step.
template <class Products, uint32_t kRows, uint32_t kVectors, uint32_t kAhead = 0>
HWY_INLINE void multiply(const typename Products::Input* const* x,
                         const typename Products::Weight* weight, uint32_t steps, float (*sum)[16],
                         [[maybe_unused]] const void* ahead = nullptr) {
  F32x16 acc[kVectors][kRows];
#pragma GCC unroll 8
  for (uint32_t v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (uint32_t r = 0; r < kRows; ++r) acc[v][r] = load16(sum[v * kRows + r]);
  }
  for (uint32_t i = 0; i < steps; ++i) {
    if constexpr (kAhead > 0) {
#pragma GCC unroll 4
      for (uint32_t line = 0; line < kAhead; ++line) {
        // The L2 cache: prefetches into the L1 cache wait for its few miss buffers.
        __builtin_prefetch(static_cast<const std::byte*>(ahead) + (size_t{i} * kAhead + line) * 64,
                           0, 2);
      }
    }
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
                                   uint32_t steps, float (*sum)[16], const Ahead& ahead) {
  constexpr uint32_t kVectorElements = Products::kWeightsPerStep / kPanelVectors;
  static_assert(kPanelVectors == 4);
  uint32_t v = 0;
  if constexpr (kRows * 4 <= kAccumulators) {
    if (vectors == 4) {
      switch (ahead.lines_per_step) {
        case 0:
          return multiply<Products, kRows, 4>(x, weight, steps, sum);
        case 1:
          return multiply<Products, kRows, 4, 1>(x, weight, steps, sum, ahead.data);
        default:
          return multiply<Products, kRows, 4, 2>(x, weight, steps, sum, ahead.data);
      }
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
                   float (*sum)[16], const Ahead& ahead = {}) {
  static_assert(kBlockRows == 6);
  switch (row_count) {
    case 1:
      return multiply_vectors<Products, 1>(x, weight, vectors, steps, sum, ahead);
    case 2:
      return multiply_vectors<Products, 2>(x, weight, vectors, steps, sum, ahead);
    case 3:
      return multiply_vectors<Products, 3>(x, weight, vectors, steps, sum, ahead);
    case 4:
      return multiply_vectors<Products, 4>(x, weight, vectors, steps, sum, ahead);
    case 5:
      return multiply_vectors<Products, 5>(x, weight, vectors, steps, sum, ahead);
    default:
      return multiply_vectors<Products, 6>(x, weight, vectors, steps, sum, ahead);
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
                           uint32_t cols, uint32_t vectors, const Ahead& ahead, BlockSums& sums) {
  const Bf16* x[kBlockRows] = {};
  for (uint32_t r = 0; r < row_count; ++r) x[r] = static_cast<const Bf16*>(input[r]);
  multiply_rows<DotProducts>(row_count, x, weight, vectors, cols / 2, sums.sum, ahead);
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

/// The rows of a tile, block by block. Blocks are of nearly equal size: a last block of one or two
/// rows would not fill the pipeline.
class RowBlocks {
 public:
  RowBlocks(uint32_t first_row, uint32_t end_row)
      : row_(first_row),
        end_(end_row),
        blocks_((end_row - first_row + kBlockRows - 1) / kBlockRows),
        index_(0) {}
  bool done() const { return row_ == end_; }
  uint32_t row() const { return row_; }
  uint32_t count() const {
    const uint32_t left = blocks_ - index_;
    return (end_ - row_ + left - 1) / left;
  }
  void next() {
    row_ += count();
    ++index_;
  }

  /// What this block should fetch ahead of panel `panel` of `weight`. The first block streams its
  /// panel from memory, the others find it in the L2 cache: they leave the memory idle, and the
  /// first block of the next panel waiting, unless they bring that panel meanwhile, a part each.
  Ahead ahead(const PackedMatrix& weight, uint32_t panel) const {
    const size_t panel_bytes = packed_bytes(kPanel, weight.cols, weight.dtype);
    // With two blocks the second one would have to fetch as fast as it multiplies: that gave 167
    // GFLOP/s at 8 rows of 2048 x 1024 where leaving it gives 262 (two threads, EPYC). With three,
    // at 16 rows, fetching gives 384 instead of 354.
    if (index_ == 0 || blocks_ == 2 || size_t{panel + 1} * kPanel >= weight.rows) return {};
    const uint32_t lines = blocks_ <= 4 ? 2 : 1;
    const uint32_t parts = kPanelVectors / lines;
    if (index_ > parts) return {};
    const size_t begin = size_t{panel + 1} * panel_bytes + (index_ - 1) * (panel_bytes / parts);
    return {.data = static_cast<const std::byte*>(weight.data) + begin, .lines_per_step = lines};
  }

 private:
  uint32_t row_;
  uint32_t end_;
  uint32_t blocks_;
  uint32_t index_;
};

/// The products of the rows of `block` with panel `panel` of `weight`, into
/// sums.sum[vector * block.count() + row]. Returns how many vectors of the panel hold features.
/// kDot chooses the dot instruction, where the target has it.
template <bool kDot>
uint32_t accumulate_block(const void* const* input, const RowBlocks& block,
                          const PackedMatrix& weight, uint32_t panel, BlockSums& sums) {
  const uint32_t row_count = block.count();
  const uint32_t features = std::min(kPanel, weight.rows - panel * kPanel);
  const uint32_t vectors = (features + 15) / 16;
  for (uint32_t i = 0; i < vectors * row_count; ++i) store16(broadcast(0.0f), sums.sum[i]);
  const size_t first = size_t{panel} * kPanel * packed_cols(weight.cols, weight.dtype);
  if (weight.dtype == DType::kF32) {
    const float* x[kBlockRows] = {};
    for (uint32_t r = 0; r < row_count; ++r) x[r] = static_cast<const float*>(input[r]);
    multiply_rows<F32Products>(row_count, x, static_cast<const float*>(weight.data) + first,
                               vectors, weight.cols, sums.sum);
    return vectors;
  }
  const Bf16* data = static_cast<const Bf16*>(weight.data) + first;
#if HWY_TARGET == HWY_AVX3
  if constexpr (kDot) {
    accumulate_dot(input, row_count, data, weight.cols, vectors, block.ahead(weight, panel), sums);
    return vectors;
  }
#endif
  accumulate_widened(input, row_count, data, weight.cols, vectors, sums);
  return vectors;
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
