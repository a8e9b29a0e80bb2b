// Goal: every file of configs/models loads, and the sizes computed from it are those that were
// published: Table 4 of the paper with what follows from it, and the totals and active parameters
// that the makers of the other models state. Method: published values against computed ones.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "volley/perf/model_shape.h"

namespace volley::perf {
namespace {

namespace fs = std::filesystem;

const std::string kFolder = VOLLEY_SOURCE_DIR "/configs/models";

ModelShape model(const std::string& name) {
  const auto found = find_model_shape(kFolder, name);
  EXPECT_TRUE(found.ok()) << found.status();
  return found.ok() ? *found : ModelShape();
}

TEST(ModelCatalogue, EveryFileLoads) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(kFolder)) {
    if (entry.path().extension() != ".yaml") continue;
    const auto loaded = load_model_shape(entry.path().string());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->name, entry.path().stem().string());
    names.insert(loaded->name);
  }
  EXPECT_EQ(names, (std::set<std::string>{"dbrx", "deepseek-v3", "gpt-oss-120b", "llama-3-70b",
                                          "mixtral-8x22b", "mixtral-8x7b", "qwen3-235b-a22b",
                                          "qwen3-30b-a3b", "scaled-moe"}));
}

TEST(ModelCatalogue, IsFoundByNameOrByPath) {
  EXPECT_EQ(model("DBRX"), model(kFolder + "/dbrx.yaml"));
  const auto unknown = find_model_shape(kFolder, "gpt-5");
  EXPECT_EQ(unknown.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(message_of(unknown.status()), testing::HasSubstr("dbrx, deepseek-v3"));
}

TEST(ModelCatalogue, RepeatsTable4AndWhatFollowsFromIt) {
  struct Row {
    const char* name;
    double total_billions;      // As Table 4 prints it.
    double kv_bytes_per_token;  // 4 h L / g.
    double expert_gigabytes;    // One expert over all layers, bf16.
    double attention_billions;  // All layers.
  };
  const Row rows[] = {{"mixtral-8x22b", 141, 229'376, 33.8, 4.93},
                      {"dbrx", 132, 163'840, 15.9, 3.52},
                      {"scaled-moe", 317, 196'608, 19.3, 7.3}};
  for (const Row& row : rows) {
    const ModelShape shape = model(row.name);
    ASSERT_EQ(shape.layers.size(), 1u) << row.name;
    const LayerGroup& layers = shape.layers[0];
    EXPECT_NEAR(total_params(shape) / 1e9, row.total_billions, 0.5) << row.name;
    EXPECT_DOUBLE_EQ(sequence_kv_bytes(shape, 1), row.kv_bytes_per_token) << row.name;
    EXPECT_NEAR(layers.count * expert_params(shape, layers.ffn) * 2 / 1e9, row.expert_gigabytes,
                0.051)
        << row.name;
    EXPECT_NEAR(layers.count * attention_params(shape, layers.attention) / 1e9,
                row.attention_billions, 0.01 * row.attention_billions)
        << row.name;
  }
}

TEST(ModelCatalogue, RepeatsPublishedTotalsAndActiveParameters) {
  struct Row {
    const char* name;
    double total_billions, active_billions;
    /// Whether the published active count has the embedding as well as the head; active_params()
    /// has one of them.
    bool both_tables;
  };
  const Row rows[] = {
      {"mixtral-8x7b", 46.7, 12.9, true},
      {"mixtral-8x22b", 141, 39, true},
      {"dbrx", 132, 36, true},
      {"qwen3-30b-a3b", 30.5, 3.3, true},
      {"qwen3-235b-a22b", 235, 22, true},
      {"deepseek-v3", 671, 37, true},
      {"gpt-oss-120b", 116.8, 5.13, false},
      {"llama-3-70b", 70.6, 70.6, true},
  };
  for (const Row& row : rows) {
    const ModelShape shape = model(row.name);
    const double table = embedding_params(shape) / 2;
    EXPECT_NEAR(total_params(shape) / 1e9 / row.total_billions, 1, 0.01) << row.name;
    const double active = active_params(shape) + (row.both_tables ? table : 0);
    EXPECT_NEAR(active / 1e9 / row.active_billions, 1, 0.025) << row.name;
  }
}

}  // namespace
}  // namespace volley::perf
