// Goal: config.json gives the right ModelSpec, and every wrong field gives an error that names the
// file, the field and the value. Method: published and minimal configurations, changed one field at
// a time.

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

/// As Mixtral-8x7B's file, written by transformers 4.
json mixtral_config() {
  return json::parse(R"({
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral",
    "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": false,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
    "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0", "use_cache": true, "vocab_size": 32000})");
}

json without(const std::vector<std::string>& fields) {
  json config = mixtral_config();
  for (const std::string& field : fields) config.erase(field);
  return config;
}

json with(const json& changes) {
  json config = mixtral_config();
  config.update(changes);
  return config;
}

Result<ModelSpec> parse(const json& config, const std::string& generation = "") {
  return parse_model_config(config.dump(), generation, kOrigin);
}

TEST(ModelConfig, ReadsMixtral8x7B) {
  const Result<ModelSpec> spec = parse(mixtral_config());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->architecture, "MixtralForCausalLM");
  EXPECT_EQ(spec->vocab, 32000u);
  EXPECT_EQ(spec->hidden, 4096u);
  EXPECT_EQ(spec->max_positions, 32768u);
  EXPECT_EQ(spec->rms_epsilon, 1e-5f);
  EXPECT_EQ(spec->rope_theta, 1e6);
  EXPECT_FALSE(spec->tied_head);
  EXPECT_EQ(spec->bos_token, 1);
  EXPECT_THAT(spec->eos_tokens, ElementsAre(2));
  ASSERT_EQ(spec->layer_count(), 32u);
  for (uint32_t i = 0; i < 32; ++i) {
    const LayerSpec& layer = spec->layers[i];
    EXPECT_EQ(layer.prefix, "model.layers." + std::to_string(i) + ".");
    EXPECT_EQ(layer.attention.heads, 32u);
    EXPECT_EQ(layer.attention.kv_heads, 8u);
    EXPECT_EQ(layer.attention.head_dim, 128u);
    EXPECT_EQ(layer.attention.window, 0u);
    EXPECT_EQ(layer.moe.experts, 8u);
    EXPECT_EQ(layer.moe.top_k, 2u);
    EXPECT_EQ(layer.moe.ffn, 14336u);
    EXPECT_TRUE(layer.moe.normalize_top_k);
  }
}

TEST(ModelConfig, ReadsTheFormOfTransformers5) {
  json config = without({"rope_theta"});
  config["rope_parameters"] = {{"rope_theta", 5e5}, {"rope_type", "default"}};
  config["head_dim"] = nullptr;
  config["dtype"] = "bfloat16";
  const Result<ModelSpec> spec = parse(config);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->rope_theta, 5e5);
  EXPECT_EQ(spec->layers[0].attention.head_dim, 128u);
}

TEST(ModelConfig, AbsentAndNullFieldsGetTheDefaultsOfTransformers) {
  const Result<ModelSpec> absent =
      parse(without({"num_key_value_heads", "rope_theta", "hidden_act", "sliding_window",
                     "tie_word_embeddings", "bos_token_id", "eos_token_id"}));
  ASSERT_TRUE(absent.ok()) << absent.status();
  EXPECT_EQ(absent->layers[0].attention.kv_heads, 32u);
  EXPECT_EQ(absent->rope_theta, 1e6);
  EXPECT_EQ(absent->layers[0].attention.window, 0u);
  EXPECT_FALSE(absent->tied_head);
  EXPECT_EQ(absent->bos_token, -1);
  EXPECT_THAT(absent->eos_tokens, ElementsAre());

  const Result<ModelSpec> null = parse(with({{"num_key_value_heads", nullptr},
                                             {"rope_scaling", nullptr},
                                             {"bos_token_id", nullptr},
                                             {"eos_token_id", nullptr}}));
  ASSERT_TRUE(null.ok()) << null.status();
  EXPECT_EQ(null->layers[0].attention.kv_heads, 32u);
  EXPECT_EQ(null->bos_token, -1);
}

TEST(ModelConfig, ReadsWindowHeadSizeAndTiedHead) {
  const Result<ModelSpec> spec =
      parse(with({{"sliding_window", 4096}, {"head_dim", 96}, {"tie_word_embeddings", true}}));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->layers[31].attention.window, 4096u);
  EXPECT_EQ(spec->layers[31].attention.head_dim, 96u);
  EXPECT_TRUE(spec->tied_head);
}

