#pragma once

// SCHED-2  every accepted sequence ends exactly once, and has no output after its end;
// P1       its tokens are those of the reference, in order and complete.

#include <map>
#include <utility>
#include <vector>

#include "sim/checkers/violations.h"
#include "sim/model.h"
#include "volley/scheduler/sequence.h"

namespace volley::sim {

class SequenceChecker {
 public:
  SequenceChecker(ModelShape shape, Violations& violations)
      : shape_(shape), violations_(violations) {}

  void accepted(uint64_t node_life, const scheduler::SequenceRequest& request) {
    auto& entry = sequences_[request.id.value];
    entry.node_life = node_life;
    entry.expected =
        reference_tokens(shape_, request.tokens, request.max_new_tokens, request.stop_tokens);
    ++live_;
  }
  void output(const scheduler::SequenceOutput& output) {
    const auto found = sequences_.find(output.id.value);
    if (found == sequences_.end()) {
      violations_.add("SCHED-2", "output for sequence {}, which was not accepted", output.id.value);
      return;
    }
    Entry& entry = found->second;
    if (entry.ended) {
      violations_.add("SCHED-2", "output for sequence {} after its end", output.id.value);
      return;
    }
    if (output.token >= 0) {
      if (entry.received >= entry.expected.size() ||
          entry.expected[entry.received] != output.token) {
        violations_.add(
            "P1", "sequence {}: token {} is {}, the reference has {}", output.id.value,
            entry.received, output.token,
            entry.received < entry.expected.size() ? entry.expected[entry.received] : -1);
      }
      ++entry.received;
    }
    if (!output.ended()) return;
    entry.ended = true;
    entry.ok = output.status.ok();
    --live_;
    ++(entry.ok ? finished_ : failed_);
    if (entry.ok && entry.received != entry.expected.size()) {
      violations_.add("P1", "sequence {} finished with {} tokens, the reference has {}",
                      output.id.value, entry.received, entry.expected.size());
    }
  }
  /// The process that had accepted them is dead; the frontend's replay is not part of this.
  void node_died(uint64_t node_life) {
    for (auto& [id, entry] : sequences_) {
      if (entry.node_life != node_life || entry.ended) continue;
      entry.ended = true;
      --live_;
      ++lost_;
    }
  }
  bool ended_ok(uint64_t id) const { return sequences_.contains(id) && sequences_.at(id).ok; }
  bool ended(uint64_t id) const { return sequences_.contains(id) && sequences_.at(id).ended; }
  void at_rest() {
    for (const auto& [id, entry] : sequences_) {
      if (!entry.ended) violations_.add("SCHED-2", "sequence {} never ended", id);
    }
  }
  uint64_t live() const { return live_; }
  uint64_t finished() const { return finished_; }
  uint64_t failed() const { return failed_; }
  uint64_t lost() const { return lost_; }

 private:
  struct Entry {
    uint64_t node_life = 0;
    std::vector<int32_t> expected;
    size_t received = 0;
    bool ended = false, ok = false;
  };
  ModelShape shape_;
  Violations& violations_;
  std::map<uint64_t, Entry> sequences_;
  uint64_t live_ = 0, finished_ = 0, failed_ = 0, lost_ = 0;
};

}  // namespace volley::sim
