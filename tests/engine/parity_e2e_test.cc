// Goal: the bundled model, served by a cluster of 2 x 2 nodes, writes what transformers writes.
// Method: the prompts of tests/data/goldens/bundled.json through the tokenizer, the engines and the
// tokenizer again; ids and text must be equal. The goldens are computed in f32; the smallest logit
// margin among them is far above what bf16 changes, so both dtypes must give them.

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/cluster_harness.h"
#include "engine/must.h"
#include "volley/model/tokenizer.h"

namespace volley::engine {
namespace {

struct GoldenText {
  std::string text, new_text;
  std::vector<int32_t> prompt_ids, new_ids;
};

std::vector<GoldenText> load_texts(const nlohmann::json& goldens) {
  std::vector<GoldenText> texts;
  for (const nlohmann::json& prompt : goldens.at("prompts")) {
    texts.push_back({.text = prompt.at("text"),
                     .new_text = prompt.at("new_text"),
                     .prompt_ids = prompt.at("prompt_ids"),
                     .new_ids = prompt.at("new_ids")});
  }
  return texts;
}

class BundledModel : public testing::TestWithParam<kernels::DType> {
 protected:
  void SetUp() override {
    std::ifstream file(VOLLEY_TEST_DATA "/goldens/bundled.json");
    const auto goldens = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
    ASSERT_FALSE(goldens.is_discarded());
    folder_ = std::string(VOLLEY_SOURCE_DIR "/") + goldens.at("model").get<std::string>();
    texts_ = load_texts(goldens);
    ASSERT_FALSE(texts_.empty());
  }

  std::string folder_;
  std::vector<GoldenText> texts_;
};

TEST_P(BundledModel, GreedyTextEqualsThatOfTransformers) {
  const auto tokenizer = must(model::Tokenizer::load(folder_));
  ClusterHarness cluster({.attention_nodes = 2, .expert_nodes = 2, .dtype = GetParam()},
                         must(model::Checkpoint::open(folder_)));
  std::vector<Stream> streams(texts_.size());
  for (size_t i = 0; i < texts_.size(); ++i) {
    GenerationRequest request;
    request.tokens = must(tokenizer->encode(texts_[i].text, /*add_special_tokens=*/true));
    EXPECT_EQ(request.tokens, texts_[i].prompt_ids) << texts_[i].text;
    request.max_new_tokens = static_cast<uint32_t>(texts_[i].new_ids.size());
    request.sampling.temperature = 0;
    cluster.submit(static_cast<uint32_t>(i) % 2, std::move(request), streams[i]);
  }
  for (size_t i = 0; i < texts_.size(); ++i) {
    ASSERT_TRUE(streams[i].wait()) << texts_[i].text;
    ASSERT_TRUE(streams[i].status.ok()) << streams[i].status;
    EXPECT_EQ(streams[i].tokens, texts_[i].new_ids) << texts_[i].text;
    EXPECT_EQ(tokenizer->decode(streams[i].tokens, /*skip_special_tokens=*/false),
              texts_[i].new_text);
  }
}
INSTANTIATE_TEST_SUITE_P(DTypes, BundledModel,
                         testing::Values(kernels::DType::kBf16, kernels::DType::kF32),
                         [](const auto& test_info) {
                           return kernels::dtype_name(test_info.param);
                         });

}  // namespace
}  // namespace volley::engine
