#pragma once

// A cluster in virtual time: attention and expert processes, their network, and a controller that
// makes the map. Scenarios drive it by hand; random_run.h drives it by a seed.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sim/attention_process.h"
#include "sim/expert_process.h"

namespace volley::sim {

struct ClusterOptions {
  uint64_t seed = 1;
  uint32_t attention_nodes = 2;
  uint32_t expert_nodes = 2;
  uint32_t replicas = 1;  ///< Nodes that hold each expert, at most expert_nodes.
  ModelShape shape = {};
  uint32_t rows_max = 4;  ///< Rows of one fragment.
  scheduler::SchedulerOptions scheduler{.micro_batches = 2,
                                        .tokens_per_step_max = 8,
                                        .sequences_max = 8,
                                        .waiting_max = 16,
                                        .block_count = 32,
                                        .block_tokens = 4,
                                        .sequence_tokens_max = 32};
  NetworkOptions network = {};  ///< `geometry` and `bug` are filled in.
  double slow_kernel = 0;
  double bad_numbers = 0;
  bool refuse_stale_maps = false;  ///< Expert nodes refuse all but the newest map.
  Nanos link_timeout = 5 * kMillisecond;
  Bug bug = Bug::kNone;
};

class Cluster {
 public:
  /// All nodes start at once.
  explicit Cluster(const ClusterOptions& options);

  World& world() { return world_; }
  Network& network() { return network_; }
  Checkers& checkers() { return checkers_; }
  const ClusterOptions& options() const { return options_; }

  /// nullptr: not running.
  AttentionProcess* attention(uint32_t index) { return attention_[index]; }
  ExpertProcess* expert(uint32_t index) { return experts_[index]; }

  void start_attention(uint32_t index);
  void start_expert(uint32_t index);
  /// The controller takes the node out of the map some time later.
  void kill_attention(uint32_t index, bool silently = false);
  void kill_expert(uint32_t index, bool silently = false);

  /// Hands a sequence to a node; returns its id. Whether it was accepted shows in the checker.
  uint64_t submit(uint32_t attention, std::vector<int32_t> prompt, uint32_t max_new_tokens,
                  Nanos time_allowed = 0);
  std::vector<int32_t> random_prompt();

  void run_for(Nanos duration) {
    const Nanos until = world_.now() + duration;
    while (world_.step(until)) {
    }
  }
  /// False: `condition` did not hold within `bound`.
  bool run_until(const std::function<bool()>& condition, Nanos bound);

  /// All nodes run and can serve.
  bool ready() const;
  /// No sequence is live and nothing is outstanding.
  bool at_rest();
  /// Starts what is down and ends all faults.
  void heal();
  /// The checks that hold only at rest.
  void check_at_rest();
  std::string describe() const;

 private:
  std::string attention_name(uint32_t index) const { return fmt::format("attention-{}", index); }
  std::string expert_name(uint32_t index) const { return fmt::format("expert-{}", index); }
  ProcessOptions process_options() const;
  std::vector<uint32_t> experts_of(uint32_t index) const;
  void membership_changed();
  void publish_map();
  void connect_loop();

  ClusterOptions options_;
  World world_;
  Checkers checkers_;
  Network network_;
  std::vector<std::unique_ptr<Process>> processes_;  ///< Dead ones too: events may name them.
  std::vector<AttentionProcess*> attention_;
  std::vector<ExpertProcess*> experts_;
  std::map<uint64_t, std::string> names_;  ///< By incarnation.
  std::shared_ptr<const protocol::ExpertMap> map_;
  uint32_t map_number_ = 0;
  uint64_t next_incarnation_ = 1, next_sequence_ = 1;
  bool calm_ = false;
};

}  // namespace volley::sim
