// Goal: the search finds the best plan, says what binds, and refuses what cannot be.
// Method: exhaustive enumeration, written here, on small random spaces of random devices and
// models; the paper's measured figures (Fig. 13) as node model; hand-made bottlenecks.

#include "volley/planner/search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "fakes.h"
#include "volley/base/random.h"
#include "volley/planner/colocated.h"

namespace volley::planner {
namespace {

using ::testing::HasSubstr;

/// The most of the objective over all plans of the space, every number of rows tried.
Candidate brute_force(const PlanModel& model, const SearchSpace& space) {
  Candidate best;
  const auto offer = [&](Plan plan) {
    for (plan.rows = 1; plan.rows <= model.planning().rows_max; ++plan.rows) {
      if (!model.fits(plan) || !model.meets_slo(plan)) continue;
      const Prediction prediction = model.predict(plan);
      if (prediction.value > best.prediction.value) best = {plan, prediction};
    }
  };
  const auto& devices = model.planning().devices;
  for (uint32_t a = 0; space.disaggregated && a < devices.size(); ++a) {
    for (uint32_t e = 0; e < devices.size(); ++e) {
      for (const uint32_t attention_tp : space.attention_tp) {
        for (const uint32_t expert_tp : space.expert_tp) {
          if (attention_tp > devices[a].per_node || expert_tp > devices[e].per_node) continue;
          if (!model.can_slice_attention(attention_tp) || !model.can_slice_experts(expert_tp)) {
            continue;
          }
          for (uint32_t replicas = 1; replicas <= space.replicas_max; ++replicas) {
            for (uint32_t nodes = 1; nodes <= model.experts() * replicas; ++nodes) {
              for (uint32_t m = space.micro_batches_min; m <= space.micro_batches_max; ++m) {
                Plan plan{.attention = {.device = a, .tp = attention_tp, .nodes = 1},
                          .expert = {.device = e, .tp = expert_tp, .nodes = nodes},
                          .replicas = replicas,
                          .micro_batches = m};
                for (; plan.gpus() <= space.gpus_max; ++plan.attention.nodes) offer(plan);
              }
            }
          }
        }
      }
    }
  }
  if (space.colocated) for_each_colocated(model, space, offer);
  return best;
}

perf::Device random_device(SplitMix64& random, const std::string& name) {
  perf::Device device = test_device(name);
  const auto vary = [&](double& figure) { figure *= std::exp2(4 * random.unit() - 2); };
  vary(device.memory_bytes);
  vary(device.memory_bytes_per_s);
  vary(device.flops[static_cast<size_t>(perf::NumberFormat::kBf16)]);
  vary(device.network_bytes_per_s);
  vary(device.price);
  vary(device.watts);
  device.per_node = random.chance(0.5) ? 2 : 1;
  device.efficiency.message_s = 50e-6 * random.unit();
  device.efficiency.attention_layer_s = 50e-6 * random.unit();
  device.efficiency.expert_layer_s = 20e-6 * random.unit();
  device.efficiency.collective_s = 20e-6 * random.unit();
  return device;
}

TEST(Search, AgreesWithExhaustiveEnumeration) {
  int found_count = 0;
  std::set<Layout> layouts;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SplitMix64 random(seed);
    PlanningCase planning;
    planning.devices = {random_device(random, "A"), random_device(random, "B")};
    planning.objective = static_cast<Objective>(random.below(3));
    planning.workload.context_cv = random.chance(0.5) ? random.unit() : 0;
    planning.workload.expert_skew = 0;
    planning.workload.input_tokens = std::exp2(6 + 8 * random.unit());
    planning.slo.tpot_s = 0.02 * std::exp2(4 * random.unit());
    planning.slo.tpot_p99_s = random.chance(0.3) ? 1.1 * planning.slo.tpot_s : 0;
    planning.spare_expert_node = random.chance(0.2);
    planning.pre_reduce = random.chance(0.3);
    planning.rows_max = 48;
    SearchSpace space;
    space.attention_tp = {1, 2};
    space.expert_tp = {1, 2};
    space.stages = {1, 2};
    space.micro_batches_max = 3;
    space.replicas_max = 1;
    space.gpus_max = 10;
    const auto experts = static_cast<uint32_t>(std::size_t{2} << random.below(3));
    const perf::ModelShape shape =
        test_model(static_cast<uint32_t>(4 + random.below(40)), 4096, grouped_attention(32, 8, 128),
                   {.experts = experts,
                    .top_k = static_cast<uint32_t>(1 + random.below(experts)),
                    .width = random.chance(0.5) ? 14336u : 1536u,
                    .shared_width = random.chance(0.3) ? 1536u : 0u});
    const RooflineNodes nodes(shape);
    const PlanModel model(shape, nodes, planning);
    const Candidate best = brute_force(model, space);
    const auto found = search(shape, nodes, planning, space);
    if (best.prediction.value == 0) {
      EXPECT_EQ(found.status().code(), StatusCode::kFailedPrecondition) << seed;
      continue;
    }
    ASSERT_TRUE(found.ok()) << seed << ": " << message_of(found.status());
    ++found_count;
    const Candidate& winner = found->best.front();
    layouts.insert(winner.plan.layout);
    EXPECT_NEAR(winner.prediction.value, best.prediction.value, 1e-8 * best.prediction.value)
        << "seed " << seed << " found " << kind_of(planning, winner.plan) << " nodes "
        << winner.plan.attention.nodes << "+" << winner.plan.expert.nodes << " rows "
        << winner.plan.rows << ", there is " << kind_of(planning, best.plan) << " nodes "
        << best.plan.attention.nodes << "+" << best.plan.expert.nodes << " m "
        << best.plan.micro_batches << " rows " << best.plan.rows;
    EXPECT_TRUE(model.fits(winner.plan));
    EXPECT_TRUE(model.meets_slo(winner.plan));
    EXPECT_LE(winner.plan.gpus(), space.gpus_max);
    EXPECT_LE(found->counts.priced, found->counts.plans);
  }
  // The draws reach what they are to test.
  EXPECT_GT(found_count, 30);
  EXPECT_TRUE(layouts.contains(Layout::kDisaggregated));
  EXPECT_GT(layouts.size(), 1u);
}

TEST(Search, FindsThePapersDeploymentOfDbrx) {
  // Fig. 13: T_a about 500 us at 128 rows, T_e by rows of an expert as decoded from the figure;
  // keys and values of 384 sequences fit on an attention node.
  FakeNodes nodes;
  nodes.attention_layer = [](const perf::NodeShape&, const perf::StepLoad&) { return 500e-6; };
  nodes.expert_layer = [](const perf::NodeShape&, std::span<const double> rows) {
    constexpr std::array<std::pair<double, double>, 5> kTimes = {
        {{0, 300e-6}, {128, 440e-6}, {256, 575e-6}, {384, 833e-6}, {512, 1017e-6}}};
    for (size_t i = 1; i < kTimes.size(); ++i) {
      const auto [x0, y0] = kTimes[i - 1];
      const auto [x1, y1] = kTimes[i];
      if (rows[0] <= x1) return y0 + (rows[0] - x0) / (x1 - x0) * (y1 - y0);
    }
    return 1017e-6 + 1.43e-6 * (rows[0] - 512);
  };
  const perf::ModelShape model = dbrx();
  PlanningCase planning;
  planning.devices = {test_device("A800")};
  planning.devices[0].efficiency.message_s = 28e-6;
  planning.devices[0].efficiency.network = perf::Curve(0.968);
  planning.workload.context_cv = 0;  // The figure's times have their stragglers in them.
  planning.message_tail_s = 0;
  nodes.kv_bytes_free = 384.5 * device_kv_bytes(model, 2, planning.workload.context_tokens());
  nodes.experts_max = 1;  // One expert per node.
  SearchSpace space;
  space.attention_tp = {2};
  space.expert_tp = {1};
  space.replicas_max = 1;
  space.micro_batches_min = space.micro_batches_max = 3;
  space.colocated = false;
  const PlanModel plans(model, nodes, planning);
  // Without random routing: rows are the mean's in the figure.
  Plan plan{.attention = {.device = 0, .tp = 2, .nodes = 1},
            .expert = {.device = 0, .tp = 1, .nodes = 16},
            .micro_batches = 3};
  double best = 0;
  uint32_t best_nodes = 0;
  for (const auto& [data_parallel, tpot_ms, rate] : {std::tuple{1u, 60.0, 355.6},
                                                     {2u, 61.0, 629.5},
                                                     {4u, 62.0, 1032.2},
                                                     {8u, 69.0, 1391.3},
                                                     {12u, 100.0, 1152.0},
                                                     {16u, 122.0, 1049.2}}) {
    plan.attention.nodes = data_parallel;
    const auto prediction = plans.fill(plan);
    ASSERT_TRUE(prediction);
    EXPECT_EQ(plan.rows, 128u);
    EXPECT_EQ(plan.rows * plan.micro_batches, 384u);
    EXPECT_EQ(prediction->row_limit, RowLimit::kMemory);
    // The figure has the mean load; ours that of the slowest of 16 experts, up to 14 % more rows.
    EXPECT_NEAR(prediction->tpot_s * 1e3, tpot_ms, 0.12 * tpot_ms) << data_parallel;
    EXPECT_NEAR(prediction->value, rate, 0.12 * rate) << data_parallel;
    if (prediction->value > best) {
      best = prediction->value;
      best_nodes = data_parallel;
    }
  }
  EXPECT_EQ(best_nodes, 8u);
  const auto found = search(model, nodes, planning, space);
  ASSERT_TRUE(found.ok()) << message_of(found.status());
  EXPECT_EQ(found->best[0].plan.rows, 128u);
  EXPECT_EQ(found->best[0].plan.expert.nodes, 16u);
  EXPECT_NEAR(found->best[0].plan.attention.nodes, 8, 1);
}

TEST(Search, ChoosesTheDevicesByWhatEachPoolNeeds) {
  // The paper's Table 3: attention on the one with bandwidth and memory per cost, experts on the
  // one with compute per cost.
  const auto device = [](const char* name, double price, double gigabytes, double gigabytes_per_s,
                         double teraflops) {
    perf::Device figures = test_device(name);
    figures.price = price;
    figures.memory_bytes = gigabytes * 1e9;
    figures.memory_bytes_per_s = gigabytes_per_s * 1e9;
    figures.flops[static_cast<size_t>(perf::NumberFormat::kBf16)] = teraflops * 1e12;
    figures.network_bytes_per_s = 50e9;
    return figures;
  };
  PlanningCase planning;
  planning.objective = Objective::kPerCost;
  planning.devices = {device("L20", 1, 48, 864, 119.5), device("H800", 5.28, 80, 3430.4, 989),
                      device("A800", 2.26, 80, 2039, 312), device("H20", 1.85, 96, 4096, 148),
                      device("L40S", 1.08, 48, 864, 362)};
  SearchSpace space;
  space.colocated = false;
  space.gpus_max = 128;
  const perf::ModelShape shape = dbrx();
  const RooflineNodes nodes(shape);
  const auto found = search(shape, nodes, planning, space);
  ASSERT_TRUE(found.ok()) << message_of(found.status());
  EXPECT_EQ(kind_of(planning, found->best[0].plan),
            "disaggregated, attention on H20, experts on L40S");
  EXPECT_EQ(found->best.size() + found->rejected.size(), 25u);
  for (size_t i = 1; i < found->best.size(); ++i) {
    EXPECT_GE(found->best[i - 1].prediction.value, found->best[i].prediction.value);
  }
}

struct Small {
  PlanningCase planning;
  SearchSpace space;
  perf::ModelShape shape =
      test_model(8, 2048, grouped_attention(16, 4, 128), {.experts = 8, .top_k = 2, .width = 4096});
  Small() {
    planning.devices = {test_device("G")};
    planning.rows_max = 256;
    space.gpus_max = 16;
  }
  Result<SearchResult> run() const { return search(shape, RooflineNodes(shape), planning, space); }
};

TEST(Search, SaysWhatIsInTheWay) {
  Small memory;
  memory.planning.devices[0].memory_bytes = 0.01e9;
  EXPECT_EQ(memory.run().status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(message_of(memory.run().status()), HasSubstr("memory: "));
  EXPECT_THAT(message_of(memory.run().status()), HasSubstr("disaggregated on G"));
  EXPECT_THAT(message_of(memory.run().status()), HasSubstr("colocated TP on G"));

  Small slow;
  slow.planning.slo.tpot_s = 1e-6;
  EXPECT_THAT(message_of(slow.run().status()), HasSubstr("SLO: with one sequence"));
  EXPECT_THAT(message_of(slow.run().status()), HasSubstr("limit 0.0 ms"));
}

TEST(Search, RejectsGarbage) {
  const auto code = [](const std::function<void(Small&)>& spoil) {
    Small small;
    spoil(small);
    return small.run().status().code();
  };
  constexpr auto kBad = StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](Small& s) { s.planning.devices.clear(); }), kBad);
  EXPECT_EQ(code([](Small& s) { s.planning.devices[0].network_bytes_per_s = 0; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.planning.workload.input_tokens = -1; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.planning.workload.output_tokens = NAN; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.planning.workload.context_cv = INFINITY; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.planning.slo.tpot_s = -0.1; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.planning.rows_max = 0; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.space.attention_tp.clear(); }), kBad);
  EXPECT_EQ(code([](Small& s) { s.space.expert_tp = {0}; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.space.gpus_max = 0; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.space.gpus_max = 1'000'000; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.space.micro_batches_min = 5; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.space.disaggregated = s.space.colocated = false; }), kBad);
  EXPECT_EQ(code([](Small& s) { s.shape.layers.clear(); }), kBad);
  EXPECT_EQ(code([](Small& s) {
              s.planning.objective = Objective::kPerCost;
              s.planning.devices[0].price = 0;
            }),
            kBad);
  EXPECT_EQ(code([](Small&) {}), StatusCode::kOk);
}

