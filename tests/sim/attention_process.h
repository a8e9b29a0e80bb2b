#pragma once

// An attention node: the production AttentionCore and BatchScheduler in a shell that models only
// the kernels.

#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "sim/process.h"
#include "volley/scheduler/attention_core.h"

namespace volley::sim {

class AttentionProcess : public Process {
 public:
  AttentionProcess(World& world, Network& network, Checkers& checkers,
                   const ProcessOptions& options, const scheduler::SchedulerOptions& scheduler,
                   std::string name, uint64_t incarnation);

  /// From the control plane and the frontend: crosses to the engine thread through a mailbox.
  void set_map(std::shared_ptr<const protocol::ExpertMap> map);
  void submit(scheduler::SequenceRequest request);
  void cancel(uint64_t sequence);
  void preempt(uint64_t sequence);

  bool ready() const { return core_.ready().ok(); }
  /// No sequence, and every micro-batch has all its answers.
  bool at_rest();
  void check();
  bool linked_to(const std::string& node, uint64_t incarnation) const;
  /// A link to that process was made, and kOpened has not been handled yet.
  bool connecting_to(uint64_t incarnation) const { return connecting_.contains(incarnation); }
  void set_connecting(uint64_t incarnation) { connecting_.insert(incarnation); }
  std::vector<uint32_t> links() const;
  uint64_t rejected() const { return rejected_; }
  /// What the node knows of its micro-batches, for a failure's report.
  std::string describe() const;

 protected:
  void turn() override;
  void tick() override;

 private:
  struct Link {
    std::string node;
    uint64_t incarnation = 0;
    std::vector<protocol::MessageHeader> posted;  ///< By slot.
  };

  void take(const Arrival& arrival);
  void take_message(Link& link, const Arrival& arrival);
  void close(uint32_t link);
  void post_dispatches();
  void take_outputs();
  void combine_rows(const scheduler::Work& work);
  void finish_attention(const scheduler::Work& work);
  void finish_head(const scheduler::Work& work);
  uint64_t& key(uint32_t layer, const scheduler::Chunk& chunk, uint32_t position);

  scheduler::SchedulerOptions scheduler_options_;
  scheduler::AttentionCore core_;
  KvChecker kv_;
  std::map<uint32_t, Link> links_;
  std::deque<std::function<void()>> mailbox_;
  std::vector<std::vector<uint64_t>> rows_;  ///< By micro-batch, the residual.
  std::vector<uint64_t> keys_;               ///< [layers][blocks * block_tokens]
  std::vector<scheduler::SequenceOutput> outputs_;
  std::set<uint64_t> connecting_;
  uint64_t rejected_ = 0;

 public:
  /// How a link learns the name behind an incarnation: the handshake of the real transport.
  std::function<std::string(uint64_t)> name_of;
};

}  // namespace volley::sim
