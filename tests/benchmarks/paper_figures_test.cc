// Goal: the planner stays true to the paper's figures: those that are predicted within 15 %, and in
// Fig. 8 and 9 the order of disaggregated and colocated serving.
// Method: the values that the `paper_figures` program prints, from the catalogue in the tree.

#include <gtest/gtest.h>

#include <map>

#include "paper_figures/figures.h"

namespace volley::paper_figures {
namespace {

class PaperFigures : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::string root = VOLLEY_SOURCE_DIR;
    auto read = read_inputs(root + "/configs", root + "/benchmarks/paper_figures/data");
    ASSERT_TRUE(read.ok()) << read.status();
    inputs_ = new Inputs(std::move(read).value());
  }
  static void TearDownTestSuite() {
    delete inputs_;
    inputs_ = nullptr;
  }
  static void expect_within(Result<std::vector<Value>> values, size_t count, double share) {
    ASSERT_TRUE(values.ok()) << values.status();
    EXPECT_EQ(values->size(), count);
    for (const Value& value : *values) {
      EXPECT_LT(std::abs(value.error()), share)
          << value.figure << " " << value.row << " " << value.column << ": " << value.ours
          << " against " << value.paper << "; " << value.note;
    }
  }

  static const Inputs* inputs_;
};

const Inputs* PaperFigures::inputs_ = nullptr;

TEST_F(PaperFigures, ConstantsAreThoseOfTheCatalogue) {
  const double level = inputs_->constants.compute;
  const auto a800 = perf::find_device(std::string(VOLLEY_SOURCE_DIR) + "/configs/hardware", "a800");
  ASSERT_TRUE(a800.ok()) << a800.status();
  EXPECT_NEAR(level, a800->efficiency.compute.at(512), 0.01);
}

TEST_F(PaperFigures, TransferTimes) {
  expect_within(transfer_times(*inputs_), 13 + 4, 0.10);
}

TEST_F(PaperFigures, MicroBatchSweep) {
  expect_within(micro_batch_sweep(*inputs_), 12, 0.15);
}

TEST_F(PaperFigures, AttentionNodeSweep) {
  const auto values = attention_node_sweep(*inputs_);
  expect_within(values, 12, 0.05);
  double best = 0;
  std::string best_nodes;
  for (const Value& value : *values) {
    if (value.column != "tokens_per_s_per_gpu" || value.ours <= best) continue;
    best = value.ours;
    best_nodes = value.row;
  }
  EXPECT_EQ(best_nodes, "8");
}

TEST_F(PaperFigures, DisaggregatedServingIsFirstPerGpu) {
  const auto values = throughput_per_gpu(*inputs_);
  ASSERT_TRUE(values.ok()) << values.status();
  std::map<std::string, std::map<std::string, double>> bars;
  for (const Value& value : *values) bars[value.row][value.column] = value.ours;
  ASSERT_EQ(bars.size(), 3u);
  for (const auto& [model, bar] : bars) {
    EXPECT_GT(bar.at("megascale_infer"), bar.at("tensorrt_llm")) << model;
    EXPECT_GT(bar.at("megascale_infer"), bar.at("vllm")) << model;
  }
}

TEST_F(PaperFigures, TwoKindsOfGpuAreFirstPerCost) {
  const auto values = throughput_per_cost(*inputs_);
  ASSERT_TRUE(values.ok()) << values.status();
  std::map<std::string, std::map<std::string, double>> bars;
  for (const Value& value : *values) {
    bars[value.row][value.column] = value.ours;
    if (value.column == "megascale_infer_h20_l40s") {
      EXPECT_NE(value.note.find("attention on H20, experts on L40S"), std::string::npos)
          << value.note;
    }
  }
  ASSERT_EQ(bars.size(), 3u);
  for (const auto& [model, bar] : bars) {
    const double ours = bar.at("megascale_infer_h20_l40s");
    for (const char* h20 : {"tensorrt_llm_h20", "vllm_h20"}) {
      EXPECT_GT(ours, bar.at(h20)) << model;
      EXPECT_GT(bar.at(h20), bar.at("vllm_l40s")) << model;
      EXPECT_GT(bar.at(h20), bar.at("tensorrt_llm_l40s")) << model;
    }
  }
}

TEST(PaperFiguresInput, TablesSayWhereTheyAreBroken) {
  const auto missing = read_table("/no/such/table.csv");
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
  const std::string folder = ::testing::TempDir();
  const auto write = [&](const std::string& text) {
    const std::string file = folder + "paper_figures_table.csv";
    std::FILE* out = std::fopen(file.c_str(), "w");
    std::fputs(text.c_str(), out);
    std::fclose(out);
    return read_table(file);
  };
  EXPECT_EQ(write("# only words\n").status().code(), StatusCode::kInvalidArgument);
  const auto odd = write("name,a,b\nx,1\n");
  EXPECT_NE(message_of(odd.status()).find(":2: 2 cells, expected 3"), std::string::npos)
      << odd.status();
  EXPECT_NE(message_of(write("name,a\nx,one\n").status()).find("'one'"), std::string::npos);
  const auto good = write("# c\nname,a,b\nx,1,2.5\n");
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(good->at("x", "b").value(), 2.5);
  EXPECT_EQ(good->at("x", "c").status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace volley::paper_figures
