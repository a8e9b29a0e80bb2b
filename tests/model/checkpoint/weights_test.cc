// Goal: each role gets exactly its tensors, bit for bit, from any dtype, file layout and alignment,
// and faults are named. Method: a tiny checkpoint with known values, read back element by element
// from the panels; a source that records what is asked of it.

#include "volley/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <set>

#include "kernels/common/elements.h"
#include "model/checkpoint/checkpoint_files.h"
#include "volley/base/bf16.h"

namespace volley::model {
namespace {

using kernels::DType;
using kernels::PackedMatrix;
using ::testing::HasSubstr;
using namespace testing;  // The helpers of checkpoint_files.h, not gtest's.

float element(const void* data, DType dtype, size_t index) {
  return dtype == DType::kF32 ? static_cast<const float*>(data)[index]
                              : to_f32(static_cast<const Bf16*>(data)[index]);
}

float packed_element(const PackedMatrix& matrix, uint32_t row, uint32_t col) {
  return element(matrix.data, matrix.dtype,
                 kernels::packed_index(row, col, matrix.cols, matrix.dtype));
}

/// Rows [first, first + rows) of the packed matrix are the tensor called `name`.
void expect_rows(const PackedMatrix& matrix, uint32_t first, uint32_t rows,
                 const std::string& name) {
  for (uint32_t row = 0; row < rows; ++row) {
    for (uint32_t col = 0; col < matrix.cols; ++col) {
      ASSERT_EQ(packed_element(matrix, first + row, col),
                tiny_value(name, size_t{row} * matrix.cols + col))
          << name << " [" << row << ", " << col << "]";
    }
  }
}

void expect_matrix(const PackedMatrix& matrix, uint32_t rows, uint32_t cols,
                   const std::string& name) {
  ASSERT_EQ(matrix.rows, rows) << name;
  ASSERT_EQ(matrix.cols, cols) << name;
  ASSERT_EQ(reinterpret_cast<uintptr_t>(matrix.data) % 64, 0u) << name;
  expect_rows(matrix, 0, rows, name);
  for (uint32_t row = rows; row % kernels::kPanel != 0; ++row) {
    for (uint32_t col = 0; col < cols; ++col)
      ASSERT_EQ(packed_element(matrix, row, col), 0) << name;
  }
}

void expect_vector(std::span<const float> values, const std::string& name) {
  ASSERT_EQ(values.size(), 24u) << name;
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], tiny_value(name, i)) << name;
}

void expect_attention(const AttentionWeights& weights, bool tied) {
  const std::string embedding = "model.embed_tokens.weight";
  expect_matrix(weights.head(), 33, 24, tied ? embedding : "lm_head.weight");
  EXPECT_EQ(weights.embedding().packed, tied);
  EXPECT_EQ(weights.embedding().vocab, 33u);
  EXPECT_EQ(weights.embedding().hidden, 24u);
  if (tied) {
    EXPECT_EQ(weights.embedding().data, weights.head().data);
  } else {
    for (size_t i = 0; i < 33 * 24; ++i) {
      ASSERT_EQ(element(weights.embedding().data, weights.embedding().dtype, i),
                tiny_value(embedding, i));
    }
  }
  expect_vector(weights.final_norm(), "model.norm.weight");
  for (uint32_t i = 0; i < 2; ++i) {
    const AttentionWeights::Layer& layer = weights.layer(i);
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    expect_vector(layer.attention_norm, prefix + "input_layernorm.weight");
    expect_vector(layer.ffn_norm, prefix + "post_attention_layernorm.weight");
    ASSERT_EQ(layer.qkv.rows, 30u);
    ASSERT_EQ(layer.qkv.cols, 24u);
    expect_rows(layer.qkv, 0, 18, prefix + "self_attn.q_proj.weight");
    expect_rows(layer.qkv, 18, 6, prefix + "self_attn.k_proj.weight");
    expect_rows(layer.qkv, 24, 6, prefix + "self_attn.v_proj.weight");
    expect_matrix(layer.output, 24, 18, prefix + "self_attn.o_proj.weight");
    expect_matrix(layer.router, 5, 24, prefix + "block_sparse_moe.gate.weight");
    EXPECT_EQ(layer.query_norm.data(), nullptr);
    EXPECT_EQ(layer.key_norm.data(), nullptr);
  }
}

