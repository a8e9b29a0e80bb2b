// Goal: modelled engines take exactly the time that the model says, whatever the kernel and the
// real work do to single waits; and what they make up (experts, tokens) depends on the request
// alone. Method: the stages with a clock of the test's own, which records what is slept for.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "modelled_attention.h"
#include "modelled_expert.h"
#include "modelled_router.h"
#include "modelled_time.h"

namespace volley::engine {
namespace {

class TestClock final : public ComputeClock {
 public:
  Nanos now() override { return time; }
  void sleep_until(Nanos until) override {
    slept_until.push_back(until);
    time = until + late;
  }
  Nanos time = 0;
  Nanos late = 0;  // How much later than asked for a sleeper wakes.
  std::vector<Nanos> slept_until;
};

TEST(ModelledTime, RealWorkBeforeATakeIsPartOfIt) {
  auto clock = std::make_shared<TestClock>();
  ModelledTime time("node", clock);
  clock->time = 1'000'000;
  time.begin(clock->time);
  clock->time += 3'000;  // Books.
  time.take(50e-6);
  EXPECT_EQ(clock->slept_until, std::vector<Nanos>{1'050'000});
  time.take(20e-6);
  EXPECT_EQ(clock->slept_until.back(), 1'070'000);
}

TEST(ModelledTime, LatenessShortensTheNextWorkSoThatTheSumIsRight) {
  auto clock = std::make_shared<TestClock>();
  ModelledTime time("node", clock);
  clock->late = 7'000;
  for (int i = 0; i < 100; ++i) {
    time.begin(clock->time);
    time.take(50e-6);
    clock->time += 4'000;  // Rows are packed and sent.
    time.end(clock->time);
  }
  // All works together end as late as one does, and not a hundred times that.
  EXPECT_EQ(clock->time, 100 * 50'000 + 7'000 + 4'000);
  EXPECT_EQ(time.lost(), 0);
}

TEST(ModelledTime, WorkLongerThanItsTimeIsNotSleptFor) {
  auto clock = std::make_shared<TestClock>();
  ModelledTime time("node", clock);
  time.begin(0);
  clock->time = 60'000;
  time.take(50e-6);
  EXPECT_TRUE(clock->slept_until.empty());
  time.end(clock->time);
  time.begin(100'000);
  time.take(50e-6);
  EXPECT_EQ(clock->slept_until, std::vector<Nanos>{140'000});
}

TEST(ModelledTime, ALongStandstillIsNotMadeUpFor) {
  auto clock = std::make_shared<TestClock>();
  ModelledTime time("node", clock);
  time.begin(0);
  time.take(50e-6);
  clock->time += kSecond;
  time.end(clock->time);
  EXPECT_EQ(time.lost(), kSecond - ModelledTime::kLateMax);
  const Nanos start = clock->time;
  time.begin(start);
  time.take(20e-3);
  EXPECT_EQ(clock->slept_until.back(), start + 20 * kMillisecond - ModelledTime::kLateMax);
}

model::ModelSpec spec_of(uint32_t layers, uint32_t experts, uint32_t top_k) {
  model::ModelSpec spec;
  spec.vocab = 1000;
  spec.hidden = 64;
  spec.eos_tokens = {2};
  spec.layers.resize(layers);
  for (model::LayerSpec& layer : spec.layers) {
    layer.moe.experts = experts;
    layer.moe.top_k = top_k;
  }
  return spec;
}

/// Chunks with their tokens: a plan borrows them.
struct Plan {
  struct Part {
    uint32_t start, rows;
    bool emits;
  };
  explicit Plan(const std::vector<Part>& parts) {
    for (const Part& part : parts) {
      auto& own = tokens.emplace_back();
      for (uint32_t i = 0; i < part.rows; ++i) own.push_back(static_cast<int32_t>(part.start + i));
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      plan.chunks.push_back({.sequence = SequenceId{i + 1},
                             .first_row = plan.row_count,
                             .row_count = parts[i].rows,
                             .start_position = parts[i].start,
                             .emits = parts[i].emits,
                             .tokens = tokens[i],
                             .blocks = {}});
      plan.row_count += parts[i].rows;
    }
  }
  std::vector<std::vector<int32_t>> tokens;
  scheduler::StepPlan plan;
};

constexpr perf::LinearTimes kTimes{.layer = 100e-6,
                                   .layer_row = 10e-6,
                                   .layer_context = 1e-6,
                                   .step = 200e-6,
                                   .step_row = 3e-6,
                                   .step_emit = 30e-6,
                                   .expert_layer = 50e-6,
                                   .expert = 20e-6,
                                   .expert_row = 2e-6};

ModelledCompute compute_with(std::shared_ptr<TestClock> clock) {
  return {.times = std::make_shared<perf::LinearStageTimes>(kTimes), .clock = std::move(clock)};
}

TEST(ModelledAttention, TakesTheTimeOfTheStepsRowsAndContext) {
  auto clock = std::make_shared<TestClock>();
  model::ModelSpec spec = spec_of(3, 8, 2);
  spec.layers[1].attention.window = 16;
  spec.layers[2].attention.window = 42;
  ModelledAttention stage({.name = "a", .row_bytes = 128, .rows_max = 64}, spec,
                          compute_with(clock));
  // A decode at position 40, and a chunk of a prompt at 10..13 that does not emit.
  Plan plan({{40, 1, true}, {10, 4, false}});
  const auto duration = [&](auto&& work) {
    const Nanos start = clock->time;
    stage.begin_work(start);
    work();
    stage.end_work(clock->time);
    return clock->time - start;
  };
  const auto layer = [&](uint32_t index) {
    return duration([&] { EXPECT_EQ(stage.attention(0, index, plan.plan).size(), 5 * 2u); });
  };
  // 5 rows; contexts 41 and 11 + 12 + 13 + 14.
  EXPECT_EQ(layer(0), 100'000 + 5 * 10'000 + (41 + 50) * 1'000);
  EXPECT_EQ(layer(1), 100'000 + 5 * 10'000 + (16 + 50) * 1'000);
  EXPECT_EQ(layer(2), 100'000 + 5 * 10'000 + (41 + 50) * 1'000);
  EXPECT_EQ(duration([&] { EXPECT_EQ(stage.head(0, plan.plan, 0).size(), 1u); }),
            200'000 + 5 * 3'000 + 1 * 30'000);
  EXPECT_EQ(duration([&] { EXPECT_TRUE(stage.head(0, plan.plan, 1).empty()); }), 0);

  // A chunk that enters the window: contexts 14, 15, 16, 16, 16.
  Plan entering({{13, 5, true}});
  EXPECT_EQ(duration([&] { stage.attention(0, 1, entering.plan); }),
            100'000 + 5 * 10'000 + 77 * 1'000);
}

TEST(ModelledAttention, TokensDependOnSeedPositionAndTheTokenBefore) {
  const model::ModelSpec spec = spec_of(1, 8, 2);
  ModelledAttention stage({.name = "a", .row_bytes = 128, .rows_max = 64}, spec,
                          compute_with(std::make_shared<TestClock>()));
  kernels::SampleScratch scratch;
  const auto token = [&](const Plan& plan, uint32_t chunk, uint64_t seed) {
    stage.begin_work(0);
    stage.head(0, plan.plan, 0);
    return stage.sample(chunk, {.seed = seed}, scratch);
  };
  Plan alone({{30, 1, true}}), in_a_chunk({{0, 5, true}, {28, 3, true}}), other({{31, 1, true}});
  const auto expected = token(alone, 0, 7);
  EXPECT_EQ(token(in_a_chunk, 1, 7).token, expected.token);
  EXPECT_EQ(token(in_a_chunk, 1, 7).logits_digest, expected.logits_digest);
  EXPECT_NE(token(other, 0, 7).logits_digest, expected.logits_digest);
  std::set<int32_t> tokens;
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    const auto drawn = token(alone, 0, seed);
    EXPECT_TRUE(drawn.token >= 0 && drawn.token < 1000 && drawn.token != 2) << drawn.token;
    tokens.insert(drawn.token);
  }
  EXPECT_GT(tokens.size(), 950u);
}

TEST(ModelledExpert, TakesTheTimeOfItsRowsAndOfTheExpertsThatHaveSome) {
  auto clock = std::make_shared<TestClock>();
  const std::vector<model::ExpertWeights::Key> keys = {{0, 1}, {0, 5}, {0, 7}, {1, 2}};
  auto stage = ModelledExpert::create("e", spec_of(2, 8, 2), keys, compute_with(clock));
  ASSERT_TRUE(stage.ok()) << stage.status();
  EXPECT_TRUE((*stage)->holds(0, 5));
  EXPECT_FALSE((*stage)->holds(1, 5));
  const ExpertStage::Group groups[] = {{1, 0, 4}, {7, 4, 6}};
  (*stage)->begin_run(0);
  (*stage)->ffn(0, groups, {}, {});
  EXPECT_EQ(clock->time, 50'000 + 2 * 20'000 + 10 * 2'000);
}

TEST(ModelledExpert, AnExpertThatDoesNotExistIsRefused) {
  const std::vector<model::ExpertWeights::Key> expert = {{0, 8}}, layer = {{2, 0}};
  for (const auto& keys : {expert, layer}) {
    const auto stage = ModelledExpert::create("e", spec_of(2, 8, 2), keys,
                                              compute_with(std::make_shared<TestClock>()));
    EXPECT_EQ(stage.status().code(), StatusCode::kInvalidArgument);
  }
}

/// How often each expert is chosen in `rows` rows of a layer.
std::vector<uint32_t> counts(const ModelledRouter& router, uint32_t layer, uint32_t experts,
                             uint32_t top_k, uint32_t rows) {
  std::vector<uint32_t> count(experts, 0), chosen(top_k);
  for (uint32_t row = 0; row < rows; ++row) {
    router.choose(layer, row, static_cast<int32_t>(row * 31), chosen.data());
    EXPECT_TRUE(std::ranges::is_sorted(chosen));
    EXPECT_EQ(std::ranges::adjacent_find(chosen), chosen.end());
    for (const uint32_t expert : chosen) ++count.at(expert);
  }
  return count;
}

TEST(ModelledRouter, UniformChoiceIsEven) {
  const ModelledRouter router(3, 0, 2, 16, 4);
  for (const uint32_t count : counts(router, 1, 16, 4, 20'000)) {
    // 5000 of 20000: five standard deviations are 306.
    EXPECT_NEAR(count, 5000, 306);
  }
}

TEST(ModelledRouter, SkewFollowsZipfAndEveryLayerHasItsOwnHotExperts) {
  const ModelledRouter router(3, 1.0, 2, 8, 1);
  auto first = counts(router, 0, 8, 1, 20'000), second = counts(router, 1, 8, 1, 20'000);
  EXPECT_NE(first, second);
  std::ranges::sort(first, std::greater());
  const double sum = 1 + 1. / 2 + 1. / 3 + 1. / 4 + 1. / 5 + 1. / 6 + 1. / 7 + 1. / 8;
  for (uint32_t rank = 0; rank < 8; ++rank) {
    EXPECT_NEAR(first[rank], 20'000 / sum / (rank + 1), 360) << rank;
  }
}

TEST(ModelledRouter, ExtremeSkewStillChoosesDistinctExperts) {
  const ModelledRouter router(3, 10, 1, 4, 4);
  EXPECT_EQ(counts(router, 0, 4, 4, 10), std::vector<uint32_t>(4, 10));
}

}  // namespace
}  // namespace volley::engine
