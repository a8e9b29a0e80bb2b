// Goal: config.json of a Qwen3-MoE gives the right ModelSpec, and what the engine does not have is
// refused by name. Method: the published configuration, changed one field at a time. What all
// architectures share is tested in model_config_test.cc. Also the shapes of the models that
// benchmarks use.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "volley/model/weights.h"

namespace volley::model {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kOrigin = "/models/m/config.json";

/// As Qwen3-30B-A3B's file, written by transformers 4.
json qwen3_config() {
  return json::parse(R"({
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
    "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
    "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
    "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_scaling": null,
    "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})");
}

json without(const std::vector<std::string>& fields) {
  json config = qwen3_config();
  for (const std::string& field : fields) config.erase(field);
  return config;
}

json with(const json& changes) {
  json config = qwen3_config();
  config.update(changes);
  return config;
}

Result<ModelSpec> parse(const json& config) {
  return parse_model_config(config.dump(), "", kOrigin);
}

TEST(Qwen3MoeConfig, ReadsThePublishedForm) {
  const Result<ModelSpec> spec = parse(qwen3_config());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->architecture, "Qwen3MoeForCausalLM");
  EXPECT_EQ(spec->vocab, 151936u);
  EXPECT_EQ(spec->hidden, 2048u);
  EXPECT_EQ(spec->max_positions, 40960u);
  EXPECT_EQ(spec->rms_epsilon, 1e-6f);
  EXPECT_EQ(spec->rope_theta, 1e6);
  EXPECT_FALSE(spec->tied_head);
  ASSERT_EQ(spec->layer_count(), 48u);
  for (const LayerSpec& layer : spec->layers) {
    EXPECT_EQ(layer.attention.heads, 32u);
    EXPECT_EQ(layer.attention.kv_heads, 4u);
    EXPECT_EQ(layer.attention.head_dim, 128u);
    EXPECT_EQ(layer.attention.window, 0u);
    EXPECT_TRUE(layer.attention.qk_norm);
    EXPECT_EQ(layer.moe.experts, 128u);
    EXPECT_EQ(layer.moe.top_k, 8u);
    EXPECT_EQ(layer.moe.ffn, 768u);
    EXPECT_TRUE(layer.moe.normalize_top_k);
  }
}

TEST(Qwen3MoeConfig, ReadsTheFormOfTransformers5) {
  json config = without({"num_experts", "rope_theta", "rope_scaling"});
  config["num_local_experts"] = 64;
  config["rope_parameters"] = {{"rope_theta", 5e5}, {"rope_type", "default"}};
  config["norm_topk_prob"] = false;
  config["tie_word_embeddings"] = true;
  const Result<ModelSpec> spec = parse(config);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->layers[0].moe.experts, 64u);
  EXPECT_EQ(spec->rope_theta, 5e5);
  EXPECT_FALSE(spec->layers[0].moe.normalize_top_k);
  EXPECT_TRUE(spec->tied_head);
}

TEST(Qwen3MoeConfig, AbsentFieldsGetTheDefaultsOfTransformers) {
  const Result<ModelSpec> spec =
      parse(without({"attention_bias", "decoder_sparse_step", "mlp_only_layers", "head_dim",
                     "norm_topk_prob", "rope_theta", "tie_word_embeddings", "use_sliding_window"}));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->layers[0].attention.head_dim, 64u);
  EXPECT_EQ(spec->rope_theta, 1e4);
  EXPECT_FALSE(spec->layers[0].moe.normalize_top_k);
}

TEST(Qwen3MoeConfig, AWindowThatIsNotUsedIsNoWindow) {
  const Result<ModelSpec> spec = parse(with({{"sliding_window", 4096}}));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->layers[0].attention.window, 0u);
}

TEST(Qwen3MoeConfig, EverySizeMustBeThere) {
  for (const char* field :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "moe_intermediate_size", "num_experts", "num_experts_per_tok", "vocab_size",
        "max_position_embeddings", "rms_norm_eps"}) {
    const Result<ModelSpec> spec = parse(without({field}));
    EXPECT_EQ(spec.status().code(), StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(message_of(spec.status()), HasSubstr(std::string(field) + " is missing"));
  }
}

