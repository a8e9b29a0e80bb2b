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
HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

// A tile is all rows of a group times a few panels, so that the weights of a group come from memory
// once per call, whatever its row count.

/// Panels of gate and of up per tile: with both matrices a tile reads as much as one of gemm.
constexpr uint32_t kInnerPanels = kBlockPanels / 2;

// The inner activations, workspace [rows][ffn].
void inner_tile(const GroupedFfnArgs& args, const FfnGroup& group, uint32_t first_panel) {
  const PackedMatrix& gate = group.weights.gate;
  const uint32_t panels = (gate.rows + kPanel - 1) / kPanel;
  const uint32_t panel_count = std::min(kInnerPanels, panels - first_panel);
  const size_t row_bytes = gate.rows * dtype_bytes(args.dtype);
  const uint32_t end_row = group.first_row + group.row_count;
  BlockSums gate_sums;
  BlockSums up_sums;
  for (uint32_t row = group.first_row; row < end_row; row += kBlockRows) {
    const uint32_t row_count = std::min(kBlockRows, end_row - row);
    const void* const* input = args.input.data() + row;
    accumulate_block(input, args.dtype, row_count, gate, first_panel, panel_count, gate_sums);
    accumulate_block(input, args.dtype, row_count, group.weights.up, first_panel, panel_count,
                     up_sums);
    for (uint32_t p = 0; p < panel_count; ++p) {
      for (uint32_t r = 0; r < row_count; ++r) {
        const uint32_t i = p * row_count + r;
        store_features(mul(silu16(load16(gate_sums.sum[i])), load16(up_sums.sum[i])),
                       (first_panel + p) * kPanel, gate.rows, args.dtype,
                       static_cast<std::byte*>(args.workspace) + (row + r) * row_bytes);
      }
    }
  }
}

void output_tile(const GroupedFfnArgs& args, const FfnGroup& group, uint32_t first_panel) {
  const PackedMatrix& down = group.weights.down;
  const uint32_t panels = (down.rows + kPanel - 1) / kPanel;
  const uint32_t panel_count = std::min(kBlockPanels, panels - first_panel);
  const size_t row_bytes = down.cols * dtype_bytes(args.dtype);
  const uint32_t end_row = group.first_row + group.row_count;
  BlockSums sums;
  for (uint32_t row = group.first_row; row < end_row; row += kBlockRows) {
    const uint32_t row_count = std::min(kBlockRows, end_row - row);
    const void* inner[kBlockRows];
    for (uint32_t r = 0; r < row_count; ++r) {
      inner[r] = static_cast<const std::byte*>(args.workspace) + (row + r) * row_bytes;
    }
    accumulate_block(inner, args.dtype, row_count, down, first_panel, panel_count, sums);
    for (uint32_t p = 0; p < panel_count; ++p) {
      for (uint32_t r = 0; r < row_count; ++r) {
        store_features(load16(sums.sum[p * row_count + r]), (first_panel + p) * kPanel, down.rows,
                       args.dtype, args.output[row + r]);
      }
    }
  }
}

/// Tiles of the largest of the matrices that `rows_of` picks: groups with smaller ones leave some
/// empty.
template <class RowsOf>
uint32_t tiles_per_group(const GroupedFfnArgs& args, uint32_t tile_panels, RowsOf rows_of) {
  uint32_t rows = 0;
  for (const FfnGroup& group : args.groups) rows = std::max(rows, rows_of(group));
  return (rows + tile_panels * kPanel - 1) / (tile_panels * kPanel);
}

void grouped_ffn(const GroupedFfnArgs& args, ThreadPool& pool) {
  check(args);
  const uint32_t groups = static_cast<uint32_t>(args.groups.size());
  const uint32_t inner_tiles = tiles_per_group(
      args, kInnerPanels, [](const FfnGroup& group) { return group.weights.gate.rows; });
  pool.parallel_for(groups * inner_tiles, [&](uint32_t tile) {
    const FfnGroup& group = args.groups[tile / inner_tiles];
    const uint32_t first_panel = tile % inner_tiles * kInnerPanels;
    if (group.row_count == 0 || first_panel * kPanel >= group.weights.gate.rows) return;
    inner_tile(args, group, first_panel);
  });
  const uint32_t output_tiles = tiles_per_group(
      args, kBlockPanels, [](const FfnGroup& group) { return group.weights.down.rows; });
  pool.parallel_for(groups * output_tiles, [&](uint32_t tile) {
    const FfnGroup& group = args.groups[tile / output_tiles];
    const uint32_t first_panel = tile % output_tiles * kBlockPanels;
    if (group.row_count == 0 || first_panel * kPanel >= group.weights.down.rows) return;
    output_tile(args, group, first_panel);
  });
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
