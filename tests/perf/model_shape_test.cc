// Goal: a model file is read strictly, and the sizes of a shape are what its matrices add up to.
// Method: small shapes computed by hand; a table of edits of one good file with the message each
// must give.

#include "volley/perf/model_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace volley::perf {
namespace {

using testing::HasSubstr;

const char* const kGood = R"(name: tiny
hidden: 64
vocab: 100
tied_head: true
formats: {attention: bf16, experts: fp4, kv: fp8, activations: f32}
layers:
  - count: 2
    attention: {heads: 4, kv_heads: 2, head_dim: 16, window: 128}
    ffn: {experts: 8, top_k: 2, width: 32, shared_width: 48}
  - count: 1
    attention: {kind: latent, heads: 4, head_dim: 8, value_dim: 16, query_rank: 24, kv_rank: 12, rope_dim: 4}
    ffn: {width: 256}
sources:
  - figures: [hidden, vocab, tied_head, formats, "layers[0]", "layers[1].attention"]
    cites: the paper
  - figures: [layers]
    cites: assumed
)";

TEST(ModelShape, ReadsAGoodFile) {
  const auto model = parse_model_shape(kGood, "tiny.yaml");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->name, "tiny");
  EXPECT_TRUE(model->tied_head);
  EXPECT_EQ(model->attention_format, NumberFormat::kBf16);
  EXPECT_EQ(model->expert_format, NumberFormat::kFp4);
  EXPECT_EQ(model->kv_format, NumberFormat::kFp8);
  EXPECT_EQ(model->activation_format, NumberFormat::kF32);
  ASSERT_EQ(model->layers.size(), 2u);
  EXPECT_EQ(model->layer_count(), 3u);
  EXPECT_EQ(model->experts(), 8u);
  EXPECT_EQ(model->top_k(), 2u);
  EXPECT_EQ(model->layers[0].attention.value_dim, 16u);
  EXPECT_FALSE(model->layers[1].ffn.routed());
  EXPECT_EQ(model->layers[1].attention.kind, AttentionShape::Kind::kLatent);
}

TEST(ModelShape, SizesAreTheSumsOfTheMatrices) {
  const auto model = parse_model_shape(kGood, "tiny.yaml");
  ASSERT_TRUE(model.ok()) << model.status();
  const LayerGroup& grouped = model->layers[0];
  const LayerGroup& latent = model->layers[1];
  // Q 64 x 64, K and V 64 x 32 each, O 64 x 64.
  const double grouped_attention = 64 * 64 + 2 * 64 * 32 + 64 * 64;
  EXPECT_EQ(attention_params(*model, grouped.attention), grouped_attention);
  // Queries 64 x 24 x (4 x 12), keys and values 64 x (12 + 4) and 12 x 4 x (8 + 16), O 64 x 64.
  const double latent_attention = 64 * 24 + 24 * 48 + 64 * 16 + 12 * 4 * 24 + 64 * 64;
  EXPECT_EQ(attention_params(*model, latent.attention), latent_attention);
  AttentionShape uncompressed = latent.attention;
  uncompressed.query_rank = 0;
  EXPECT_EQ(attention_params(*model, uncompressed), latent_attention - 64 * 24 - 24 * 48 + 64 * 48);

  EXPECT_EQ(router_params(*model, grouped.ffn), 64 * 8);
  EXPECT_EQ(router_params(*model, latent.ffn), 0);
  EXPECT_EQ(expert_params(*model, grouped.ffn), 3 * 64 * 32);
  EXPECT_EQ(shared_params(*model, grouped.ffn), 3 * 64 * 48);
  EXPECT_EQ(embedding_params(*model), 100 * 64);
  const double dense = 3 * 64 * 256;
  EXPECT_EQ(total_params(*model), 2 * (grouped_attention + 512 + (8 * 32 + 48) * 3 * 64) +
                                      latent_attention + dense + 6400);
  EXPECT_EQ(active_params(*model), 2 * (grouped_attention + 512 + (2 * 32 + 48) * 3 * 64) +
                                       latent_attention + dense + 6400);
  ModelShape untied = *model;
  untied.tied_head = false;
  EXPECT_EQ(total_params(untied), total_params(*model) + 6400);
  EXPECT_EQ(active_params(untied), active_params(*model));

  EXPECT_EQ(kv_bytes(*model, grouped.attention), 2 * 2 * 16);
  EXPECT_EQ(kv_bytes(*model, latent.attention), 12 + 4);
  EXPECT_EQ(sequence_kv_bytes(*model, 100), (2 * 64 + 16) * 100);
  EXPECT_EQ(sequence_kv_bytes(*model, 1000), 2 * 64 * 128 + 16 * 1000);  // The window caps two.
}

TEST(ModelShape, NamesEveryMistakeWithFileLineAndKey) {
  struct Mistake {
    const char* from;
    const char* to;
    const char* message;
  };
  const Mistake mistakes[] = {
      {"hidden: 64\n", "", "tiny.yaml:1: hidden: the key is missing"},
      {"hidden: 64", "hidden: 0", "tiny.yaml:2: hidden: '0' is not an integer"},
      {"hidden: 64", "hidden: 064", "tiny.yaml:2: hidden: '064' is not an integer"},
      {"vocab: 100", "vocab: 99999999999", "tiny.yaml:3: vocab: '99999999999' is not"},
      {"kv: fp8", "kv: int8", "tiny.yaml:5: formats.kv: 'int8' is not one of"},
      {"count: 2", "count: 5000", "tiny.yaml:7: layers[0].count: '5000' is not"},
      {"kv_heads: 2", "kv_heads: 3", "tiny.yaml:8: layers[0].attention.kv_heads: 3 does not"},
      {"kv_heads: 2", "kv_rank: 2", "tiny.yaml:8: layers[0].attention.kv_heads: the key is mis"},
      {"top_k: 2", "top_k: 9", "tiny.yaml:9: layers[0].ffn.top_k: 9 is above experts"},
      {"rope_dim: 4", "kv_heads: 4", "tiny.yaml:11: layers[1].attention.rope_dim: the key is mis"},
      {"kind: latent", "kind: linear", "tiny.yaml:11: layers[1].attention.kind: 'linear' is"},
      {"\"layers[0]\"", "\"layers[2]\"",
       "tiny.yaml:14: sources[0].figures: 'layers[2]' is no figure"},
      {"  - figures: [layers]\n    cites: assumed\n", "",
       "tiny.yaml:10: layers[1].count: has no source"},
      {"sources:", "sources: [", "tiny.yaml:"},
  };
  for (const Mistake& mistake : mistakes) {
    std::string text = kGood;
    const size_t at = text.find(mistake.from);
    ASSERT_NE(at, std::string::npos) << mistake.from;
    text.replace(at, std::string(mistake.from).size(), mistake.to);
    const auto model = parse_model_shape(text, "tiny.yaml");
    ASSERT_FALSE(model.ok()) << mistake.to;
    EXPECT_EQ(model.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(message_of(model.status()), HasSubstr(mistake.message));
  }
  EXPECT_EQ(parse_model_shape("name: x\nlayers: []\nhidden: 1\nvocab: 1\nsources: []\n", "x")
                .status()
                .code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace volley::perf
