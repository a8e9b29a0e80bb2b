#pragma once

#include <vector>

#include "blockwise_source.h"
#include "safetensors.h"

namespace volley::model {

/// Reads tensors of a checkpoint folder. The pages of a file that were read are given back at once,
/// so a node keeps nothing resident but its own copy.
class SafetensorsSource final : public BlockwiseSource {
 public:
  explicit SafetensorsSource(SafetensorsFolder folder) : folder_(std::move(folder)) {}

 protected:
  Result<kernels::SourceDType> open_tensor(const std::string& name,
                                           std::span<const uint64_t> shape) override;
  const void* elements(size_t first, size_t count) override;
  void close_tensor() override;

 private:
  SafetensorsFolder folder_;
  SafetensorsFolder::Tensor tensor_{nullptr, nullptr};
  size_t element_bytes_ = 0;
  uint64_t dropped_ = 0;            // Bytes of the file before this offset have been given back.
  std::vector<std::byte> aligned_;  // A block of a tensor whose data is not aligned in the file.
};

}  // namespace volley::model
