// Goal: no config.json or generation_config.json crashes the parser, and an accepted model is
// within the bounds that all sizes are computed from. Method: the input is both files, parted by a
// NUL byte.

#include <cstdlib>
#include <string>

#include "volley/model/weights.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t cut = input.find('\0');
  const std::string generation = cut == std::string::npos ? "" : input.substr(cut + 1);
  const auto spec =
      volley::model::parse_model_config(input.substr(0, cut), generation, "config.json");
  if (!spec.ok()) return 0;
  for (const auto& layer : spec->layers) {
    const auto& attention = layer.attention;
    const bool sound = attention.kv_heads > 0 && attention.heads % attention.kv_heads == 0 &&
                       attention.head_dim % 2 == 0 && attention.head_dim > 0 &&
                       layer.moe.top_k > 0 && layer.moe.top_k <= layer.moe.experts;
    if (!sound) std::abort();
  }
  for (const int32_t token : spec->eos_tokens) {
    if (token < 0 || static_cast<uint32_t>(token) >= spec->vocab) std::abort();
  }
  // The sizes must be computable without overflow, which the sanitizers check.
  using volley::model::AttentionWeights;
  if (AttentionWeights::bytes_needed(*spec, volley::kernels::DType::kF32) == 0) std::abort();
  return 0;
}
