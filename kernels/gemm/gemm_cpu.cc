#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm/gemm_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include <algorithm>

#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "kernels/gemm/gemm_tile-inl.h"
#include "volley/base/thread_pool.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
VOLLEY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

/// Rows per tile. A tile reads its panel once from memory and then, per block of rows, from the L2
/// cache; more rows than this give more tiles, so that prefill has work for every thread.
constexpr uint32_t kTileRows = 16 * kBlockRows;

template <bool kDot>
void gemm_tile(const GemmArgs& args, uint32_t first_row, uint32_t end_row, uint32_t panel) {
  BlockSums sums;
  for (RowBlocks block(first_row, end_row); !block.done(); block.next()) {
    const uint32_t row = block.row();
    const uint32_t row_count = block.count();
    const uint32_t vectors =
        accumulate_block<kDot>(args.input.data() + row, block, args.weight, panel, sums);
    for (uint32_t v = 0; v < vectors; ++v) {
      const uint32_t feature = panel * kPanel + v * 16;
      for (uint32_t r = 0; r < row_count; ++r) {
        F32x16 sum = load16(sums.sum[v * row_count + r]);
        void* output = args.output[row + r];
        if (args.add_to_output) {
          const float* old = static_cast<const float*>(output) + feature;
          const uint32_t count = std::min(args.weight.rows - feature, 16u);
          sum = add(count == 16 ? load16(old) : load_first(old, count), sum);
        }
        store_features(sum, feature, args.weight.rows, args.output_dtype, output);
      }
    }
  }
}

template <bool kDot>
void gemm_by(const GemmArgs& args, ThreadPool& pool) {
  check(args);
  const uint32_t rows = static_cast<uint32_t>(args.input.size());
  const uint32_t panels = (args.weight.rows + kPanel - 1) / kPanel;
  const uint32_t row_tiles = (rows + kTileRows - 1) / kTileRows;
  pool.parallel_for(panels * row_tiles, [&](uint32_t tile) {
    const uint32_t first_row = tile % row_tiles * kTileRows;
    gemm_tile<kDot>(args, first_row, std::min(rows, first_row + kTileRows), tile / row_tiles);
  });
}

void gemm(const GemmArgs& args, ThreadPool& pool) {
  gemm_by<false>(args, pool);
}

#if HWY_TARGET == HWY_AVX3
void gemm_dot(const GemmArgs& args, ThreadPool& pool) {
  gemm_by<true>(args, pool);
}
#endif

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
