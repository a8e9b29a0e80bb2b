#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "volley/base/status.h"

namespace volley::model::testing {

/// A folder that goes with its object.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string path() const { return path_.string(); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  void write(const std::string& name, std::string_view content) const;

 private:
  std::filesystem::path path_;
};

/// One tensor as a file holds it.
struct TestTensor {
  std::string dtype;
  std::vector<uint64_t> shape;
  std::string bytes;
};
using TestTensors = std::map<std::string, TestTensor>;

/// The bytes of a safetensors file. `padding` spaces end the header, to misalign the data.
std::string safetensors_bytes(const TestTensors& tensors, size_t padding = 0);
/// A file with this header text and as many data bytes.
std::string safetensors_raw(const std::string& header, size_t data_bytes);

/// A small Mixtral: hidden 24, 2 layers, 3 heads of 6 (kv 1), 5 experts top-3 with 20 inner
/// features, vocabulary 33. Row counts are no multiples of 16.
nlohmann::json tiny_config();
/// All its tensors with distinct values that bf16, f16 and f32 all hold exactly.
TestTensors tiny_tensors(const std::string& dtype);
/// The value of element `index` of the tensor, as tiny_tensors writes it.
float tiny_value(const std::string& name, size_t index);
void write_tiny(const TempFolder& folder, const std::string& dtype, bool tied_head = false);

}  // namespace volley::model::testing
