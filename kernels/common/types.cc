#include "kernels/common/types.h"

#include <cstring>

#include "kernels/common/elements.h"
#include "volley/base/check.h"

namespace volley::kernels {
namespace {

float load_source(const void* source, SourceDType from, size_t index) {
  switch (from) {
    case SourceDType::kBf16:
      return to_f32(static_cast<const Bf16*>(source)[index]);
    case SourceDType::kF16:
      return f16_to_f32(static_cast<const uint16_t*>(source)[index]);
    case SourceDType::kF32:
      return static_cast<const float*>(source)[index];
  }
  VOLLEY_CHECK(false);
}

// The types are template parameters so that the loops over a checkpoint's weights have no branch
// inside.
template <SourceDType kFrom, DType kTo>
void pack_typed(const void* source, uint32_t rows, uint32_t cols, void* out) {
  // Padding: the rows missing from the last panel, the column missing from the last pair.
  if (cols != packed_cols(cols, kTo)) {
    std::memset(out, 0, packed_bytes(rows, cols, kTo));
  } else if (rows % kPanel != 0) {
    const size_t panel_bytes = packed_bytes(kPanel, cols, kTo);
    std::memset(static_cast<std::byte*>(out) + rows / kPanel * panel_bytes, 0, panel_bytes);
  }
  for (uint32_t row = 0; row < rows; ++row) {
    for (uint32_t col = 0; col < cols; ++col) {
      store_element(out, kTo, packed_index(row, col, cols, kTo),
                    load_source(source, kFrom, size_t{row} * cols + col));
    }
  }
}

template <SourceDType kFrom>
void pack_from(const void* source, uint32_t rows, uint32_t cols, DType dtype, void* out) {
  if (dtype == DType::kBf16) {
    pack_typed<kFrom, DType::kBf16>(source, rows, cols, out);
  } else {
    pack_typed<kFrom, DType::kF32>(source, rows, cols, out);
  }
}

}  // namespace

void pack_matrix(const void* source, SourceDType from, uint32_t rows, uint32_t cols, DType dtype,
                 void* out) {
  switch (from) {
    case SourceDType::kBf16:
      return pack_from<SourceDType::kBf16>(source, rows, cols, dtype, out);
    case SourceDType::kF16:
      return pack_from<SourceDType::kF16>(source, rows, cols, dtype, out);
    case SourceDType::kF32:
      return pack_from<SourceDType::kF32>(source, rows, cols, dtype, out);
  }
}

void convert_to_f32(const void* source, SourceDType from, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = load_source(source, from, i);
}

void convert_from_f32(const float* source, size_t count, DType dtype, void* out) {
  for (size_t i = 0; i < count; ++i) store_element(out, dtype, i, source[i]);
}

}  // namespace volley::kernels