TEST(BenchmarkModels, HaveTheShapesThatTheyAreComparedAt) {
  const auto open = [](const std::string& name) {
    return Checkpoint::open_dummy(VOLLEY_SOURCE_DIR "/configs/models/" + name, 0);
  };
  const Result<Checkpoint> mixtral = open("bench-mixtral");
  ASSERT_TRUE(mixtral.ok()) << mixtral.status();
  const Result<Checkpoint> qwen3 = open("bench-qwen3-moe");
  ASSERT_TRUE(qwen3.ok()) << qwen3.status();
  const auto shape = [](const ModelSpec& spec) {
    const AttentionSpec& attention = spec.layers[0].attention;
    const MoeSpec& moe = spec.layers[0].moe;
    return std::vector<uint32_t>{spec.vocab,
                                 spec.hidden,
                                 spec.layer_count(),
                                 attention.heads,
                                 attention.kv_heads,
                                 attention.head_dim,
                                 attention.qk_norm,
                                 moe.experts,
                                 moe.top_k,
                                 moe.normalize_top_k,
                                 moe.ffn};
  };
  EXPECT_THAT(shape(mixtral->spec), ElementsAre(32000, 1024, 8, 16, 4, 64, 0, 8, 2, 1, 2048));
  EXPECT_THAT(shape(qwen3->spec), ElementsAre(32000, 1024, 12, 16, 4, 128, 1, 32, 4, 1, 512));
}

struct BadField {
  json change;
  std::string field;  ///< As the message must begin after the file name.
  std::string value;  ///< What the message must also hold.
  StatusCode code;
};

TEST(Qwen3MoeConfig, EveryBadFieldIsNamedWithItsValue) {
  const StatusCode bad_value = StatusCode::kInvalidArgument;
  const StatusCode unsupported = StatusCode::kFailedPrecondition;
  const std::vector<BadField> cases = {
      {{{"decoder_sparse_step", 2}}, "decoder_sparse_step", "is 2", unsupported},
      {{{"decoder_sparse_step", 0}}, "decoder_sparse_step", "is 0", bad_value},
      {{{"decoder_sparse_step", "1"}}, "decoder_sparse_step", "\"1\"", bad_value},
      {{{"mlp_only_layers", {0, 3}}}, "mlp_only_layers", "[0,3]", unsupported},
      {{{"mlp_only_layers", 3}}, "mlp_only_layers", "is 3", bad_value},
      {{{"attention_bias", true}}, "attention_bias", "true", unsupported},
      {{{"attention_bias", "no"}}, "attention_bias", "\"no\"", bad_value},
      {{{"use_sliding_window", true}}, "use_sliding_window", "true", unsupported},
      {{{"norm_topk_prob", 1}}, "norm_topk_prob", "is 1", bad_value},
      {{{"moe_intermediate_size", 0}}, "moe_intermediate_size", "is 0", bad_value},
      {{{"num_experts", 1025}}, "num_experts", "1025", bad_value},
      {{{"num_experts", 0}}, "num_experts", "is 0", bad_value},
      {{{"num_local_experts", 64}}, "num_experts", "num_local_experts is 64", bad_value},
      {{{"num_experts", 4}}, "num_experts_per_tok", "num_experts, which is 4", bad_value},
      {{{"num_key_value_heads", 5}}, "num_key_value_heads", "is 5", bad_value},
      {{{"head_dim", 7}}, "head_dim", "is 7", bad_value},
      {{{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}}},
       "rope_scaling: rope_type",
       "\"yarn\"",
       unsupported},
      {{{"quantization_config", {{"quant_method", "fp8"}}}},
       "quantization_config",
       "fp8",
       unsupported},
  };
  for (const BadField& bad : cases) {
    const Result<ModelSpec> spec = parse(with(bad.change));
    ASSERT_FALSE(spec.ok()) << bad.change;
    EXPECT_EQ(spec.status().code(), bad.code) << bad.change;
    EXPECT_THAT(message_of(spec.status()),
                HasSubstr(kOrigin + std::string(": ") + bad.field + " "));
    EXPECT_THAT(message_of(spec.status()), HasSubstr(bad.value));
  }
}

}  // namespace
}  // namespace volley::model