TEST(ModelConfig, TheGenerationConfigOverridesTheSpecialTokens) {
  const Result<ModelSpec> both =
      parse(mixtral_config(), R"({"bos_token_id": 5, "eos_token_id": [7, 9]})");
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->bos_token, 5);
  EXPECT_THAT(both->eos_tokens, ElementsAre(7, 9));

  const Result<ModelSpec> neither = parse(mixtral_config(), R"({"eos_token_id": null})");
  ASSERT_TRUE(neither.ok()) << neither.status();
  EXPECT_EQ(neither->bos_token, 1);
  EXPECT_THAT(neither->eos_tokens, ElementsAre(2));

  const Result<ModelSpec> bad = parse(mixtral_config(), R"({"eos_token_id": [2, 32000]})");
  EXPECT_EQ(bad.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(message_of(bad.status()),
              HasSubstr("/models/m/generation_config.json: eos_token_id"));
  EXPECT_THAT(message_of(bad.status()), HasSubstr("32000"));
}

TEST(ModelConfig, TheGenerationConfigSetsTheSamplingDefaults) {
  const Result<ModelSpec> absent = parse(mixtral_config(), R"({})");
  ASSERT_TRUE(absent.ok()) << absent.status();
  EXPECT_EQ(absent->sampling.temperature, 1.0f);
  EXPECT_EQ(absent->sampling.top_k, 0u);
  EXPECT_EQ(absent->sampling.top_p, 1.0f);

  const Result<ModelSpec> set =
      parse(mixtral_config(), R"({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05})");
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->sampling.temperature, 0.6f);
  EXPECT_EQ(set->sampling.top_k, 20u);
  EXPECT_EQ(set->sampling.top_p, 0.95f);
  EXPECT_EQ(set->sampling.min_p, 0.05f);

  const Result<ModelSpec> greedy =
      parse(mixtral_config(), R"({"temperature": 0.6, "do_sample": false})");
  ASSERT_TRUE(greedy.ok()) << greedy.status();
  EXPECT_EQ(greedy->sampling.temperature, 0.0f);

  const Result<ModelSpec> bad = parse(mixtral_config(), R"({"top_p": 1.5})");
  ASSERT_FALSE(bad.ok());
  EXPECT_THAT(message_of(bad.status()), HasSubstr("/models/m/generation_config.json: top_p"));
}

