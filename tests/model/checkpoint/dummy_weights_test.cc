// Goal: dummy weights are the same on every node and in any order, look normal with the stated
// sigmas, and route near uniformly. Method: compare instances and read orders; moments; one router
// over a vocabulary.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "model/checkpoint/checkpoint_files.h"
#include "volley/base/bf16.h"
#include "volley/model/weights.h"

namespace volley::model {
namespace {

using kernels::DType;
using testing::TempFolder;

class Dummy : public ::testing::Test {
 protected:
  static constexpr uint32_t kVocab = 4096, kHidden = 256, kExperts = 64, kTopK = 4;

  void SetUp() override {
    nlohmann::json config = testing::tiny_config();
    config["vocab_size"] = kVocab;
    config["hidden_size"] = kHidden;
    config["num_local_experts"] = kExperts;
    config["num_experts_per_tok"] = kTopK;
    folder_.write("config.json", config.dump());
  }

  Checkpoint open(uint64_t seed) const {
    return std::move(Checkpoint::open_dummy(folder_.path(), seed)).value();
  }
  static std::vector<float> read(WeightSource& source, const std::string& name, uint32_t rows,
                                 uint32_t cols) {
    std::vector<float> values(size_t{rows} * cols);
    EXPECT_TRUE(source.read_plain(name, rows, cols, DType::kF32, values.data()).ok());
    return values;
  }

  TempFolder folder_;
};

TEST_F(Dummy, NeedsNoWeightFilesAndHasADigestPerSeed) {
  const Checkpoint first = open(1);
  EXPECT_TRUE(first.dummy);
  EXPECT_EQ(first.dummy_seed, 1u);
  EXPECT_EQ(first.digest, open(1).digest);
  EXPECT_NE(first.digest, open(2).digest);
}

TEST_F(Dummy, ATensorDependsOnSeedAndNameOnly) {
  const auto one = std::move(open(1).source()).value();
  const auto other = std::move(open(1).source()).value();
  const auto seed = std::move(open(2).source()).value();
  const std::vector<float> a = read(*one, "a", 40, 30);
  const std::vector<float> b = read(*one, "b", 40, 30);
  EXPECT_EQ(read(*other, "b", 40, 30), b);  // In the other order.
  EXPECT_EQ(read(*other, "a", 40, 30), a);
  EXPECT_EQ(read(*one, "a", 40, 30), a);
  EXPECT_NE(a, b);
  EXPECT_NE(read(*seed, "a", 40, 30), a);
}

TEST_F(Dummy, PackedPlainAndBothDTypesHoldTheSameValues) {
  constexpr uint32_t kRows = 1100, kCols = 300;  // More than one block either way.
  const auto source = std::move(open(1).source()).value();
  const std::vector<float> plain = read(*source, "m", kRows, kCols);
  for (const DType dtype : {DType::kBf16, DType::kF32}) {
    const Result<Mapping> packed = Mapping::allocate(kernels::packed_bytes(kRows, kCols, dtype));
    const Result<Mapping> expected = Mapping::allocate(kernels::packed_bytes(kRows, kCols, dtype));
    ASSERT_TRUE(source->read_packed("m", kRows, kCols, dtype, packed->bytes().data()).ok());
    kernels::pack_matrix(plain.data(), kernels::SourceDType::kF32, kRows, kCols, dtype,
                         expected->bytes().data());
    EXPECT_EQ(std::memcmp(packed->bytes().data(), expected->bytes().data(), packed->bytes().size()),
              0);
  }
  for (const float value : plain) ASSERT_EQ(to_f32(to_bf16(value)), value);
}

/// A golden: a change of the generator would make old and new nodes disagree under the same digest.
TEST_F(Dummy, TheFirstValuesAreFixed) {
  const auto source = std::move(open(7).source()).value();
  const std::vector<float> values = read(*source, "model.embed_tokens.weight", 1, 4);
  EXPECT_EQ(values, (std::vector<float>{-0.65625f, 0.188476562f, 0.353515625f, -0.83984375f}));
}

struct Moments {
  double mean, sigma, kurtosis;
};

Moments moments(const std::vector<float>& values, double centre) {
  double mean = 0, square = 0, fourth = 0;
  for (const float value : values) {
    const double x = value - centre;
    mean += x;
    square += x * x;
    fourth += x * x * x * x;
  }
  const double count = static_cast<double>(values.size());
  return {mean / count, std::sqrt(square / count), fourth / count / std::pow(square / count, 2)};
}

TEST_F(Dummy, ValuesHaveTheStatedMoments) {
  const auto source = std::move(open(3).source()).value();
  const std::pair<const char*, double> matrices[] = {{"model.embed_tokens.weight", 1.0},
                                                     {"lm_head.weight", 0.02}};
  for (const auto& [name, sigma] : matrices) {
    // A million values: the standard errors are 0.001 sigma for the mean and 0.0007 for sigma.
    const Moments m = moments(read(*source, name, kVocab, kHidden), 0);
    EXPECT_NEAR(m.mean / sigma, 0, 0.005) << name;
    EXPECT_NEAR(m.sigma / sigma, 1, 0.005) << name;
    EXPECT_NEAR(m.kurtosis, 2.7, 0.05) << name;  // Four uniforms: 3 - 1.2 / 4.
  }
  std::vector<float> norm(100'000);
  ASSERT_TRUE(source->read_f32("model.norm.weight", 100'000, norm.data()).ok());
  const Moments m = moments(norm, 1);
  EXPECT_NEAR(m.mean, 0, 0.0005);
  EXPECT_NEAR(m.sigma, 0.02, 0.0005);
}

TEST_F(Dummy, RoutingIsNearUniform) {
  const Checkpoint checkpoint = open(11);
  const auto source = std::move(checkpoint.source()).value();
  const std::vector<float> embedding = read(*source, "model.embed_tokens.weight", kVocab, kHidden);
  const std::vector<float> router =
      read(*source, "model.layers.0.block_sparse_moe.gate.weight", kExperts, kHidden);
  std::vector<uint32_t> chosen(kExperts);
  for (uint32_t token = 0; token < kVocab; ++token) {
    std::vector<std::pair<float, uint32_t>> scores;
    for (uint32_t expert = 0; expert < kExperts; ++expert) {
      float logit = 0;
      for (uint32_t i = 0; i < kHidden; ++i) {
        logit += embedding[token * kHidden + i] * router[expert * kHidden + i];
      }
      scores.emplace_back(-logit, expert);
    }
    std::partial_sort(scores.begin(), scores.begin() + kTopK, scores.end());
    for (uint32_t k = 0; k < kTopK; ++k) ++chosen[scores[k].second];
  }
  const double share = double{kVocab} * kTopK / kExperts;
  for (uint32_t expert = 0; expert < kExperts; ++expert) {
    EXPECT_GT(chosen[expert], share / 2) << expert;
    EXPECT_LT(chosen[expert], share * 2) << expert;
  }
}

}  // namespace
}  // namespace volley::model
