// Goal: operator times follow from sizes and the data sheet as the paper's own arithmetic does;
// stages add up, scale with tensor parallelism, and cost only their overhead when empty. Method:
// devices whose efficiencies are 1, so that every time is work over rate, held against figures
// worked out from the paper's tables (DBRX on 80 GB Ampere) and against a published roofline of
// whole models on one H200.

#include "volley/perf/roofline.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace volley::perf {
namespace {

Device ideal(const std::string& name, double memory_bytes, double bytes_per_s, double bf16_flops) {
  Device device;
  device.name = name;
  device.memory_bytes = memory_bytes;
  device.memory_bytes_per_s = bytes_per_s;
  device.flops[static_cast<size_t>(NumberFormat::kF32)] = bf16_flops / 16;
  device.flops[static_cast<size_t>(NumberFormat::kBf16)] = bf16_flops;
  device.link_bytes_per_s = 200e9;
  device.network_bytes_per_s = 25e9;
  device.per_node = 8;
  device.efficiency = {.compute = Curve{1},
                       .memory = Curve{1},
                       .attention = Curve{1},
                       .link = Curve{1},
                       .network = Curve{1}};
  return device;
}

Device a800() {
  return ideal("A800", 80e9, 2.039e12, 312e12);
}

Device h200() {
  return ideal("H200", 141e9, 4.8e12, 989e12);
}

ModelShape grouped(uint32_t hidden, uint32_t layers, uint32_t heads, uint32_t kv_heads,
                   uint32_t head_dim, FfnShape ffn, uint32_t vocab) {
  ModelShape model;
  model.name = "test";
  model.hidden = hidden;
  model.vocab = vocab;
  model.layers = {{.count = layers,
                   .attention = {.heads = heads,
                                 .kv_heads = kv_heads,
                                 .head_dim = head_dim,
                                 .value_dim = head_dim},
                   .ffn = ffn}};
  return model;
}

ModelShape dbrx() {
  return grouped(6144, 40, 48, 8, 128, {.experts = 16, .top_k = 4, .width = 10752}, 100352);
}

ModelShape mixtral_8x7b() {
  return grouped(4096, 32, 32, 8, 128, {.experts = 8, .top_k = 2, .width = 14336}, 32000);
}

ModelShape qwen3_30b() {
  return grouped(2048, 48, 32, 4, 128, {.experts = 128, .top_k = 8, .width = 768}, 151936);
}

ModelShape deepseek_v3() {
  ModelShape model;
  model.name = "deepseek-v3";
  model.hidden = 7168;
  model.vocab = 129280;
  model.attention_format = model.expert_format = NumberFormat::kFp8;
  const AttentionShape latent{.kind = AttentionShape::Kind::kLatent,
                              .heads = 128,
                              .head_dim = 128,
                              .value_dim = 128,
                              .query_rank = 1536,
                              .kv_rank = 512,
                              .rope_dim = 64};
  model.layers = {{.count = 3, .attention = latent, .ffn = {.width = 18432}},
                  {.count = 58,
                   .attention = latent,
                   .ffn = {.experts = 256, .top_k = 8, .width = 2048, .shared_width = 2048}}};
  return model;
}

TEST(Gemm, IsBoundByWeightsBelowTheRidgeAndByArithmeticAboveIt) {
  const Device device = a800();
  const double inner = 16384, outer = 16384;
  const double weights = inner * outer * 2 / device.memory_bytes_per_s;
  // The ridge of an A100 is at 156 rows (paper, section 1); of this bandwidth at 153.
  EXPECT_NEAR(gemm_time(device, NumberFormat::kBf16, 1, inner, outer) / weights, 1, 0.001);
  EXPECT_NEAR(gemm_time(device, NumberFormat::kBf16, 100, inner, outer) / weights, 1, 0.02);
  const double above = gemm_time(device, NumberFormat::kBf16, 306, inner, outer);
  EXPECT_NEAR(above / weights, 2, 0.01);
  EXPECT_DOUBLE_EQ(above, 2 * 306 * inner * outer / 312e12);
  EXPECT_EQ(gemm_time(device, NumberFormat::kBf16, 0, inner, outer), 0);
}

TEST(Expert, DbrxOnAmpereAsThePaperHasIt) {
  const ModelShape model = dbrx();
  const NodeShape node{.device = a800()};
  const std::vector<double> one{1}, many{256};
  // 396 MB of weights at 2.04 TB/s; 101.5 GFLOP at 312 TFLOP/s.
  EXPECT_NEAR(expert_layer_time(model, model.layers[0], node, one), 194e-6, 1e-6);
  EXPECT_NEAR(expert_layer_time(model, model.layers[0], node, many), 325e-6, 1e-6);
}

TEST(Expert, ReadsOnlyExpertsWithRows) {
  const ModelShape model = dbrx();
  const NodeShape node{.device = a800()};
  const double one = expert_layer_time(model, model.layers[0], node, std::vector<double>{1});
  EXPECT_DOUBLE_EQ(expert_layer_time(model, model.layers[0], node, std::vector<double>{0, 1, 0}),
                   one);
  EXPECT_NEAR(expert_layer_time(model, model.layers[0], node, std::vector<double>{1, 1}), 2 * one,
              1e-9);
  // Half a row in the mean: read every second time.
  EXPECT_NEAR(expert_layer_time(model, model.layers[0], node, std::vector<double>{0.5}), one / 2,
              1e-9);
  EXPECT_EQ(expert_layer_time(model, model.layers[0], node, std::vector<double>{0, 0}), 0);
}

TEST(Attention, DbrxOnTwoAmpereDevicesAsThePaperHasIt) {
  // 128 rows of 650 tokens over two devices: keys and values 84 us, weights 43 us.
  const ModelShape model = dbrx();
  const NodeShape node{.device = a800(), .tp = 2};
  const StepLoad load{.rows = 128, .context_tokens = 128 * 650.0, .emitting_rows = 128};
  const AttentionLayerParts parts = attention_layer_time(model, model.layers[0], node, load);
  EXPECT_NEAR(parts.attention, 84e-6, 1e-6);
  const double activations = 128 * (6144 + 4096 + 3072 + 6144) * 2.0;
  EXPECT_NEAR(parts.projections, 43e-6 + activations / 2.039e12, 0.5e-6);
  // 1.57 MB in a ring of two over 200 GB/s.
  EXPECT_NEAR(parts.collectives, 128 * 6144 * 2 / 200e9, 1e-12);
  EXPECT_GT(parts.router, 0);
  EXPECT_EQ(parts.overhead, 0);
}

TEST(Attention, WindowsCapWhatIsRead) {
  ModelShape model = dbrx();
  const NodeShape node{.device = a800()};
  const StepLoad load{.rows = 10, .context_tokens = 10 * 5000.0, .emitting_rows = 10};
  const double whole = attention_layer_time(model, model.layers[0], node, load).attention;
  model.layers[0].attention.window = 1000;
  EXPECT_NEAR(attention_layer_time(model, model.layers[0], node, load).attention, whole / 5, 1e-12);
  model.layers[0].attention.window = 8000;
  EXPECT_DOUBLE_EQ(attention_layer_time(model, model.layers[0], node, load).attention, whole);
}

TEST(Attention, LatentOneReadsOneVectorForAllHeadsOnEveryDevice) {
  const ModelShape model = deepseek_v3();
  const StepLoad load{.rows = 64, .context_tokens = 64 * 4096.0, .emitting_rows = 64};
  const Device device = ideal("wide", 80e9, 3.35e12, 1e18);  // Arithmetic costs nothing.
  const double one =
      attention_layer_time(model, model.layers[0], {.device = device, .tp = 1}, load).attention;
  EXPECT_NEAR(one, 64 * 4096.0 * (512 + 64) * 2 / 3.35e12, 1e-12);
  EXPECT_DOUBLE_EQ(
      attention_layer_time(model, model.layers[0], {.device = device, .tp = 8}, load).attention,
      one);
  // On a real device the arithmetic of 128 heads binds: 242 FLOP per byte.
  const double bound =
      attention_layer_time(model, model.layers[0], {.device = a800(), .tp = 1}, load).attention;
  EXPECT_NEAR(bound, 2 * 64 * 4096.0 * 128 * (2 * 512 + 64) / 312e12, 1e-9);
}

TEST(Stages, EmptyOnesCostTheirOverhead) {
  Device device = a800();
  device.efficiency.attention_layer_s = 3e-6;
  device.efficiency.expert_layer_s = 5e-6;
  device.efficiency.step_s = 7e-6;
  const RooflineTimes times(dbrx(), {.device = device}, {.device = device});
  EXPECT_DOUBLE_EQ(times.attention_layer({}), 3e-6);
  EXPECT_DOUBLE_EQ(times.attention_step({}), 7e-6);
  EXPECT_DOUBLE_EQ(times.expert_layer(std::vector<double>{0}), 5e-6);
}

TEST(Stages, GrowWithEveryLoad) {
  for (const ModelShape& model : {dbrx(), qwen3_30b(), deepseek_v3()}) {
    const RooflineTimes times(model, {.device = a800(), .tp = 2}, {.device = a800()});
    double attention = 0, step = 0, expert = 0;
    for (double rows = 1; rows <= 4096; rows *= 2) {
      const StepLoad load{.rows = rows, .context_tokens = rows * 500, .emitting_rows = rows};
      const double now = times.attention_layer(load);
      EXPECT_GT(now, attention);
      attention = now;
      EXPECT_GT(times.attention_step(load), step);
      step = times.attention_step(load);
      const std::vector<double> spread{rows, rows / 2, rows / 2};
      EXPECT_GT(times.expert_layer(spread), expert);
      expert = times.expert_layer(spread);
    }
    const StepLoad longer{.rows = 64, .context_tokens = 64 * 4096.0, .emitting_rows = 64};
    const StepLoad shorter{.rows = 64, .context_tokens = 64 * 512.0, .emitting_rows = 64};
    EXPECT_GT(times.attention_layer(longer), times.attention_layer(shorter));
  }
}

TEST(Stages, DenseLayersOfARoutedModelGetTheNodesShareOfAllTokens) {
  ModelShape model = deepseek_v3();
  const NodeShape node{.device = a800()};
  const RooflineTimes times(model, node, node);
  // 16 routed rows are 2 tokens of top-8; the shared expert has 2 rows.
  const std::vector<double> rows{8, 8, 2}, dense{2};
  const double expected = (3 * expert_layer_time(model, model.layers[0], node, dense) +
                           58 * expert_layer_time(model, model.layers[1], node, rows)) /
                          61;
  EXPECT_DOUBLE_EQ(times.expert_layer(rows), expected);
}

/// Tokens per second of one device that holds all of the model; `context` tokens before each row.
double colocated_rate(const ModelShape& model, double batch, double context) {
  const NodeShape node{.device = h200()};
  const RooflineTimes times(model, node, node);
  const double experts = model.experts(), top_k = model.top_k();
  const double touched = experts * (1 - std::pow(1 - top_k / experts, batch));
  // As many experts as are touched in the mean; the rest of one is a chance.
  std::vector<double> rows;
  for (double left = touched; left > 0; left -= 1) rows.push_back(std::min(left, 1.0));
  const StepLoad load{.rows = batch, .context_tokens = batch * context, .emitting_rows = batch};
  return batch / (model.layer_count() * (times.attention_layer(load) + times.expert_layer(rows)) +
                  times.attention_step(load));
}

TEST(Stages, WholeModelsStayNearAPublishedRoofline) {
  // Weights of touched experts and keys and values, each read once per step, at 4.8 TB/s and 1,500
  // tokens of context. Ours reads activations and logits besides, so it is a little below.
  struct Row {
    ModelShape model;
    double batch, rate;
  };
  for (const Row& row :
       {Row{mixtral_8x7b(), 1, 186}, Row{mixtral_8x7b(), 8, 448}, Row{mixtral_8x7b(), 32, 1544},
        Row{mixtral_8x7b(), 128, 5192}, Row{qwen3_30b(), 1, 772}, Row{qwen3_30b(), 8, 1422},
        Row{qwen3_30b(), 32, 2657}, Row{qwen3_30b(), 128, 7749}}) {
    const double rate = colocated_rate(row.model, row.batch, 1500);
    EXPECT_GT(rate, 0.90 * row.rate) << row.model.hidden << " at " << row.batch;
    EXPECT_LT(rate, 1.05 * row.rate) << row.model.hidden << " at " << row.batch;
  }
}

TEST(Memory, FollowsFormulaEight) {
  // 4 m b_a s h L / g + 2 P_a < tp C_a, with slots and activations besides.
  const ModelShape model = dbrx();
  const NodeShape node{.device = a800(), .tp = 2};
  const AttentionMemory memory = attention_memory(model, node, 16, 3, 128);
  EXPECT_NEAR(memory.weights * 2, 2 * (3.52e9 + 2 * 6144.0 * 100352), 0.02e9 * 2);
  EXPECT_NEAR(sequence_kv_bytes(model, 1), 4.0 * 6144 * 40 / 6, 1);
  EXPECT_NEAR(memory.kv_free,
              node.device.usable_bytes() - memory.weights - memory.slots - memory.activations, 1);
  // A link to each of 16 experts: 6 slots with 128 rows out and back, half of them on each device.
  EXPECT_DOUBLE_EQ(memory.slots, 16 * 6 * 128 * 2 * 6144 * 2.0 / 2);
}

TEST(Memory, ExpertNodesHoldWhatTheyAreGiven) {
  const ModelShape model = dbrx();
  const NodeShape node{.device = a800()};
  const ExpertMemory one = expert_memory(model, node, 1, 8, 3, 128);
  EXPECT_NEAR(one.weights, 15.9e9, 0.1e9);  // The paper's model, one expert of all layers.
  const ExpertMemory two = expert_memory(model, node, 2, 8, 3, 128);
  EXPECT_DOUBLE_EQ(two.weights, 2 * one.weights);
  EXPECT_LT(two.free, one.free);
  const ExpertMemory split = expert_memory(model, {.device = a800(), .tp = 2}, 1, 8, 3, 128);
  EXPECT_DOUBLE_EQ(split.weights, one.weights / 2);
}

TEST(Linear, IsTheSumOfItsTerms) {
  const LinearStageTimes times({.layer = 1,
                                .layer_row = 2,
                                .layer_context = 3,
                                .step = 4,
                                .step_row = 5,
                                .step_emit = 6,
                                .expert_layer = 7,
                                .expert = 8,
                                .expert_row = 9});
  const StepLoad load{.rows = 10, .context_tokens = 100, .emitting_rows = 7};
  EXPECT_DOUBLE_EQ(times.attention_layer(load), 1 + 20 + 300);
  EXPECT_DOUBLE_EQ(times.attention_step(load), 4 + 50 + 42);
  EXPECT_DOUBLE_EQ(times.expert_layer(std::vector<double>{0, 2, 0.5}), 7 + 8 * 1.5 + 9 * 2.5);
}

TEST(Network, PhaseIsTheSlowerEnd) {
  // The paper's own library: 28 us + 8 x 256 KB / 24.2 GB/s = 115 us, measured 116.
  const NetworkTimes network{.latency_s = 28e-6, .bytes_per_s = 24.2e9};
  EXPECT_NEAR(network.phase(8 * 262144, 8 * 262144), 116e-6, 2e-6);
  EXPECT_DOUBLE_EQ(network.phase(1000, 5000), network.phase(5000, 1000));
  EXPECT_DOUBLE_EQ(network.phase(0, 0), 28e-6);
}

}  // namespace
}  // namespace volley::perf