TEST(ModelConfig, AnUnknownArchitectureIsToldTheSupportedOnes) {
  const Result<ModelSpec> spec = parse(with({{"architectures", {"MambaForCausalLM"}}}));
  EXPECT_EQ(spec.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(message_of(spec.status()), HasSubstr("MambaForCausalLM"));
  EXPECT_THAT(message_of(spec.status()), HasSubstr("MixtralForCausalLM"));
}

struct BadField {
  json change;
  std::string field;  ///< As the message must begin after the file name.
  std::string value;  ///< What the message must also hold.
  StatusCode code = StatusCode::kInvalidArgument;
};

TEST(ModelConfig, EveryBadFieldIsNamedWithItsValue) {
  const StatusCode unsupported = StatusCode::kFailedPrecondition;
  const std::vector<BadField> cases = {
      {{{"architectures", "MixtralForCausalLM"}}, "architectures", "a list of one name"},
      {{{"architectures", json::array()}}, "architectures", "[]"},
      {{{"architectures", {"MixtralForCausalLM", "B"}}}, "architectures", "\"B\""},
      {{{"architectures", {3}}}, "architectures", "[3]"},
      {{{"hidden_size", 0}}, "hidden_size", "is 0"},
      {{{"hidden_size", -4096}}, "hidden_size", "-4096"},
      {{{"hidden_size", 4096.0}}, "hidden_size", "4096.0"},
      {{{"hidden_size", "4096"}}, "hidden_size", "\"4096\""},
      {{{"hidden_size", true}}, "hidden_size", "true"},
      {{{"hidden_size", nullptr}}, "hidden_size", "missing"},
      {{{"hidden_size", 65537}}, "hidden_size", "65537"},
      {{{"hidden_size", uint64_t{1} << 32}}, "hidden_size", "4294967296"},
      {{{"num_hidden_layers", 0}}, "num_hidden_layers", "is 0"},
      {{{"num_hidden_layers", 513}}, "num_hidden_layers", "513"},
      {{{"num_attention_heads", 0}}, "num_attention_heads", "is 0"},
      {{{"num_attention_heads", 1025}}, "num_attention_heads", "1025"},
      {{{"num_key_value_heads", 5}}, "num_key_value_heads", "is 5"},
      {{{"num_key_value_heads", 0}}, "num_key_value_heads", "is 0"},
      {{{"num_attention_heads", 33}, {"num_key_value_heads", 11}}, "head_dim", "33"},
      {{{"head_dim", 7}}, "head_dim", "is 7"},
      {{{"head_dim", 0}}, "head_dim", "is 0"},
      {{{"head_dim", 258}}, "head_dim", "258"},
      {{{"num_attention_heads", 8}}, "head_dim", "is 512"},
      {{{"intermediate_size", 0}}, "intermediate_size", "is 0"},
      {{{"intermediate_size", 262145}}, "intermediate_size", "262145"},
      {{{"num_local_experts", 0}}, "num_local_experts", "is 0"},
      {{{"num_local_experts", 1025}}, "num_local_experts", "1025"},
      {{{"num_experts_per_tok", 0}}, "num_experts_per_tok", "is 0"},
      {{{"num_experts_per_tok", 9}}, "num_experts_per_tok", "is 9"},
      {{{"num_local_experts", 64}, {"num_experts_per_tok", 17}}, "num_experts_per_tok", "is 17"},
      {{{"vocab_size", 0}}, "vocab_size", "is 0"},
      {{{"vocab_size", 4194305}}, "vocab_size", "4194305"},
      {{{"max_position_embeddings", 0}}, "max_position_embeddings", "is 0"},
      {{{"rms_norm_eps", 0}}, "rms_norm_eps", "is 0"},
      {{{"rms_norm_eps", -1e-5}}, "rms_norm_eps", "-1e-05"},
      {{{"rms_norm_eps", 0.5}}, "rms_norm_eps", "0.5"},
      {{{"rms_norm_eps", "x"}}, "rms_norm_eps", "\"x\""},
      {{{"rope_theta", 0}}, "rope_theta", "is 0"},
      {{{"rope_theta", "1e6"}}, "rope_theta", "\"1e6\""},
      {{{"rope_parameters", 3}}, "rope_parameters", "is 3"},
      {{{"rope_parameters", {{"rope_theta", 5.0}}}}, "rope_parameters: rope_theta", "5"},
      {{{"rope_parameters", {{"rope_type", "yarn"}}}},
       "rope_parameters: rope_type",
       "\"yarn\"",
       unsupported},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}},
       "rope_scaling: type",
       "\"linear\"",
       unsupported},
      {{{"partial_rotary_factor", 0.5}}, "partial_rotary_factor", "0.5", unsupported},
      {{{"rope_parameters", {{"partial_rotary_factor", 0.5}}}},
       "rope_parameters: partial_rotary_factor",
       "0.5",
       unsupported},
      {{{"sliding_window", 0}}, "sliding_window", "is 0"},
      {{{"sliding_window", "full"}}, "sliding_window", "\"full\""},
      {{{"tie_word_embeddings", 1}}, "tie_word_embeddings", "is 1"},
      {{{"hidden_act", "gelu"}}, "hidden_act", "\"gelu\"", unsupported},
      {{{"hidden_act", 1}}, "hidden_act", "is 1"},
      {{{"quantization_config", {{"quant_method", "gptq"}}}},
       "quantization_config",
       "gptq",
       unsupported},
      {{{"bos_token_id", 32000}}, "bos_token_id", "32000"},
      {{{"bos_token_id", -1}}, "bos_token_id", "-1"},
      {{{"eos_token_id", {2, "x"}}}, "eos_token_id", "\"x\""},
      {{{"eos_token_id", 2.5}}, "eos_token_id", "2.5"},
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

TEST(ModelConfig, EverySizeMustBeThere) {
  for (const char* field :
       {"architectures", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "num_local_experts", "num_experts_per_tok", "vocab_size",
        "max_position_embeddings", "rms_norm_eps"}) {
    const Result<ModelSpec> spec = parse(without({field}));
    EXPECT_EQ(spec.status().code(), StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(message_of(spec.status()), HasSubstr(std::string(field) + " is missing"));
  }
}

TEST(ModelConfig, BrokenJsonIsAnErrorWithItsPlace) {
  const std::string good = mixtral_config().dump();
  const std::string deep = std::string(17, '[') + std::string(17, ']');
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "byte"},
      {"[]", "array"},
      {"3", "number"},
      {good + "x", "byte"},
      {good.substr(0, good.size() - 1), "byte"},
      {"{\"a\": 1, \"a\": 2}", "\"a\" occurs twice"},
      {"{\"a\": {\"b\": 1, \"b\": 2}}", "\"b\" occurs twice"},
      {"{\"a\": " + deep + "}", "deeper"},
      {"{\"a\": \"\xff\"}", "byte"},
      {"{\"a\": 1e999}", "byte"},
      {"{\"a\": NaN}", "byte"},
      {std::string(5u << 20, ' '), "bytes of JSON"},
  };
  for (const auto& [text, expected] : cases) {
    const Result<ModelSpec> spec = parse_model_config(text, "", kOrigin);
    EXPECT_EQ(spec.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(message_of(spec.status()), HasSubstr(kOrigin));
    EXPECT_THAT(message_of(spec.status()), HasSubstr(expected));
  }
  std::string many = "{\"a\": [0";
  for (int i = 0; i < 100'000; ++i) many += ",0";
  EXPECT_THAT(message_of(parse_model_config(many + "]}", "", kOrigin).status()),
              HasSubstr("values"));
}

}  // namespace
}  // namespace volley::model
