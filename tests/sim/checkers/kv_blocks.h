#pragma once

// KV-1  a block is in the table of at most one sequence that runs;
// KV-2  an idle node has all its blocks free, and never more than it has.

#include <cstdint>
#include <map>
#include <vector>

#include "sim/checkers/sequences.h"
#include "sim/checkers/violations.h"
#include "volley/scheduler/batch_scheduler.h"

namespace volley::sim {

/// For one life of one attention node.
class KvChecker {
 public:
  KvChecker(const SequenceChecker& sequences, Violations& violations)
      : sequences_(sequences), violations_(violations) {}

  void step_began(uint32_t micro_batch, const scheduler::StepPlan& plan) {
    auto& held = steps_[micro_batch];
    held.clear();
    for (const scheduler::Chunk& chunk : plan.chunks) {
      for (const uint32_t block : chunk.blocks) held.emplace_back(block, chunk.sequence.value);
    }
    std::map<uint32_t, uint64_t> owner;
    for (const auto& [index, blocks] : steps_) {
      for (const auto& [block, sequence] : blocks) {
        // An aborted step gives its blocks back at once. (Those of a cancelled sequence stay taken;
        // were they not, P1 would see the rows that its step still writes.)
        if (sequences_.ended(sequence)) continue;
        const auto [place, fresh] = owner.emplace(block, sequence);
        if (fresh) continue;
        violations_.add("KV-1", "block {} is in the tables of sequences {} and {}", block,
                        place->second, sequence);
      }
    }
  }
  void step_ended(uint32_t micro_batch) { steps_[micro_batch].clear(); }
  void stats(const scheduler::BatchScheduler::Stats& stats, bool idle) {
    if (stats.blocks_free > stats.blocks_total ||
        (idle && stats.blocks_free != stats.blocks_total)) {
      violations_.add("KV-2", "{} of {} blocks are free{}", stats.blocks_free, stats.blocks_total,
                      idle ? " on an idle node" : "");
    }
  }

 private:
  const SequenceChecker& sequences_;
  Violations& violations_;
  std::map<uint32_t, std::vector<std::pair<uint32_t, uint64_t>>> steps_;
};

}  // namespace volley::sim