TEST(Search, SpareRoomHoldsALostNodesExperts) {
  Small small;
  small.planning.spare_expert_node = true;
  small.space.colocated = false;
  const auto found = small.run();
  ASSERT_TRUE(found.ok());
  EXPECT_GT(found->best[0].plan.expert.nodes, 1u);
  FakeNodes nodes;
  nodes.attention_layer = [](const auto&, const auto&) { return 1e-4; };
  nodes.expert_layer = [](const auto&, const auto&) { return 1e-4; };
  nodes.experts_max = 2;
  const PlanModel tight(small.shape, nodes, small.planning);
  // 8 experts, 2 per node: 4 nodes hold them, a fifth can be lost.
  EXPECT_FALSE(tight.experts_fit({.device = 0, .tp = 1, .nodes = 4}, 1, 1, 1, 1));
  EXPECT_TRUE(tight.experts_fit({.device = 0, .tp = 1, .nodes = 5}, 1, 1, 1, 1));
}

TEST(Search, BottleneckFollowsTheSlowestPart) {
  Small small;
  FakeNodes nodes;
  double attention = 3e-4, experts = 1e-4;
  nodes.attention_layer = [&](const auto&, const auto&) { return attention; };
  nodes.expert_layer = [&](const auto&, const auto&) { return experts; };
  Plan plan{.attention = {.device = 0, .tp = 1, .nodes = 2},
            .expert = {.device = 0, .tp = 1, .nodes = 2},
            .micro_batches = 4,
            .rows = 8};
  const auto bottleneck = [&] {
    return PlanModel(small.shape, nodes, small.planning).predict(plan).bottleneck;
  };
  EXPECT_EQ(bottleneck(), Bottleneck::kAttention);
  std::swap(attention, experts);
  EXPECT_EQ(bottleneck(), Bottleneck::kExperts);
  small.planning.devices[0].network_bytes_per_s = 0.1e9;
  EXPECT_EQ(bottleneck(), Bottleneck::kNetwork);
  small.planning.devices[0].network_bytes_per_s = 25e9;
  plan.micro_batches = 1;
  EXPECT_EQ(bottleneck(), Bottleneck::kLatency);
}