void expect_expert(const kernels::FfnWeights& weights, uint32_t layer, uint32_t expert) {
  const std::string stem = "model.layers." + std::to_string(layer) + ".block_sparse_moe.experts." +
                           std::to_string(expert);
  expect_matrix(weights.gate, 20, 24, stem + ".w1.weight");
  expect_matrix(weights.up, 20, 24, stem + ".w3.weight");
  expect_matrix(weights.down, 24, 20, stem + ".w2.weight");
}

std::vector<ExpertWeights::Key> all_experts() {
  std::vector<ExpertWeights::Key> keys;
  for (uint32_t layer = 0; layer < 2; ++layer) {
    for (uint32_t expert = 0; expert < 5; ++expert) keys.push_back({layer, expert});
  }
  return keys;
}

/// Opens the folder, loads both roles and compares every element.
void expect_whole_checkpoint(const std::string& folder, DType dtype, bool tied) {
  const Result<Checkpoint> checkpoint = Checkpoint::open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  Result<std::unique_ptr<WeightSource>> source = checkpoint->source();
  ASSERT_TRUE(source.ok()) << source.status();
  const ModelSpec& spec = checkpoint->spec;
  const Result<AttentionWeights> attention = AttentionWeights::load(spec, **source, dtype);
  ASSERT_TRUE(attention.ok()) << attention.status();
  EXPECT_EQ(attention->bytes(), AttentionWeights::bytes_needed(spec, dtype));
  expect_attention(*attention, tied);
  const Result<ExpertWeights> experts = ExpertWeights::load(spec, **source, dtype, all_experts());
  ASSERT_TRUE(experts.ok()) << experts.status();
  EXPECT_EQ(experts->bytes(), ExpertWeights::bytes_needed(spec, dtype, all_experts()));
  for (const auto& key : all_experts()) {
    const kernels::FfnWeights* expert = experts->find(key.layer, key.expert);
    ASSERT_NE(expert, nullptr);
    expect_expert(*expert, key.layer, key.expert);
  }
}

TEST(Weights, EveryDTypeIsReadBitExact) {
  for (const char* stored : {"BF16", "F16", "F32"}) {
    for (const DType dtype : {DType::kBf16, DType::kF32}) {
      for (const bool tied : {false, true}) {
        SCOPED_TRACE(std::string(stored) + (tied ? " tied as " : " as ") +
                     kernels::dtype_name(dtype));
        const TempFolder folder;
        write_tiny(folder, stored, tied);
        expect_whole_checkpoint(folder.path(), dtype, tied);
      }
    }
  }
}

TEST(Weights, UnalignedDataIsReadTheSame) {
  for (const char* stored : {"BF16", "F32"}) {
    const TempFolder folder;
    write_tiny(folder, stored);
    folder.write("model.safetensors", safetensors_bytes(tiny_tensors(stored), 1));
    expect_whole_checkpoint(folder.path(), DType::kF32, false);
  }
}

TEST(Weights, ShardsWithDifferentDTypesAreReadTheSame) {
  const TempFolder folder;
  folder.write("config.json", tiny_config().dump());
  const char* dtypes[] = {"BF16", "F16", "F32"};
  TestTensors shards[3];
  nlohmann::json index;
  size_t next = 0;
  for (const auto& [name, unused] : tiny_tensors("BF16")) {
    const size_t shard = next++ % 3;
    shards[shard][name] = tiny_tensors(dtypes[shard])[name];
    index["weight_map"][name] = "shard-" + std::to_string(shard) + ".safetensors";
  }
  for (size_t i = 0; i < 3; ++i) {
    folder.write("shard-" + std::to_string(i) + ".safetensors", safetensors_bytes(shards[i]));
  }
  folder.write("model.safetensors.index.json", index.dump());
  expect_whole_checkpoint(folder.path(), DType::kBf16, false);
}

