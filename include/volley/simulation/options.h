#pragma once

// What is simulated: a cluster, its times, its load, and what happens to it.

#include <cstdint>
#include <string>
#include <vector>

#include "volley/base/status.h"
#include "volley/perf/stage_times.h"

namespace volley::simulation {

/// A cluster of one frontend, attention nodes and expert nodes; the same in every replica.
struct ClusterOptions {
  uint32_t attention_nodes = 1;
  uint32_t expert_nodes = 1;
  uint32_t attention_gpus = 1;  ///< Of one attention node; only counted.
  uint32_t expert_gpus = 1;     ///< Of one expert node; only counted.
  uint32_t layers = 1;
  uint32_t experts = 1;
  uint32_t top_k = 1;
  /// Per expert node what it holds; empty: expert e on node e % expert_nodes.
  std::vector<std::vector<uint32_t>> held;
  /// A run's rows of shared experts go to StageTimes::expert_layer() as one count more.
  bool shared_experts = false;
  uint32_t row_bytes = 2;         ///< Of a dispatched row.
  uint32_t answer_row_bytes = 2;  ///< Of an answered row.

  uint32_t micro_batches = 2;           ///< m; with `adaptive_micro_batches` the most.
  bool adaptive_micro_batches = false;  ///< `micro_batches: auto`.
  uint32_t tokens_per_step = 256;
  uint32_t slot_rows = 0;  ///< Of one dispatch; 0: tokens_per_step.
  uint32_t sequences = 256;
  uint32_t waiting = 1024;
  uint32_t kv_blocks = 0;  ///< Of an attention node; 0: enough for all sequences at their longest.
  uint32_t block_tokens = 16;
  bool pre_reduce = false;  ///< `combine: pre_reduce`: expert nodes sum a token's answers.
  double gather_window_s = 0.002;
  uint32_t gather_rows = 4096;  ///< Most (row, expert) pairs of one run.
};

/// What the engine threads spend beside their kernels, in seconds.
struct OverheadTimes {
  double attention_turn = 0;     ///< Per thing computed: scheduling and bookkeeping.
  double attention_message = 0;  ///< Per message sent or handled.
  double expert_turn = 0;        ///< Per run.
  double expert_message = 0;     ///< Per message sent or handled.
};

/// A positive number of tokens.
struct LengthOptions {
  enum class Kind : uint8_t {
    kFixed,      ///< `a`
    kUniform,    ///< In [a, b].
    kLognormal,  ///< Median `a`, sigma of the logarithm `b`; at most `max`.
  };
  Kind kind = Kind::kFixed;
  double a = 1;
  double b = 0;
  uint32_t max = 0;  ///< kLognormal only.
  /// The most that it can give.
  uint32_t longest() const;
};

struct RequestRecord {
  double arrival_s = 0;
  uint32_t input = 1;
  uint32_t output = 1;
};

struct WorkloadOptions {
  enum class Arrivals : uint8_t {
    kClosed,    ///< `streams` clients, each with one request at a time.
    kPoisson,   ///< `rate` requests per second.
    kConstant,  ///< Likewise, equally spaced.
    kListed,    ///< `requests`, in ascending order of arrival.
  };
  Arrivals arrivals = Arrivals::kClosed;
  uint32_t streams = 1;  ///< Of all replicas.
  double rate = 0;       ///< Of all replicas.
  LengthOptions input, output;
  std::vector<RequestRecord> requests;
  /// Clients of kClosed start spread evenly over this time.
  double spread_s = 0;
  /// The first request of a client of kClosed is as if it had been running: its output is cut at
  /// random, so that the load is that of a cluster which has been running for long.
  bool aged = false;
  /// Prompts come with their keys and values from a prefill cluster: a request enters with one
  /// token, and its input counts as context only. KV blocks are those of the new tokens.
  bool prefilled = false;
  /// After a failed or rejected request a client of kClosed waits for so long.
  double retry_s = 0.1;
};

/// Which experts the router chooses.
struct RouterOptions {
  double zipf = 0;           ///< Popularity of the r-th expert ~ 1 / r^zipf; 0: uniform.
  bool per_layer = true;     ///< Layers have hot experts of their own.
  double drift_s = 0;        ///< So often hot experts change; 0: never.
  double drift_share = 0.1;  ///< Share of the experts that change places each time.
};

/// Something that happens to a node of one replica. What is asked of a node that is not there, or
/// to add an expert node that is, changes nothing.
struct ChangeOptions {
  enum class Kind : uint8_t {
    kKill,    ///< It stops at once; its peers and the controller notice after detection_s.
    kAdd,     ///< It is ready: weights are loaded.
    kRemove,  ///< It is drained: no new requests; an expert node leaves once no step needs it.
  };
  double at_s = 0;
  Kind kind = Kind::kKill;
  bool expert = true;  ///< Else an attention node.
  uint32_t node = 0;   ///< "expert-1"; attention nodes that are added take the next free number.
  uint32_t replica = 0;
};

/// What is kept for the picture and the trace, of replica 0.
struct TraceOptions {
  double from_s = 0;
  double length_s = 0;      ///< 0: nothing is kept.
  uint32_t nodes_max = 16;  ///< Of each pool.
  uint32_t spans_max = 200'000;
};

struct SimulationOptions {
  ClusterOptions cluster;
  /// Of attention nodes; the latency is everybody's.
  perf::NetworkTimes network{.latency_s = 0, .bytes_per_s = 1e12};
  double expert_bytes_per_s = 0;  ///< Of expert nodes; 0: as attention nodes.
  OverheadTimes overheads;
  WorkloadOptions workload;
  RouterOptions router;
  std::vector<ChangeOptions> changes;
  double detection_s = 0.1;  ///< From a death to closed links.
  double control_s = 0.005;  ///< From a change of members to the nodes' new map.
  double drain_s = 1;        ///< An expert node that is removed stays so long, for steps under way.

  uint32_t replicas = 1;
  /// Of the replicas that no change names, so many are simulated, each for its share of the others;
  /// 0: all.
  uint32_t simulated = 0;
  double duration_s = 10;
  double warm_up_s = 0;  ///< Not counted in the report.
  /// New requests end at duration_s, and the simulation when the last one has ended.
  bool drain = false;
  uint64_t seed = 1;
  TraceOptions trace;
  /// Takes the wall time of the production code, call by call: slows the simulation down.
  bool measure_costs = false;

  /// Tokens that an attention node must have room for.
  uint32_t longest_sequence() const;
  /// Errors: kInvalidArgument naming the value and what is allowed.
  Status validate() const;
};

}  // namespace volley::simulation
