#include "sim/random_run.h"

#include <algorithm>

#include "sim/cluster.h"

namespace volley::sim {

namespace {

constexpr Nanos kFaultPhase = 40 * kMillisecond;
constexpr Nanos kFreezeMax = 15 * kMillisecond;
/// Timeouts, the controller and the retries take some 20 ms; sequences a few ms each.
constexpr Nanos kRecoveryBound = 200 * kMillisecond;

ClusterOptions random_options(uint64_t seed, Bug bug) {
  SplitMix64 random(seed ^ 0x5eed);
  const auto pick = [&](uint64_t low, uint64_t high) {
    return static_cast<uint32_t>(low + random.below(high - low + 1));
  };
  ClusterOptions options;
  options.seed = seed;
  options.bug = bug;
  options.attention_nodes = pick(1, 3);
  options.expert_nodes = pick(1, 4);
  options.replicas = std::min(pick(1, 2), options.expert_nodes);
  options.shape = {.layers = pick(1, 4), .experts = pick(options.expert_nodes, 8), .top_k = 1};
  options.shape.top_k = std::min(pick(1, 3), options.shape.experts);
  options.rows_max = pick(1, 6);
  const uint32_t tokens_max = pick(4, 40);
  options.scheduler = {.micro_batches = pick(1, 4),
                       .tokens_per_step_max = pick(1, 12),
                       .sequences_max = pick(1, 10),
                       .waiting_max = pick(1, 12),
                       .block_count = 0,
                       .block_tokens = pick(1, 4),
                       .sequence_tokens_max = tokens_max};
  // From just enough for one sequence, where preemption is the rule, to plenty.
  const uint32_t need =
      (tokens_max + options.scheduler.block_tokens - 1) / options.scheduler.block_tokens;
  options.scheduler.block_count = need + pick(0, 3 * need);
  options.network.links_max = std::max(options.attention_nodes, options.expert_nodes) + pick(0, 2);
  options.network.delay_max = pick(3, 60) * kMicrosecond;
  options.network.straggler = random.chance(0.5) ? 0.02 : 0;
  options.network.duplicate = random.chance(0.5) ? 0.05 : 0;
  options.slow_kernel = random.chance(0.3) ? 0.002 : 0;
  options.bad_numbers = random.chance(0.3) ? 0.001 : 0;
  options.refuse_stale_maps = random.chance(0.3);
  return options;
}

class RandomRun {
 public:
  RandomRun(uint64_t seed, Bug bug)
      : cluster_(random_options(seed, bug)), world_(cluster_.world()) {
    // Some seeds have no faults at all: plain serving, and the tightest demand.
    fault_gap_ =
        world_.random().chance(0.2) ? 0 : world_.between(500 * kMicrosecond, 10 * kMillisecond);
    submit_gap_ = world_.between(50 * kMicrosecond, 2 * kMillisecond);
  }

  RunResult run() {
    arrivals();
    if (fault_gap_ > 0) faults();
    cluster_.run_for(kFaultPhase);
    calm_ = true;
    cluster_.heal();
    demand_liveness();
    return result();
  }

 private:
  void arrivals() {
    if (calm_) return;
    world_.after(world_.between(0, 2 * submit_gap_), [this] { arrivals(); });
    const auto& scheduler = cluster_.options().scheduler;
    const auto node =
        static_cast<uint32_t>(world_.random().below(cluster_.options().attention_nodes));
    // Some requests are too long, some have a deadline, some come in bursts that overflow the
    // queue.
    const uint64_t burst = world_.random().chance(0.05) ? 20 : 1;
    for (uint64_t i = 0; i < burst; ++i) {
      const auto count =
          static_cast<uint32_t>(1 + world_.random().below(scheduler.sequence_tokens_max));
      const Nanos allowed =
          world_.random().chance(0.1) ? world_.between(100 * kMicrosecond, 10 * kMillisecond) : 0;
      const uint64_t id = cluster_.submit(node, cluster_.random_prompt(), count, allowed);
      if (world_.random().chance(0.2)) later_cancel(node, id);
      if (world_.random().chance(0.1)) later_preempt(node, id);
    }
  }
  void later_cancel(uint32_t node, uint64_t id) {
    world_.after(world_.between(0, 3 * kMillisecond), [this, node, id] {
      if (cluster_.attention(node) != nullptr) cluster_.attention(node)->cancel(id);
    });
  }
  void later_preempt(uint32_t node, uint64_t id) {
    world_.after(world_.between(0, 3 * kMillisecond), [this, node, id] {
      if (cluster_.attention(node) != nullptr) cluster_.attention(node)->preempt(id);
    });
  }

