#include "blockwise_source.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace volley::model {
namespace {

constexpr size_t kBlockElements =
    256u << 10;  // 0.5 MiB of bf16: fits the caches and amortises the calls.

/// Rows per block: whole panels, at least one.
uint32_t block_rows(uint32_t cols) {
  const size_t panels = std::max<size_t>(1, kBlockElements / kernels::kPanel / cols);
  return static_cast<uint32_t>(panels) * kernels::kPanel;
}

bool same_type(kernels::SourceDType from, kernels::DType to) {
  return (from == kernels::SourceDType::kBf16 && to == kernels::DType::kBf16) ||
         (from == kernels::SourceDType::kF32 && to == kernels::DType::kF32);
}

}  // namespace

Status BlockwiseSource::read_packed(const std::string& name, uint32_t rows, uint32_t cols,
                                    kernels::DType dtype, void* out) {
  VOLLEY_ASSIGN_OR_RETURN(const kernels::SourceDType from,
                          open_tensor(name, std::array<uint64_t, 2>{rows, cols}));
  auto* target = static_cast<std::byte*>(out);
  const uint32_t step = block_rows(cols);
  for (uint32_t row = 0; row < rows; row += step) {
    const uint32_t count = std::min(step, rows - row);
    const void* source = elements(size_t{row} * cols, size_t{count} * cols);
    kernels::pack_matrix(source, from, count, cols, dtype, target);
    target += kernels::packed_bytes(count, cols, dtype);
  }
  close_tensor();
  return ok_status();
}

Status BlockwiseSource::read_plain(const std::string& name, uint32_t rows, uint32_t cols,
                                   kernels::DType dtype, void* out) {
  VOLLEY_ASSIGN_OR_RETURN(const kernels::SourceDType from,
                          open_tensor(name, std::array<uint64_t, 2>{rows, cols}));
  auto* target = static_cast<std::byte*>(out);
  const size_t total = size_t{rows} * cols;
  for (size_t first = 0; first < total; first += kBlockElements) {
    const size_t count = std::min(kBlockElements, total - first);
    const void* source = elements(first, count);
    if (same_type(from, dtype)) {
      std::memcpy(target, source, count * kernels::dtype_bytes(dtype));
    } else {
      scratch_.resize(kBlockElements);
      kernels::convert_to_f32(source, from, count, scratch_.data());
      kernels::convert_from_f32(scratch_.data(), count, dtype, target);
    }
    target += count * kernels::dtype_bytes(dtype);
  }
  close_tensor();
  return ok_status();
}

Status BlockwiseSource::read_f32(const std::string& name, uint32_t count, float* out) {
  VOLLEY_ASSIGN_OR_RETURN(const kernels::SourceDType from,
                          open_tensor(name, std::array<uint64_t, 1>{count}));
  kernels::convert_to_f32(elements(0, count), from, count, out);
  close_tensor();
  return ok_status();
}

}  // namespace volley::model
