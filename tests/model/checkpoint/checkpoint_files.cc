#include "model/checkpoint/checkpoint_files.h"

#include <unistd.h>

#include <cstring>
#include <fstream>

#include "volley/base/bf16.h"
#include "volley/base/check.h"
#include "volley/base/clock.h"
#include "volley/base/digest.h"

namespace volley::model::testing {

using nlohmann::json;

TempFolder::TempFolder()
    : path_(std::filesystem::temp_directory_path() /
            ("volley_checkpoint_" + to_hex(random_u64()))) {
  std::filesystem::create_directories(path_);
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void TempFolder::write(const std::string& name, std::string_view content) const {
  std::ofstream out(path_ / name, std::ios::binary);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  out.close();
  VOLLEY_CHECK(out.good());
}

namespace {

std::string length_prefix(uint64_t length) {
  std::string prefix;
  for (int i = 0; i < 8; ++i) prefix += static_cast<char>(length >> (8 * i) & 0xff);
  return prefix;
}

/// The f16 bits of a value that f16 holds exactly as a normal number.
uint16_t f16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) == 0) return static_cast<uint16_t>(bits >> 16);
  const uint32_t exponent = (bits >> 23 & 0xff) - 112;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff));
}

void append(std::string& bytes, const std::string& dtype, float value) {
  if (dtype == "F32") {
    bytes.append(reinterpret_cast<const char*>(&value), 4);
    return;
  }
  const uint16_t bits = dtype == "F16" ? f16_bits(value) : to_bf16(value).bits;
  bytes.append(reinterpret_cast<const char*>(&bits), 2);
}

}  // namespace

std::string safetensors_raw(const std::string& header, size_t data_bytes) {
  return length_prefix(header.size()) + header + std::string(data_bytes, '\0');
}

std::string safetensors_bytes(const TestTensors& tensors, size_t padding) {
  json header = json::object();
  header["__metadata__"] = {{"format", "pt"}};
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  std::string text = header.dump();
  text += std::string((8 - text.size() % 8) % 8 + padding, ' ');
  return length_prefix(text.size()) + text + data;
}

json tiny_config() {
  return {{"architectures", {"MixtralForCausalLM"}},
          {"hidden_size", 24},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 3},
          {"num_key_value_heads", 1},
          {"head_dim", 6},
          {"intermediate_size", 20},
          {"num_local_experts", 5},
          {"num_experts_per_tok", 3},
          {"vocab_size", 33},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 1e4}};
}

float tiny_value(const std::string& name, size_t index) {
  const uint64_t hash = digest64(std::as_bytes(std::span(name)), index);
  return static_cast<float>(static_cast<int>(hash % 255) - 127) / 64.0f;  // Eight significant bits.
}

TestTensors tiny_tensors(const std::string& dtype) {
  std::map<std::string, std::vector<uint64_t>> shapes = {{"model.embed_tokens.weight", {33, 24}},
                                                         {"model.norm.weight", {24}},
                                                         {"lm_head.weight", {33, 24}}};
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    shapes[prefix + "input_layernorm.weight"] = {24};
    shapes[prefix + "post_attention_layernorm.weight"] = {24};
    shapes[prefix + "self_attn.q_proj.weight"] = {18, 24};
    shapes[prefix + "self_attn.k_proj.weight"] = {6, 24};
    shapes[prefix + "self_attn.v_proj.weight"] = {6, 24};
    shapes[prefix + "self_attn.o_proj.weight"] = {24, 18};
    shapes[prefix + "block_sparse_moe.gate.weight"] = {5, 24};
    for (int expert = 0; expert < 5; ++expert) {
      const std::string stem = prefix + "block_sparse_moe.experts." + std::to_string(expert);
      shapes[stem + ".w1.weight"] = {20, 24};
      shapes[stem + ".w3.weight"] = {20, 24};
      shapes[stem + ".w2.weight"] = {24, 20};
    }
  }
  TestTensors tensors;
  for (const auto& [name, shape] : shapes) {
    TestTensor tensor{dtype, shape, ""};
    size_t count = 1;
    for (uint64_t dimension : shape) count *= dimension;
    for (size_t i = 0; i < count; ++i) append(tensor.bytes, dtype, tiny_value(name, i));
    tensors[name] = tensor;
  }
  return tensors;
}

void write_tiny(const TempFolder& folder, const std::string& dtype, bool tied_head) {
  json config = tiny_config();
  TestTensors tensors = tiny_tensors(dtype);
  config["tie_word_embeddings"] = tied_head;
  if (tied_head) tensors.erase("lm_head.weight");
  folder.write("config.json", config.dump());
  folder.write("model.safetensors", safetensors_bytes(tensors));
}

}  // namespace volley::model::testing
