#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "volley/model/weights.h"

namespace volley::model {

/// A WeightSource that hands out a tensor in blocks of rows, so that neither a file's pages nor
/// generated values are ever resident for a whole tensor. Packing in blocks gives the bytes of
/// packing at once, because a block is a whole number of panels. A block that was handed out may be
/// forgotten at the next.
class BlockwiseSource : public WeightSource {
 public:
  Status read_packed(const std::string& name, uint32_t rows, uint32_t cols, kernels::DType dtype,
                     void* out) final;
  Status read_plain(const std::string& name, uint32_t rows, uint32_t cols, kernels::DType dtype,
                    void* out) final;
  Status read_f32(const std::string& name, uint32_t count, float* out) final;

 protected:
  /// Finds the tensor, checks its shape (outermost first) and makes it the open one. Returns the
  /// type of its elements. Errors: kNotFound, kInvalidArgument.
  virtual Result<kernels::SourceDType> open_tensor(const std::string& name,
                                                   std::span<const uint64_t> shape) = 0;
  /// Elements [first, first + count) of the open tensor, aligned to their type; valid until the
  /// next call. Called in ascending order without gaps.
  virtual const void* elements(size_t first, size_t count) = 0;
  /// The open tensor has been read.
  virtual void close_tensor() = 0;

 private:
  std::vector<float> scratch_;  // One block as f32.
};

}  // namespace volley::model
