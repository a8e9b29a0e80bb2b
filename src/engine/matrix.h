#pragma once

#include <cstring>
#include <vector>

#include "kernels/common/types.h"
#include "volley/base/fd.h"
#include "volley/base/status.h"

namespace volley::engine {

/// A row-major buffer with the row pointers that kernels take, made once and touched at creation.
class Matrix {
 public:
  Matrix() = default;
  /// Errors: kResourceExhausted.
  static Result<Matrix> create(uint32_t rows, size_t row_bytes) {
    // Rows start at multiples of 64 bytes, so vector loads of a row never split its first cache
    // line.
    const size_t stride = (row_bytes + 63) / 64 * 64;
    Matrix matrix;
    VOLLEY_ASSIGN_OR_RETURN(matrix.memory_, Mapping::allocate(stride * rows));
    std::memset(matrix.memory_.bytes().data(), 0, matrix.memory_.bytes().size());
    matrix.rows_.resize(rows);
    for (uint32_t row = 0; row < rows; ++row) {
      matrix.rows_[row] = matrix.memory_.bytes().data() + stride * row;
    }
    return matrix;
  }

  kernels::Rows rows(uint32_t first, uint32_t count) const { return {rows_.data() + first, count}; }
  kernels::ConstRows const_rows(uint32_t first, uint32_t count) const {
    return {const_cast<const void* const*>(rows_.data()) + first, count};
  }
  void* row(uint32_t index) const { return rows_[index]; }
  template <class T>
  T* row_as(uint32_t index) const {
    return static_cast<T*>(rows_[index]);
  }

 private:
  Mapping memory_;
  std::vector<void*> rows_;
};

}  // namespace volley::engine