/// A Qwen3-MoE without its experts: the attention of the tiny model with norms of 6 elements, which
/// are the first and the next 6 of "model.norm.weight".
TestTensors tensors_with_head_norms() {
  TestTensors tensors = tiny_tensors("F32");
  const std::string values = tensors["model.norm.weight"].bytes;
  for (const std::string prefix : {"model.layers.0.", "model.layers.1."}) {
    tensors[prefix + "mlp.gate.weight"] = tensors[prefix + "block_sparse_moe.gate.weight"];
    tensors[prefix + "self_attn.q_norm.weight"] = {"F32", {6}, values.substr(0, 24)};
    tensors[prefix + "self_attn.k_norm.weight"] = {"F32", {6}, values.substr(24, 24)};
  }
  return tensors;
}

Result<AttentionWeights> load_with_head_norms(const TestTensors& tensors) {
  nlohmann::json config = tiny_config();
  config["architectures"] = {"Qwen3MoeForCausalLM"};
  config["moe_intermediate_size"] = config["intermediate_size"];
  const TempFolder folder;
  folder.write("config.json", config.dump());
  folder.write("model.safetensors", safetensors_bytes(tensors));
  VOLLEY_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(folder.path()));
  VOLLEY_ASSIGN_OR_RETURN(const auto source, checkpoint.source());
  Result<AttentionWeights> weights = AttentionWeights::load(checkpoint.spec, *source, DType::kBf16);
  if (weights.ok()) {
    EXPECT_EQ(weights->bytes(), AttentionWeights::bytes_needed(checkpoint.spec, DType::kBf16));
  }
  return weights;
}

TEST(Weights, HeadNormsAreReadWhereTheModelHasThem) {
  const Result<AttentionWeights> weights = load_with_head_norms(tensors_with_head_norms());
  ASSERT_TRUE(weights.ok()) << weights.status();
  for (uint32_t i = 0; i < 2; ++i) {
    const AttentionWeights::Layer& layer = weights->layer(i);
    ASSERT_EQ(layer.query_norm.size(), 6u);
    ASSERT_EQ(layer.key_norm.size(), 6u);
    for (size_t j = 0; j < 6; ++j) {
      EXPECT_EQ(layer.query_norm[j], tiny_value("model.norm.weight", j));
      EXPECT_EQ(layer.key_norm[j], tiny_value("model.norm.weight", 6 + j));
    }
    expect_rows(layer.qkv, 0, 18, "model.layers." + std::to_string(i) + ".self_attn.q_proj.weight");
  }
  for (const char* name : {"q_norm", "k_norm"}) {
    TestTensors tensors = tensors_with_head_norms();
    const std::string full = fmt::format("model.layers.1.self_attn.{}.weight", name);
    tensors[full].shape = {3, 2};
    EXPECT_THAT(message_of(load_with_head_norms(tensors).status()), HasSubstr(full));
    tensors.erase(full);
    const Status missing = load_with_head_norms(tensors).status();
    EXPECT_EQ(missing.code(), StatusCode::kNotFound);
    EXPECT_THAT(message_of(missing), HasSubstr(full));
  }
}

