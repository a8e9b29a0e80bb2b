#pragma once

// An expert node: the production AnswerLink, GatherPolicy and wire checks in a shell that models
// only the grouped FFN.

#include <memory>
#include <vector>

#include "sim/process.h"
#include "volley/protocol/link.h"
#include "volley/scheduler/gather.h"

namespace volley::sim {

class ExpertProcess : public Process {
 public:
  ExpertProcess(World& world, Network& network, Checkers& checkers, const ProcessOptions& options,
                std::string name, uint64_t incarnation, std::vector<uint32_t> experts);

  const std::vector<uint32_t>& experts() const { return experts_; }
  /// Dispatches made with an older map are refused from now on.
  void refuse_older_than(protocol::MapVersion version) { oldest_map_ = version; }
  scheduler::GatherPolicy::Stats gather_stats() const { return gather_.stats(); }

 protected:
  void turn() override;
  void tick() override;

 private:
  struct Link {
    explicit Link(uint64_t peer, uint32_t slots)
        : incarnation(peer), answers(slots), dispatches(slots) {}
    uint64_t incarnation;
    protocol::AnswerLink answers;
    std::vector<protocol::MessageHeader> dispatches;  ///< By slot, the last one taken.
  };

  void take(const Arrival& arrival);
  void take_message(Link& link, const Arrival& arrival);
  void close(uint32_t link);
  void start_run();
  void finish_run(Nanos began);
  /// kNone: the answer.
  void answer(uint32_t id, Link& link, uint32_t slot, protocol::Refusal refusal, uint64_t tamper);

  std::vector<uint32_t> experts_;
  protocol::MapVersion oldest_map_;
  scheduler::GatherPolicy gather_;
  std::map<uint32_t, Link> links_;
  std::vector<scheduler::PendingDispatch> run_;
};

}  // namespace volley::sim
