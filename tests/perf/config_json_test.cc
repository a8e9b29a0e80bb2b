// Goal: the config.json of every architecture that is known gives the shape that its model has; the
// checkpoints of this repository give the shape that the engine sees in them; anything else is an
// error that names the file and the field. Method: hand-written files with published values against
// the catalogue or values written here; model::parse_model_config() for the engine; a table of
// edits.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "volley/model/weights.h"
#include "volley/perf/model_shape.h"

namespace volley::perf {
namespace {

using testing::HasSubstr;

const std::string kConfigs = VOLLEY_TEST_DATA "/model_configs/";

std::string read(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

ModelShape load(const std::string& path) {
  const auto model = load_model_shape(path);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *model : ModelShape();
}

TEST(ConfigJson, GivesTheShapesOfTheCatalogue) {
  for (const char* name :
       {"mixtral-8x22b", "dbrx", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b", "llama-3-70b"}) {
    const auto entry = find_model_shape(VOLLEY_SOURCE_DIR "/configs/models", name);
    ASSERT_TRUE(entry.ok()) << entry.status();
    EXPECT_EQ(load(kConfigs + name), *entry) << name;
    EXPECT_EQ(load(kConfigs + name + "/config.json"), *entry) << name;
  }
}

TEST(ConfigJson, ReadsDeepseekV2WithoutCompressedQueries) {
  const ModelShape model = load(kConfigs + "deepseek-v2-lite");
  ASSERT_EQ(model.layers.size(), 2u);
  EXPECT_EQ(model.layers[0].count, 1u);
  EXPECT_EQ(model.layers[0].ffn, (FfnShape{1, 1, 10944, 0}));
  EXPECT_EQ(model.layers[1].count, 26u);
  EXPECT_EQ(model.layers[1].ffn, (FfnShape{64, 6, 1408, 2816}));
  EXPECT_EQ(model.layers[1].attention.query_rank, 0u);
  EXPECT_NEAR(total_params(model) / 1e9, 15.7, 0.1);
}

TEST(ConfigJson, ReadsDenseModels) {
  const ModelShape mistral = load(kConfigs + "mistral-7b");
  ASSERT_EQ(mistral.layers.size(), 1u);
  EXPECT_EQ(mistral.layers[0].attention.window, 4096u);
  EXPECT_NEAR(total_params(mistral) / 1e9, 7.24, 0.01);

  const ModelShape qwen2 = load(kConfigs + "qwen2-7b");
  ASSERT_EQ(qwen2.layers.size(), 1u);
  EXPECT_EQ(qwen2.layers[0].attention.window, 0u);  // Named, but not used.
  EXPECT_EQ(qwen2.layers[0].attention.head_dim, 128u);
  EXPECT_NEAR(total_params(qwen2) / 1e9, 7.61, 0.01);

  const ModelShape qwen3 = load(kConfigs + "qwen3-0.6b");
  EXPECT_TRUE(qwen3.tied_head);
  EXPECT_EQ(qwen3.layers[0].attention.head_dim, 128u);  // Not 1024 / 16.
  EXPECT_NEAR(total_params(qwen3) / 1e9, 0.596, 0.001);
}

TEST(ConfigJson, AgreesWithTheEngineOnTheCheckpointsOfThisRepository) {
  for (const char* name : {"configs/models/licence-mixtral", "configs/models/bench-mixtral",
                           "configs/models/bench-qwen3-moe", "tests/data/models/random-moe",
                           "tests/data/models/random-qwen3-moe"}) {
    const std::string folder = std::string(VOLLEY_SOURCE_DIR "/") + name;
    const ModelShape shape = load(folder);
    const auto spec = model::parse_model_config(read(folder + "/config.json"), "", "config.json");
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(shape.name, folder.substr(folder.rfind('/') + 1));
    EXPECT_EQ(shape.hidden, spec->hidden);
    EXPECT_EQ(shape.vocab, spec->vocab);
    EXPECT_EQ(shape.tied_head, spec->tied_head);
    EXPECT_EQ(shape.layer_count(), spec->layer_count());
    ASSERT_EQ(shape.layers.size(), 1u);
    for (const model::LayerSpec& layer : spec->layers) {
      const AttentionShape& attention = shape.layers[0].attention;
      EXPECT_EQ(attention.heads, layer.attention.heads);
      EXPECT_EQ(attention.kv_heads, layer.attention.kv_heads);
      EXPECT_EQ(attention.head_dim, layer.attention.head_dim);
      EXPECT_EQ(attention.value_dim, layer.attention.head_dim);
      EXPECT_EQ(attention.window, layer.attention.window);
      EXPECT_EQ(shape.layers[0].ffn,
                (FfnShape{layer.moe.experts, layer.moe.top_k, layer.moe.ffn, 0}));
    }
  }
}

struct Edit {
  const char* file;
  const char* from;
  const char* to;
  const char* message;  ///< What the error has, after the file.
};

Result<ModelShape> parse_edited(const Edit& edit) {
  std::string text = read(kConfigs + edit.file + "/config.json");
  const size_t at = text.find(edit.from);
  EXPECT_NE(at, std::string::npos) << edit.from;
  text.replace(at, std::string(edit.from).size(), edit.to);
  return parse_config_json(text, "x/config.json");
}

TEST(ConfigJson, NamesTheFieldThatIsWrong) {
  const Edit edits[] = {
      {"mixtral-8x22b", "6144", "\"wide\"", "hidden_size is \"wide\", it must be an integer"},
      {"mixtral-8x22b", "6144", "-1", "hidden_size is -1, it must be an integer"},
      {"mixtral-8x22b", "6144", "1e99", "hidden_size is 1e+99, it must be an integer"},
      {"mixtral-8x22b", "6144", "6145", "head_dim is missing, and 48 heads do not divide"},
      {"mixtral-8x22b", "\"hidden_size\"", "\"width\"", "hidden_size is missing"},
      {"mixtral-8x22b", "per_tok\": 2", "per_tok\": 9", "num_experts_per_tok is 9, it must be at"},
      {"mixtral-8x22b", "heads\": 8", "heads\": 7", "num_key_value_heads is 7, it must divide"},
      {"mixtral-8x22b", "bfloat16", "int8", "torch_dtype is \"int8\", it must be"},
      {"mixtral-8x22b", "[\"MixtralForCausalLM\"]", "\"Mixtral\"", "architectures is \"Mixtral\""},
      {"mixtral-8x22b", "\"rms_norm_eps\"", "\"vocab_size\"",
       "the key \"vocab_size\" occurs twice"},
      {"dbrx", "\"attn_config\"", "\"attention\"", "attn_config is missing"},
      {"dbrx", "\"kv_n_heads\": 8", "\"kv_n_heads\": 5", "attn_config: kv_n_heads is 5, it must"},
      {"dbrx", "\"moe_top_k\": 4", "\"moe_top_k\": 0", "ffn_config: moe_top_k is 0, it must be"},
      {"gpt-oss-120b", "\"sliding_attention\", ", "", "layer_types is "},
      {"gpt-oss-120b", "\"sliding_window\": 128", "\"sliding_window\": 0", "sliding_window is mis"},
      {"qwen3-30b-a3b", "layers\": []", "layers\": [-1]", "mlp_only_layers is [-1], it must be"},
      {"deepseek-v3", "experts\": 1,", "experts\": 1000000,", "n_shared_experts is 1000000"},
  };
  for (const Edit& edit : edits) {
    const auto model = parse_edited(edit);
    ASSERT_FALSE(model.ok()) << edit.to;
    EXPECT_EQ(model.status().code(), StatusCode::kInvalidArgument) << model.status();
    EXPECT_THAT(message_of(model.status()), HasSubstr("x/config.json: "));
    EXPECT_THAT(message_of(model.status()), HasSubstr(edit.message));
  }
}

TEST(ConfigJson, NamesWhatItDoesNotKnow) {
  const Edit edits[] = {
      {"mixtral-8x22b", "MixtralForCausalLM", "MambaForCausalLM",
       "architectures is [\"MambaForCausalLM\"]; known: MixtralForCausalLM, DbrxForCausalLM"},
      {"deepseek-v3", "\"quant_method\": \"fp8\"", "\"quant_method\": \"gptq\"",
       "quantization_config: quant_method is \"gptq\"; known"},
      {"gpt-oss-120b", "\"full_attention\"", "\"linear_attention\"",
       "layer_types has \"linear_attention\"; known"},
  };
  for (const Edit& edit : edits) {
    const auto model = parse_edited(edit);
    EXPECT_EQ(model.status().code(), StatusCode::kFailedPrecondition) << model.status();
    EXPECT_THAT(message_of(model.status()), HasSubstr(edit.message));
  }
}

TEST(ConfigJson, KnowsDenseLayersWindowsAndFormats) {
  const auto sparse = parse_edited({"qwen3-30b-a3b", "sparse_step\": 1", "sparse_step\": 2", ""});
  ASSERT_TRUE(sparse.ok()) << sparse.status();
  ASSERT_EQ(sparse->layers.size(), 2u);
  EXPECT_EQ(sparse->layers[0].count, 24u);
  EXPECT_EQ(sparse->layers[0].ffn, (FfnShape{1, 1, 6144, 0}));  // Layer 0 is dense.
  EXPECT_EQ(sparse->layers[1].ffn, (FfnShape{128, 8, 768, 0}));

  const auto dense = parse_edited({"qwen3-30b-a3b", "layers\": []", "layers\": [3, 5]", ""});
  ASSERT_TRUE(dense.ok()) << dense.status();
  ASSERT_EQ(dense->layers.size(), 2u);
  EXPECT_EQ(dense->layers[0].count, 46u);
  EXPECT_EQ(dense->layers[1].count, 2u);

  const auto window = parse_edited(
      {"qwen2-7b", "\"use_sliding_window\": false", "\"use_sliding_window\": true", ""});
  ASSERT_TRUE(window.ok()) << window.status();
  EXPECT_EQ(window->layers.size(), 1u);  // max_window_layers is above the last layer.
  EXPECT_EQ(window->layers[0].attention.window, 0u);

  const auto untyped = parse_edited({"gpt-oss-120b", "\"layer_types\"", "\"unread\"", ""});
  ASSERT_TRUE(untyped.ok()) << untyped.status();
  ASSERT_EQ(untyped->layers.size(), 2u);
  EXPECT_EQ(untyped->layers[0].attention.window, 128u);
  EXPECT_EQ(untyped->layers[1].count, 18u);

  const auto f32 = parse_edited({"mixtral-8x22b", "bfloat16", "float32", ""});
  ASSERT_TRUE(f32.ok()) << f32.status();
  EXPECT_EQ(f32->kv_format, NumberFormat::kF32);
}

TEST(ConfigJson, IsNamedAfterItsFolder) {
  const std::string text = read(kConfigs + "dbrx/config.json");
  EXPECT_EQ(parse_config_json(text, "/models/my-dbrx/config.json")->name, "my-dbrx");
  EXPECT_EQ(parse_config_json(text, "config.json")->name, "DbrxForCausalLM");
  EXPECT_EQ(load_model_shape(kConfigs).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace volley::perf
