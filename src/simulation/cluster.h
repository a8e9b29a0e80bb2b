#pragma once

#include <memory>
#include <vector>

#include "attention_node.h"
#include "expert_node.h"
#include "volley/base/random.h"
#include "world.h"

namespace volley::simulation {

/// One replica: its nodes, its frontend and controller, its load and what happens to it.
class Cluster {
 public:
  /// Writes into `report`, which is this cluster's own. `changes` are this replica's.
  Cluster(const SimulationOptions& options, const perf::StageTimes& times, uint32_t replica,
          std::vector<ChangeOptions> changes, Report& report);

  /// Errors: kInternal (requests that never end).
  Status run();

 private:
  struct Client {
    bool aged = false;
  };

  void build();
  void add_attention();
  void add_expert(uint32_t number);
  void connect(AttentionNode& attention, ExpertNode& expert);
  void members_changed();

  void handle(const Event& event);
  void change(uint32_t index);
  void noticed(uint32_t index);
  AttentionNode* attention_named(uint32_t number);
  ExpertNode* expert_named(uint32_t number);
  void leave_attention(uint32_t index);
  void fail_requests_of(uint32_t node);

  void start_load();
  void schedule_arrival();
  void ask(uint32_t client);
  void submit(uint32_t input, uint32_t output, uint32_t client, uint32_t context);
  void take_ended();
  void end_request(uint64_t id, bool ok, bool rejected, bool died);
  void summarise();

  const SimulationOptions& options_;
  const uint32_t replica_;
  const std::vector<ChangeOptions> changes_;
  Report& report_;
  World world_;
  SplitMix64 random_;
  std::vector<std::unique_ptr<AttentionNode>> attention_owner_;
  std::vector<std::unique_ptr<ExpertNode>> experts_;
  std::vector<AttentionNode*> attention_;
  std::vector<uint32_t> expert_numbers_;  ///< "expert-NUMBER", per node ever.
  /// Per attention node and expert node ever: their link; kNoLink: none.
  std::vector<std::vector<uint32_t>> link_between_;
  std::shared_ptr<const protocol::ExpertMap> map_;
  uint32_t map_number_ = 0;
  uint64_t incarnations_ = 0;

  std::vector<uint64_t> ids_;  ///< Per place in World::requests the live request's id; 0: free.
  std::vector<uint32_t> free_requests_;
  std::vector<uint64_t> last_pick_;  ///< Per attention node.
  uint64_t picks_ = 0, requests_ = 0;
  uint64_t live_ = 0;
  std::vector<Client> clients_;
  size_t next_listed_ = 0;
  uint64_t arrivals_ = 0;
  std::vector<uint32_t> noticed_;  ///< Per change the node it hit.
  std::vector<AttentionNode::Ended> ended_;
};

}  // namespace volley::simulation
