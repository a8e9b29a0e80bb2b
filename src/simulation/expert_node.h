#pragma once

#include <span>
#include <string>
#include <vector>

#include "volley/scheduler/gather.h"
#include "world.h"

namespace volley::simulation {

class AttentionNode;

/// An expert node: the production GatherPolicy and AnswerLinks, and in place of the grouped FFN its
/// time. It does what engine/expert_engine.cc does in the same order.
class ExpertNode {
 public:
  ExpertNode(World& world, uint32_t index, std::string name, Incarnation incarnation,
             std::vector<uint32_t> held);

  uint32_t index() const { return index_; }
  const std::string& name() const { return name_; }
  Incarnation incarnation() const { return incarnation_; }
  const std::vector<uint32_t>& held() const { return held_; }
  bool alive() const { return alive_; }
  bool listed() const { return alive_ && !leaving_; }  ///< Named by new maps.
  Nanos born() const { return born_; }
  Nanos died() const { return died_; }
  scheduler::GatherPolicy::Stats stats() const { return gather_.stats(); }
  /// What was counted before now is not part of the report.
  void start_counting() { before_ = gather_.stats(); }
  /// Adds what was counted to the report.
  void count() const;

  void open_link(uint32_t link);
  void close_link(uint32_t link);
  /// A dispatch's first byte is at the NIC.
  void arrive(uint32_t link, uint32_t slot);
  void done();
  void wake();
  void kill();
  void leave() { leaving_ = true; }
  void finish();
  /// The attention nodes, by index, for the question whether they have requests.
  const std::vector<AttentionNode*>* attention = nullptr;

 private:
  struct Command {
    bool opens = false;
    uint32_t link = 0;
  };
  enum class Waiting : uint8_t { kIdle, kWindow };

  void command(Command command);
  void handle(const Command& command);
  void handle_dispatch(const Arrival& arrival);
  void turn();
  /// True: it computes. False: nothing to do now.
  bool begin_run();
  void start(const scheduler::GatherDecision& run);
  Nanos run_time(const scheduler::GatherDecision& run);
  void answer();
  void end_wait();
  void wake_at(Nanos when);

  World& world_;
  const uint32_t index_;
  const std::string name_;
  const Incarnation incarnation_;
  const std::vector<uint32_t> held_;
  scheduler::GatherPolicy gather_;
  scheduler::GatherPolicy::Stats before_;
  Nic nic_;
  Inbox inbox_;
  std::vector<Command> commands_;
  std::vector<double> rows_;  ///< Of a run, per expert held.
  std::vector<Nanos> times_;  ///< Of runs by their rows, where one expert is held; -1: not asked.
  std::span<const scheduler::PendingDispatch> run_;
  bool run_empty_ = false;

  bool alive_ = true, leaving_ = false;
  Nanos born_ = 0, died_ = 0;
  bool busy_ = false;
  bool computed_ = false;  ///< Since messages were looked at last.
  Nanos busy_since_ = 0;
  uint32_t run_rows_ = 0;
  Nanos owed_ = 0;
  Nanos wake_ = -1;
  Nanos idle_since_ = 0;
  Waiting waiting_ = Waiting::kIdle;
  Arrival last_{};  ///< The last dispatch handled.
  bool has_last_ = false;
};

}  // namespace volley::simulation