  void faults() {
    if (calm_) return;
    world_.after(world_.between(0, 2 * fault_gap_), [this] { faults(); });
    SplitMix64& random = world_.random();
    const auto a = static_cast<uint32_t>(random.below(cluster_.options().attention_nodes));
    const auto e = static_cast<uint32_t>(random.below(cluster_.options().expert_nodes));
    const bool silently = random.chance(0.3);
    const uint64_t kind = random.below(8);
    world_.note(50, kind);
    switch (kind) {
      case 0:
      case 1:
      case 2: {
        const auto links = cluster_.network().open_links();
        if (!links.empty()) cluster_.network().fail(links[random.below(links.size())], silently);
        return;
      }
      case 3:
        cluster_.kill_expert(e, silently);
        world_.after(world_.between(10 * kMicrosecond, 10 * kMillisecond), [this, e] {
          if (cluster_.expert(e) == nullptr) cluster_.start_expert(e);
        });
        return;
      case 4:
        cluster_.kill_attention(a, silently);
        world_.after(world_.between(10 * kMicrosecond, 10 * kMillisecond), [this, a] {
          if (cluster_.attention(a) == nullptr) cluster_.start_attention(a);
        });
        return;
      case 5: {
        const bool to_attention = random.chance(0.5);
        cluster_.network().partition(a, e, to_attention, true);
        if (random.chance(0.3)) cluster_.network().partition(a, e, !to_attention, true);
        world_.after(world_.between(kMillisecond, 15 * kMillisecond), [this, a, e] {
          cluster_.network().partition(a, e, true, false);
          cluster_.network().partition(a, e, false, false);
        });
        return;
      }
      case 6:
        if (cluster_.expert(e) != nullptr) {
          cluster_.expert(e)->freeze(world_.between(100 * kMicrosecond, kFreezeMax));
        }
        return;
      default:
        if (cluster_.attention(a) != nullptr) {
          cluster_.attention(a)->freeze(world_.between(100 * kMicrosecond, kFreezeMax));
        }
    }
  }

  void demand_liveness() {
    Violations& violations = cluster_.checkers().violations;
    if (!cluster_.run_until([this] { return cluster_.ready(); }, kRecoveryBound)) {
      violations.add("LIVE-1", "not ready {} ms after the last fault\n{}",
                     kRecoveryBound / kMillisecond, cluster_.describe());
      return;
    }
    if (!cluster_.run_until([this] { return cluster_.at_rest(); }, kRecoveryBound)) {
      violations.add("LIVE-2", "sequences are left {} ms after recovery\n{}",
                     kRecoveryBound / kMillisecond, cluster_.describe());
      return;
    }
    // Faults may still show once: a process that was frozen last wakes up and finds its links closed,
    // and what is under way on a silent link ends with a status.
    cluster_.run_for(kFreezeMax + 2 * cluster_.options().link_timeout + 3 * kMillisecond);
    if (!cluster_.run_until([this] { return cluster_.ready(); }, kRecoveryBound)) {
      violations.add("LIVE-1", "not ready again after silent links were closed\n{}",
                     cluster_.describe());
      return;
    }
    std::vector<uint64_t> fresh;
    for (uint32_t node = 0; node < cluster_.options().attention_nodes; ++node) {
      const uint32_t half = std::max(1u, cluster_.options().scheduler.sequence_tokens_max / 2);
      fresh.push_back(cluster_.submit(node, {7, 8}, half - 1 > 0 ? half - 1 : 1));
    }
    cluster_.run_for(kMillisecond);
    if (!cluster_.run_until([this] { return cluster_.at_rest(); }, kRecoveryBound)) {
      violations.add("LIVE-3", "new sequences do not finish\n{}", cluster_.describe());
      return;
    }
    for (const uint64_t id : fresh) {
      if (!cluster_.checkers().sequences.ended_ok(id)) {
        violations.add("LIVE-3", "new sequence {} did not finish with OK\n{}", id,
                       cluster_.describe());
      }
    }
    cluster_.check_at_rest();
  }

  RunResult result() {
    const ClusterOptions& o = cluster_.options();
    const SequenceChecker& sequences = cluster_.checkers().sequences;
    return {.violations = cluster_.checkers().violations.text(),
            .options = fmt::format(
                "{} attention, {} expert nodes, {} replicas, {} layers, {} experts, top {}, m {}, "
                "{} rows, {} tokens a step, {} blocks of {}",
                o.attention_nodes, o.expert_nodes, o.replicas, o.shape.layers, o.shape.experts,
                o.shape.top_k, o.scheduler.micro_batches, o.rows_max,
                o.scheduler.tokens_per_step_max, o.scheduler.block_count, o.scheduler.block_tokens),
            .hash = world_.hash(),
            .events = world_.executed(),
            .dispatches = cluster_.checkers().links.posted_count(),
            .finished = sequences.finished(),
            .failed = sequences.failed(),
            .lost = sequences.lost(),
            .landed_after_failure = cluster_.network().landed_after_failure()};
  }

  Cluster cluster_;
  World& world_;
  Nanos fault_gap_ = 0, submit_gap_ = 0;
  bool calm_ = false;
};

}  // namespace

RunResult run_seed(uint64_t seed, Bug bug) {
  return RandomRun(seed, bug).run();
}

}  // namespace volley::sim