/// A checkpoint of one vector and one matrix with these raw bytes, read through the source.
TEST(Weights, RoundingAndSpecialValues) {
  const std::vector<float> values = {1.0f + 0x1p-8f, 1.0f + 3 * 0x1p-8f, -0.0f, 0x1p-140f,
                                     65504.0f,       3.4028234e38f,      1e-3f, -2.5f};
  TestTensors tensors = tiny_tensors("F32");
  std::string bytes(reinterpret_cast<const char*>(values.data()), values.size() * 4);
  tensors["extra"] = {"F32", {2, 4}, bytes};
  tensors["subnormal"] = {"F16", {2}, std::string("\x01\x00\xff\x83", 4)};
  const TempFolder folder;
  write_tiny(folder, "F32");
  folder.write("model.safetensors", safetensors_bytes(tensors));
  auto source = Checkpoint::open(folder.path())->source();
  ASSERT_TRUE(source.ok()) << source.status();

  std::vector<float> as_f32(8);
  ASSERT_TRUE((*source)->read_plain("extra", 2, 4, DType::kF32, as_f32.data()).ok());
  std::vector<Bf16> as_bf16(8);
  ASSERT_TRUE((*source)->read_plain("extra", 2, 4, DType::kBf16, as_bf16.data()).ok());
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(as_f32[i]), std::bit_cast<uint32_t>(values[i])) << i;
    EXPECT_EQ(as_bf16[i].bits, to_bf16(values[i]).bits) << i;
  }
  EXPECT_EQ(as_bf16[0].bits, 0x3f80);  // Ties go to even.
  EXPECT_EQ(as_bf16[1].bits, 0x3f82);
  float halves[2];
  ASSERT_TRUE((*source)->read_f32("subnormal", 2, halves).ok());
  EXPECT_EQ(halves[0], 0x1p-24f);
  EXPECT_EQ(halves[1], -1023 * 0x1p-24f);
}

/// Packing goes block by block: the panels must be those of packing the whole matrix at once.
TEST(Weights, BlocksOfALargeMatrixJoinSeamlessly) {
  constexpr uint32_t kRows = 1001;
  constexpr uint32_t kCols =
      777;  // Odd: a single panel of bf16 would not be a multiple of 64 bytes.
  std::string bytes;
  for (uint32_t i = 0; i < kRows * kCols; ++i) {
    const uint16_t bits = to_bf16(static_cast<float>(i % 251)).bits;
    bytes.append(reinterpret_cast<const char*>(&bits), 2);
  }
  const TempFolder folder;
  write_tiny(folder, "BF16");
  TestTensors tensors = tiny_tensors("BF16");
  tensors["large"] = {"BF16", {kRows, kCols}, bytes};
  folder.write("model.safetensors", safetensors_bytes(tensors));
  auto source = Checkpoint::open(folder.path())->source();
  ASSERT_TRUE(source.ok()) << source.status();
  for (const DType dtype : {DType::kBf16, DType::kF32}) {
    const size_t size = kernels::packed_bytes(kRows, kCols, dtype);
    const Result<Mapping> blocks = Mapping::allocate(size);
    const Result<Mapping> whole = Mapping::allocate(size);
    ASSERT_TRUE((*source)->read_packed("large", kRows, kCols, dtype, blocks->bytes().data()).ok());
    kernels::pack_matrix(bytes.data(), kernels::SourceDType::kBf16, kRows, kCols, dtype,
                         whole->bytes().data());
    EXPECT_EQ(std::memcmp(blocks->bytes().data(), whole->bytes().data(), size), 0);
  }
}

/// Passes everything on and records the names.
class RecordingSource final : public WeightSource {
 public:
  explicit RecordingSource(WeightSource& inner) : inner_(inner) {}
  Status read_packed(const std::string& name, uint32_t rows, uint32_t cols, DType dtype,
                     void* out) override {
    record(name, size_t{rows} * cols);
    return inner_.read_packed(name, rows, cols, dtype, out);
  }
  Status read_plain(const std::string& name, uint32_t rows, uint32_t cols, DType dtype,
                    void* out) override {
    record(name, size_t{rows} * cols);
    return inner_.read_plain(name, rows, cols, dtype, out);
  }
  Status read_f32(const std::string& name, uint32_t count, float* out) override {
    record(name, count);
    return inner_.read_f32(name, count, out);
  }

