#include "safetensors_source.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "volley/config/json_reader.h"

namespace volley::model {

Result<kernels::SourceDType> SafetensorsSource::open_tensor(const std::string& name,
                                                            std::span<const uint64_t> shape) {
  VOLLEY_ASSIGN_OR_RETURN(tensor_, folder_.find(name));
  const TensorInfo& info = *tensor_.info;
  if (!std::equal(info.shape.begin(), info.shape.end(), shape.begin(), shape.end())) {
    return invalid_argument("{}: tensor {}: shape is [{}], config.json asks for [{}]",
                            tensor_.file->path(), config::in_quotes(name),
                            fmt::join(info.shape, ", "), fmt::join(shape, ", "));
  }
  const std::optional<kernels::SourceDType> dtype = source_dtype(info.dtype);
  if (!dtype) {
    return invalid_argument("{}: tensor {}: dtype is {}; supported: BF16, F16, F32",
                            tensor_.file->path(), config::in_quotes(name),
                            config::in_quotes(info.dtype));
  }
  element_bytes_ = source_dtype_bytes(*dtype);
  dropped_ = info.begin;
  return *dtype;
}

const void* SafetensorsSource::elements(size_t first, size_t count) {
  const uint64_t begin = tensor_.info->begin + first * element_bytes_;
  if (begin > dropped_) tensor_.file->drop_resident(dropped_, begin);
  dropped_ = begin;
  const std::byte* data = tensor_.file->bytes().data() + begin;
  if (begin % element_bytes_ == 0) return data;  // A mapping begins on a page.
  aligned_.resize(count * element_bytes_);
  std::memcpy(aligned_.data(), data, aligned_.size());
  return aligned_.data();
}

void SafetensorsSource::close_tensor() {
  tensor_.file->drop_resident(dropped_, tensor_.info->end);
}

}  // namespace volley::model
