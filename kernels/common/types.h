#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace volley::kernels {

/// Storage type of activations, weights, KV blocks and wire rows. Arithmetic is f32 everywhere.
enum class DType : uint8_t { kBf16 = 1, kF32 = 2 };

constexpr size_t dtype_bytes(DType dtype) {
  return dtype == DType::kBf16 ? 2 : 4;
}
constexpr const char* dtype_name(DType dtype) {
  return dtype == DType::kBf16 ? "bf16" : "f32";
}

/// One pointer per row: rows may lie in different slots or blocks, so no kernel needs a gathering
/// copy. Every row is contiguous and aligned to its element.
using ConstRows = std::span<const void* const>;
using Rows = std::span<void* const>;

/// Output features per weight panel: four 512-bit vectors of f32 accumulators. A panel is one
/// sequential stream, which the hardware prefetchers follow at the full bandwidth of the memory.
inline constexpr uint32_t kPanel = 64;

/// A weight matrix [rows, cols] (output features by input features), 64-byte aligned, in panels of
/// kPanel features:
///   f32   [ceil(rows / 64)][cols][64]
///   bf16  [ceil(rows / 64)][ceil(cols / 2)][64][2], pairs of columns, as a bf16 dot instruction
///         takes them
/// Missing rows and columns are zero. Borrowed: the memory must outlive every kernel that reads it.
struct PackedMatrix {
  const void* data = nullptr;
  uint32_t rows = 0;
  uint32_t cols = 0;
  DType dtype = DType::kBf16;
};

/// Columns that packed weights have room for.
constexpr size_t packed_cols(uint32_t cols, DType dtype) {
  return dtype == DType::kBf16 ? (size_t{cols} + 1) / 2 * 2 : cols;
}

constexpr size_t packed_bytes(uint32_t rows, uint32_t cols, DType dtype) {
  return (size_t{rows} + kPanel - 1) / kPanel * kPanel * packed_cols(cols, dtype) *
         dtype_bytes(dtype);
}

/// Element types of checkpoint tensors.
enum class SourceDType : uint8_t { kBf16, kF16, kF32 };

/// Writes the row-major `source` [rows, cols] of `from` into panels at `out`
/// (`packed_bytes(rows, cols, dtype)` bytes, 64-byte aligned). f32 storage is exact; bf16 storage
/// rounds to nearest even.
void pack_matrix(const void* source, SourceDType from, uint32_t rows, uint32_t cols, DType dtype,
                 void* out);

/// Converts `count` elements of `from` to f32 (exact).
void convert_to_f32(const void* source, SourceDType from, size_t count, float* out);

/// Converts `count` f32 elements to `dtype`, to nearest even.
void convert_from_f32(const float* source, size_t count, DType dtype, void* out);

}  // namespace volley::kernels