TEST(Search, ExpertNodeCountsAreTheFewestForEachShare) {
  EXPECT_EQ(expert_node_counts(8, 1, false, 100), (std::vector<uint32_t>{1, 2, 3, 4, 8}));
  EXPECT_EQ(expert_node_counts(8, 1, false, 5), (std::vector<uint32_t>{1, 2, 3, 4}));
  EXPECT_EQ(expert_node_counts(4, 2, false, 100), (std::vector<uint32_t>{1, 2, 3, 4, 8}));
  EXPECT_EQ(expert_node_counts(8, 1, true, 100), (std::vector<uint32_t>{1, 2, 3, 4, 5, 8}));
}

TEST(Search, LatentCacheIsNotSlicedByTensorParallelism) {
  perf::ModelShape model = dbrx();
  EXPECT_DOUBLE_EQ(device_kv_bytes(model, 8, 100), device_kv_bytes(model, 1, 100) / 8);
  EXPECT_DOUBLE_EQ(device_kv_bytes(model, 16, 100), device_kv_bytes(model, 8, 100));
  model.layers[0].attention.window = 50;
  EXPECT_DOUBLE_EQ(device_kv_bytes(model, 1, 100), device_kv_bytes(model, 1, 50));
  model.layers[0].attention.kind = perf::AttentionShape::Kind::kLatent;
  model.layers[0].attention.kv_rank = 512;
  EXPECT_DOUBLE_EQ(device_kv_bytes(model, 8, 100), device_kv_bytes(model, 1, 100));
}

TEST(Search, SensitivityChangesOneThingEach) {
  Small small;
  small.space.colocated = false;
  const RooflineNodes nodes(small.shape);
  const auto found = small.run();
  ASSERT_TRUE(found.ok());
  const Candidate& winner = found->best[0];
  const auto changes = sensitivity(small.shape, nodes, small.planning, small.space, winner.plan);
  ASSERT_EQ(changes.size(), 4u);
  EXPECT_EQ(changes[0].change, "network +20 %");
  ASSERT_TRUE(changes[0].best_plan);
  EXPECT_GE(changes[0].best_plan->prediction.value, winner.prediction.value);
  ASSERT_TRUE(changes[1].same_plan);
  EXPECT_EQ(changes[1].same_plan->plan.attention.nodes, winner.plan.attention.nodes + 1);
  EXPECT_LE(changes[1].same_plan->prediction.value, winner.prediction.value * (1 + 1e-9));
  EXPECT_EQ(changes[3].change, "context x2");
  ASSERT_TRUE(changes[3].best_plan);
  EXPECT_LT(changes[3].best_plan->prediction.value, winner.prediction.value);
}

}  // namespace
}  // namespace volley::planner
