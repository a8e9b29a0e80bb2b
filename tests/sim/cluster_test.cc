// Goal: the invariants of docs/protocol.md hold for a whole cluster under faults, and it recovers;
// a seed gives the same run twice; the checkers find bugs. Method: random runs (random_run.h) by
// seed, kept seeds of past failures, and planted bugs, each of which must be caught by the checker
// of the invariant that it breaks.
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "sim/abort_seed.h"
#include "sim/random_run.h"

namespace volley::sim {
namespace {

RunResult run(uint64_t seed, Bug bug = Bug::kNone) {
  announce_seed(seed);
  return run_seed(seed, bug);
}

void expect_clean(uint64_t seed) {
  const RunResult result = run(seed);
  ASSERT_EQ(result.violations, "") << "reproduce with cluster_sim --seed " << seed << "\n"
                                   << result.options;
}

TEST(ClusterSim, SafetyUnderFaultsThenLiveness) {
  // Dropping what was queued behind a lost dispatch, by hand in link_closed(), shows first in seed
  // 206.
  constexpr uint64_t kSeeds = 500;
  RunResult total;
  std::set<uint64_t> hashes;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const RunResult result = run(seed);
    ASSERT_EQ(result.violations, "") << "reproduce with cluster_sim --seed " << seed << "\n"
                                     << result.options;
    hashes.insert(result.hash);
    total.dispatches += result.dispatches;
    total.finished += result.finished;
    total.failed += result.failed;
    total.lost += result.lost;
    total.landed_after_failure += result.landed_after_failure;
  }
  EXPECT_EQ(hashes.size(), kSeeds);
  // The runs are worth something: work is done, and the faults do hit it.
  EXPECT_GT(total.dispatches, 50'000u);
  EXPECT_GT(total.finished, 1'000u);
  EXPECT_GT(total.failed, 500u);
  EXPECT_GT(total.lost, 100u);
  EXPECT_GT(total.landed_after_failure, 100u);
}

TEST(ClusterSim, SeedsThatFailedOnce) {
  std::ifstream file(VOLLEY_SOURCE_DIR "/tests/sim/seeds.txt");
  ASSERT_TRUE(file.is_open());
  size_t seeds = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line.front() == '#') continue;
    expect_clean(std::stoull(line));
    ++seeds;
  }
  EXPECT_GT(seeds, 0u);
}

TEST(ClusterSim, OneSeedIsOneRun) {
  for (uint64_t seed : {3u, 14u, 159u}) {
    const RunResult first = run(seed);
    const RunResult second = run(seed);
    EXPECT_EQ(first.hash, second.hash) << "seed " << seed;
    EXPECT_EQ(first.events, second.events) << "seed " << seed;
  }
}

// --- Planted bugs
// ----------------------------------------------------------------------------------------

struct Planted {
  const char* name;
  Bug bug;
  std::vector<std::string> found_as;  ///< Any of these.
};

class PlantedBug : public ::testing::TestWithParam<Planted> {};

TEST_P(PlantedBug, IsCaught) {
  const Planted& planted = GetParam();
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    const RunResult result = run(seed, planted.bug);
    for (const std::string& id : planted.found_as) {
      if (!result.violated(id)) continue;
      RecordProperty("caught_by_seed", std::to_string(seed));
      return;
    }
    ASSERT_EQ(result.violations, "") << "found, but not as what it is; seed " << seed;
  }
  FAIL() << planted.name << " was not caught within 300 seeds";
}

INSTANTIATE_TEST_SUITE_P(
    All, PlantedBug,
    ::testing::Values(Planted{"AcceptStaleAnswer", Bug::kAcceptStaleAnswer, {"LINK-3"}},
                      Planted{"ForgetAnswer", Bug::kForgetAnswer, {"LIVE-2", "LIVE-3"}},
                      Planted{"ReuseSlotEarly", Bug::kReuseSlotEarly, {"SLOT-1"}},
                      Planted{"DropOutput", Bug::kDropOutput, {"P1", "SCHED-2"}},
                      Planted{"SkipRevocation", Bug::kSkipRevocation, {"SLOT-3"}},
                      Planted{"ShareBlock", Bug::kShareBlock, {"KV-1", "P1"}},
                      Planted{"MixAnswers", Bug::kMixAnswers, {"P1"}},
                      Planted{"CombineByArrival", Bug::kCombineByArrival, {"P1"}},
                      Planted{"AnswerTwice", Bug::kAnswerTwice, {"LINK-4"}},
                      Planted{"LeakSequence", Bug::kLeakSequence, {"SCHED-2", "P1", "LIVE-2"}}),
    [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace volley::sim
