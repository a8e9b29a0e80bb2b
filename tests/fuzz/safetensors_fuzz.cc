// Goal: no file makes the safetensors header and index parsers crash, and what the header parser
// accepts keeps its promises. Method: the input is a whole file; every accepted tensor is checked
// and touched.

#include <cstdlib>

#include "src/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace volley::model;
  const auto file = std::as_bytes(std::span(data, size));
  const volley::Result<TensorTable> table = parse_safetensors_header(file, "fuzz");
  if (table.ok()) {
    for (const auto& [name, tensor] : *table) {
      if (tensor.begin > tensor.end || tensor.end > size) std::abort();
      const auto dtype = source_dtype(tensor.dtype);
      if (dtype &&
          tensor.element_count() * source_dtype_bytes(*dtype) != tensor.end - tensor.begin) {
        std::abort();
      }
    }
  }
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto index = parse_safetensors_index(text, "fuzz");
  if (index.ok()) {
    for (const auto& [tensor, name] : *index) {
      if (name.find('/') != std::string::npos || name == "..") std::abort();
    }
  }
  return 0;
}
