#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/grouped_ffn/grouped_ffn_cpu.cc"

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

// A tile is all rows of a group times one panel, so that the weights of a group come from memory
// once per call, whatever its row count.

// The inner activations, workspace [rows][ffn]: one panel of gate and of up.
template <bool kDot>
void inner_tile(const GroupedFfnArgs& args, const FfnGroup& group, uint32_t panel) {
  const PackedMatrix& gate = group.weights.gate;
  const size_t row_bytes = gate.rows * dtype_bytes(args.dtype);
  const uint32_t end_row = group.first_row + group.row_count;
  BlockSums gate_sums;
  BlockSums up_sums;
  for (RowBlocks block(group.first_row, end_row); !block.done(); block.next()) {
    const uint32_t row = block.row();
    const uint32_t row_count = block.count();
    const void* const* input = args.input.data() + row;
    const uint32_t vectors = accumulate_block<kDot>(input, block, gate, panel, gate_sums);
    accumulate_block<kDot>(input, block, group.weights.up, panel, up_sums);
    for (uint32_t v = 0; v < vectors; ++v) {
      for (uint32_t r = 0; r < row_count; ++r) {
        const uint32_t i = v * row_count + r;
        store_features(mul(silu16(load16(gate_sums.sum[i])), load16(up_sums.sum[i])),
                       panel * kPanel + v * 16, gate.rows, args.dtype,
                       static_cast<std::byte*>(args.workspace) + (row + r) * row_bytes);
      }
    }
  }
}

template <bool kDot>
void output_tile(const GroupedFfnArgs& args, const FfnGroup& group, uint32_t panel) {
  const PackedMatrix& down = group.weights.down;
  const size_t row_bytes = down.cols * dtype_bytes(args.dtype);
  const uint32_t end_row = group.first_row + group.row_count;
  BlockSums sums;
  for (RowBlocks block(group.first_row, end_row); !block.done(); block.next()) {
    const uint32_t row = block.row();
    const uint32_t row_count = block.count();
    const void* inner[kBlockRows];
    for (uint32_t r = 0; r < row_count; ++r) {
      inner[r] = static_cast<const std::byte*>(args.workspace) + (row + r) * row_bytes;
    }
    const uint32_t vectors = accumulate_block<kDot>(inner, block, down, panel, sums);
    for (uint32_t v = 0; v < vectors; ++v) {
      for (uint32_t r = 0; r < row_count; ++r) {
        store_features(load16(sums.sum[v * row_count + r]), panel * kPanel + v * 16, down.rows,
                       args.dtype, args.output[row + r]);
      }
    }
  }
}

/// Panels of the largest of the matrices that `rows_of` picks: groups with smaller ones leave some
/// tiles empty.
template <class RowsOf>
uint32_t panels_per_group(const GroupedFfnArgs& args, RowsOf rows_of) {
  uint32_t rows = 0;
  for (const FfnGroup& group : args.groups) rows = std::max(rows, rows_of(group));
  return (rows + kPanel - 1) / kPanel;
}

template <bool kDot>
void grouped_ffn_by(const GroupedFfnArgs& args, ThreadPool& pool) {
  check(args);
  const uint32_t groups = static_cast<uint32_t>(args.groups.size());
  const uint32_t inner_panels =
      panels_per_group(args, [](const FfnGroup& group) { return group.weights.gate.rows; });
  pool.parallel_for(groups * inner_panels, [&](uint32_t tile) {
    const FfnGroup& group = args.groups[tile / inner_panels];
    const uint32_t panel = tile % inner_panels;
    if (group.row_count == 0 || panel * kPanel >= group.weights.gate.rows) return;
    inner_tile<kDot>(args, group, panel);
  });
  const uint32_t output_panels =
      panels_per_group(args, [](const FfnGroup& group) { return group.weights.down.rows; });
  pool.parallel_for(groups * output_panels, [&](uint32_t tile) {
    const FfnGroup& group = args.groups[tile / output_panels];
    const uint32_t panel = tile % output_panels;
    if (group.row_count == 0 || panel * kPanel >= group.weights.down.rows) return;
    output_tile<kDot>(args, group, panel);
  });
}

void grouped_ffn(const GroupedFfnArgs& args, ThreadPool& pool) {
  grouped_ffn_by<false>(args, pool);
}

#if HWY_TARGET == HWY_AVX3
void grouped_ffn_dot(const GroupedFfnArgs& args, ThreadPool& pool) {
  grouped_ffn_by<true>(args, pool);
}
#endif

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
