#pragma once

#include <memory>
#include <string>
#include <vector>

#include "volley/scheduler/attention_core.h"
#include "volley/scheduler/micro_batch_controller.h"
#include "world.h"

namespace volley::simulation {

/// An attention node: the production AttentionCore, and in place of kernels and wires their times.
/// It does what engine/attention_engine.cc does in the same order: between two computations, which
/// nothing interrupts, it takes commands and messages, posts, and picks the next work.
class AttentionNode {
 public:
  AttentionNode(World& world, uint32_t index, Incarnation incarnation);

  uint32_t index() const { return index_; }
  bool alive() const { return alive_; }
  bool draining() const { return draining_; }
  uint32_t in_flight() const { return in_flight_; }
  Nanos born() const { return born_; }
  Nanos died() const { return died_; }
  Nic& nic() { return nic_; }
  scheduler::AttentionCore& core() { return core_; }
  /// Since when it has had requests without a pause.
  Nanos active_since() const { return active_since_; }

  // Commands, which the engine thread sees at its next turn.
  void submit(uint64_t id);
  void open_link(uint32_t link, const std::string& node, Incarnation incarnation);
  void close_link(uint32_t link);
  void set_map(std::shared_ptr<const protocol::ExpertMap> map);

  /// An answer's first byte is at the NIC.
  void arrive(uint32_t link, uint32_t slot);
  /// The computation has ended.
  void done();
  void wake();
  void kill();
  void drain() { draining_ = true; }
  /// Accounts for the time up to now, at the end of the simulation.
  void finish();

  struct Ended {
    uint64_t id = 0;
    bool ok = false;
    bool rejected = false;
  };
  /// Requests that ended since they were taken last; the caller empties it.
  std::vector<Ended> ended;

 private:
  struct Command {
    enum class Kind : uint8_t { kSubmit, kOpen, kClose, kMap };
    Kind kind = Kind::kSubmit;
    uint64_t id = 0;
    uint32_t link = 0;
    std::string node = {};
    Incarnation incarnation = {};
    std::shared_ptr<const protocol::ExpertMap> map = {};
  };
  /// Of the step that a micro-batch is in.
  struct StepState {
    Nanos layer = 0;  ///< T_a
    Nanos head = 0;
    uint32_t rows = 0;
    uint32_t decode_rows = 0;     ///< 0: it has prefill in it.
    uint32_t link = 0, slot = 0;  ///< Of the last answer.
    // For the controller, as the engine's MicroBatchTimes.
    Nanos computed = 0;
    Nanos posted = 0;
    Nanos expert = 0, expert_sum = 0;
    Nanos exact = 0, bound = 0;
    bool has_exact = false, has_bound = false;
    Nanos exact_sum = 0, bound_sum = 0;
    uint32_t exact_count = 0, bound_count = 0;
  };

  void command(Command command);
  void turn();
  void handle(Command& command);
  void handle_submit(uint64_t id);
  void handle_answer(const Arrival& arrival);
  void note_answer(StepState& step, const protocol::MessageHeader& header);
  static void end_fragment(StepState& step);
  void learn(const StepState& step);
  void begin_step(StepState& step, const scheduler::StepPlan& plan);
  /// True: it computes. False: nothing to do.
  bool begin_work();
  void end_wait(const scheduler::Work& work);
  void post();
  void deliver();
  void wake_at(Nanos when);

  World& world_;
  const uint32_t index_;
  const std::string name_;
  scheduler::AttentionCore core_;
  scheduler::MicroBatchController controller_;
  Nic nic_;
  Inbox inbox_;
  std::vector<Command> commands_, batch_;
  std::vector<StepState> steps_;
  std::vector<scheduler::SequenceOutput> outputs_;
  std::vector<scheduler::BatchScheduler::Sampled> sampled_;

  bool alive_ = true, draining_ = false;
  Nanos born_ = 0, died_ = 0;
  uint32_t in_flight_ = 0;
  bool busy_ = false;
  bool worked_ = false;  ///< Since messages were looked at last.
  Nanos busy_since_ = 0;
  scheduler::Work work_;
  Nanos owed_ = 0;   ///< Time of messages handled, added to the next computation.
  Nanos wake_ = -1;  ///< -1: no wake-up is due.
  Nanos idle_since_ = 0;
  Nanos active_since_ = 0;
  bool closed_a_link_ = false;
};

}  // namespace volley::simulation