  std::set<std::string> names;
  size_t elements = 0;

 private:
  void record(const std::string& name, size_t count) {
    EXPECT_TRUE(names.insert(name).second) << name << " is read twice";
    elements += count;
  }
  WeightSource& inner_;
};

class Roles : public ::testing::Test {
 protected:
  void SetUp() override {
    write_tiny(folder_, "BF16");
    Result<Checkpoint> checkpoint = Checkpoint::open(folder_.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    spec_ = checkpoint->spec;
    source_ = std::move(checkpoint->source()).value();
  }
  TempFolder folder_;
  ModelSpec spec_;
  std::unique_ptr<WeightSource> source_;
};

TEST_F(Roles, AnExpertNodeReadsOnlyItsExperts) {
  RecordingSource recording(*source_);
  const std::vector<ExpertWeights::Key> keys = {{1, 4}, {0, 2}};
  const Result<ExpertWeights> weights = ExpertWeights::load(spec_, recording, DType::kBf16, keys);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(recording.elements, 2 * 3 * 20 * 24u);
  EXPECT_EQ(recording.names.size(), 6u);
  for (const std::string& name : recording.names) {
    EXPECT_TRUE(name.find("layers.1.block_sparse_moe.experts.4.") != std::string::npos ||
                name.find("layers.0.block_sparse_moe.experts.2.") != std::string::npos)
        << name;
  }
  expect_expert(*weights->find(1, 4), 1, 4);
  expect_expert(*weights->find(0, 2), 0, 2);
  EXPECT_EQ(weights->find(0, 4), nullptr);
  EXPECT_EQ(weights->find(0, 5), nullptr);
  EXPECT_EQ(weights->find(2, 0), nullptr);
}

TEST_F(Roles, AnAttentionNodeReadsNoExpert) {
  RecordingSource recording(*source_);
  ASSERT_TRUE(AttentionWeights::load(spec_, recording, DType::kBf16).ok());
  EXPECT_EQ(recording.names.size(), 3 + 2 * 7u);
  for (const std::string& name : recording.names) {
    EXPECT_EQ(name.find("experts"), std::string::npos) << name;
  }
}

TEST_F(Roles, ANodeMayHoldNoExpert) {
  const Result<ExpertWeights> weights = ExpertWeights::load(spec_, *source_, DType::kBf16, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->bytes(), 0u);
  EXPECT_EQ(weights->find(0, 0), nullptr);
}

TEST_F(Roles, ExpertsThatDoNotExistOrAreListedTwiceAreRefused) {
  using Keys = std::vector<ExpertWeights::Key>;
  const std::vector<std::pair<Keys, std::string>> cases = {
      {{{2, 0}}, "layer 2"},
      {{{0, 5}}, "expert 5 of layer 0"},
      {{{0, 1}, {1, 1}, {0, 1}}, "expert 1 of layer 0 is asked for twice"},
  };
  for (const auto& [keys, expected] : cases) {
    const Status status = ExpertWeights::load(spec_, *source_, DType::kBf16, keys).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(message_of(status), HasSubstr(expected));
  }
}

TEST(Weights, MissingAndMisshapenTensorsAreNamed) {
  struct Case {
    std::string tensor;
    TestTensor replacement;  ///< Without a dtype: the tensor is missing.
    std::vector<std::string> expected;
  };
  const std::string expert = "model.layers.1.block_sparse_moe.experts.3.w2.weight";
  const std::string query = "model.layers.0.self_attn.q_proj.weight";
  const std::vector<Case> cases = {
      {"lm_head.weight", {}, {"no tensor \"lm_head.weight\""}},
      {expert, {}, {"no tensor \"" + expert + "\""}},
      {expert,
       {"BF16", {20, 24}, std::string(960, 'x')},
       {"model.safetensors", expert, "shape is [20, 24]", "[24, 20]"}},
      {query,
       {"BF16", {18, 24, 1}, std::string(864, 'x')},
       {"model.safetensors", query, "shape is [18, 24, 1]", "[18, 24]"}},
      {"model.norm.weight",
       {"BF16", {1, 24}, std::string(48, 'x')},
       {"model.safetensors", "model.norm.weight", "shape is [1, 24]", "[24]"}},
      {query,
       {"F8_E4M3", {18, 24}, std::string(432, 'x')},
       {"model.safetensors", query, "dtype is \"F8_E4M3\"", "BF16, F16, F32"}},
      {query,
       {"F6_E2M3", {18, 24}, std::string(324, 'x')},
       {"model.safetensors", query, "dtype is \"F6_E2M3\""}},
  };
  for (const Case& bad : cases) {
    const TempFolder folder;
    write_tiny(folder, "BF16");
    TestTensors tensors = tiny_tensors("BF16");
    tensors.erase(bad.tensor);
    if (!bad.replacement.dtype.empty()) tensors[bad.tensor] = bad.replacement;
    folder.write("model.safetensors", safetensors_bytes(tensors));
    const Result<Checkpoint> checkpoint = Checkpoint::open(folder.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    auto source = checkpoint->source();
    Status status = AttentionWeights::load(checkpoint->spec, **source, DType::kBf16).status();
    if (status.ok()) {
      status =
          ExpertWeights::load(checkpoint->spec, **source, DType::kBf16, all_experts()).status();
    }
    const bool missing = bad.replacement.dtype.empty();
    EXPECT_EQ(status.code(), missing ? StatusCode::kNotFound : StatusCode::kInvalidArgument);
    for (const std::string& part : bad.expected) EXPECT_THAT(message_of(status), HasSubstr(part));
    EXPECT_THAT(message_of(status), HasSubstr(folder.path()));
  }
}

TEST(CheckpointOpen, FaultsOfTheFolderAreNamed) {
  const TempFolder folder;
  EXPECT_EQ(Checkpoint::open(folder.path()).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(message_of(Checkpoint::open(folder.path()).status()), HasSubstr("config.json"));
  folder.write("config.json", tiny_config().dump());
  EXPECT_EQ(Checkpoint::open(folder.path()).status().code(), StatusCode::kNotFound);
  write_tiny(folder, "BF16");
  folder.write("generation_config.json", "{");
  const Status status = Checkpoint::open(folder.path()).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(message_of(status), HasSubstr("generation_config.json"));
}

TEST(CheckpointDigest, ChangesWithEveryPartAndWithNothingElse) {
  const TempFolder folder;
  write_tiny(folder, "BF16");
  const auto digest = [&] { return Checkpoint::open(folder.path())->digest; };
  std::set<uint64_t> seen = {digest()};
  EXPECT_EQ(seen.count(digest()), 1u);

  const TempFolder copy;
  write_tiny(copy, "BF16");
  EXPECT_EQ(seen.count(Checkpoint::open(copy.path())->digest), 1u);

  const auto expect_new = [&](const char* what) {
    EXPECT_TRUE(seen.insert(digest()).second) << what;
  };
  TestTensors tensors = tiny_tensors("BF16");
  tensors["model.layers.1.self_attn.k_proj.weight"].bytes[0] ^= 1;
  folder.write("model.safetensors", safetensors_bytes(tensors));
  expect_new("one bit of a tensor");
  tensors["more"] = {"U8", {1}, "x"};
  folder.write("model.safetensors", safetensors_bytes(tensors));
  expect_new("a tensor more");
  nlohmann::json config = tiny_config();
  config["rope_theta"] = 2e4;
  folder.write("config.json", config.dump());
  expect_new("config.json");
  folder.write("generation_config.json", R"({"eos_token_id": 4})");
  expect_new("generation_config.json");
}

}  // namespace
}  // namespace volley::model
