#pragma once

// A deployment, and what the model says about it. One place prices disaggregated and colocated
// deployments alike: the same stage times, memory rules, stragglers and SLO.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "volley/base/status.h"
#include "volley/perf/roofline.h"
#include "volley/planner/pipeline.h"
#include "volley/planner/straggler.h"

namespace volley::planner {

/// Where attention and experts run. The colocated ones are described in colocated.h.
enum class Layout : uint8_t {
  kDisaggregated,
  kTp,    ///< Attention and every expert sliced over one group of devices.
  kEp,    ///< Attention sliced over a group, whole experts spread over the same group.
  kTpEp,  ///< As kEp, with experts sliced over parts of the group.
  kDpEp,  ///< Groups with their own sequences; experts spread over the devices of all of them.
};
inline constexpr size_t kLayouts = 5;
std::string_view name_of(Layout layout);

struct Pool {
  uint32_t device = 0;  ///< Index into PlanningCase::devices.
  uint32_t tp = 1;
  uint32_t nodes = 1;
  bool operator==(const Pool&) const = default;
};

/// Colocated layouts have both pools on the same devices, attention.nodes * attention.tp of them,
/// which is expert.nodes * expert.tp.
struct Plan {
  Layout layout = Layout::kDisaggregated;
  Pool attention;
  Pool expert;
  uint32_t stages = 1;    ///< Pipeline stages of colocated TP and EP; each has all of the above.
  uint32_t replicas = 1;  ///< Copies of an expert, in the mean.
  uint32_t micro_batches = 1;
  uint32_t rows = 1;  ///< Sequences of one micro-batch of one attention node: b_a.

  uint32_t gpus() const;
  /// Sequences that decode at a time.
  double batch() const;
  bool operator==(const Plan&) const = default;
};

struct Workload {
  double input_tokens = 571;
  double output_tokens = 159;
  /// Standard deviation over mean of the context length of a decoding sequence: how much the loads
  /// of attention nodes differ.
  double context_cv = 0.5;
  /// Zipf exponent of the popularity of experts; 0: even.
  double expert_skew = 0;
  /// Of a decoding sequence, in the mean: the prompt and half of the output.
  double context_tokens() const { return input_tokens + output_tokens / 2; }
};

/// Limits of the time between two tokens of a sequence; 0: none.
struct Slo {
  double tpot_s = 0.150;
  double tpot_p99_s = 0;
};

enum class Objective : uint8_t { kPerGpu, kPerCost, kPerWatt };
std::string_view name_of(Objective objective);

/// What stays the same while plans are compared.
struct PlanningCase {
  std::vector<perf::Device> devices;
  Workload workload;
  Slo slo;
  Objective objective = Objective::kPerGpu;
  /// Each expert node keeps room for its part of a lost node's experts.
  bool spare_expert_node = false;
  /// What the slowest message of a phase takes beyond the median: a phase waits for it. The paper's
  /// Fig. 10: P99 less median is 10 us at every size.
  double message_tail_s = 10e-6;
  /// `combine: pre_reduce`: a node returns one row per token, not one per (token, expert).
  bool pre_reduce = false;
  uint32_t rows_max = 4096;  ///< Of a micro-batch of one attention node.
};

/// Errors: kInvalidArgument, naming the figure that is missing or out of range.
Status check_case(const perf::ModelShape& model, const PlanningCase& planning);

/// What nodes take and hold. RooflineNodes is the one for real devices; measured figures and the
/// tests have others. Const methods; one thread.
class NodeModel {
 public:
  virtual ~NodeModel() = default;
  /// A node of this shape in either role.
  virtual std::unique_ptr<const perf::StageTimes> times(const perf::NodeShape& node) const = 0;
  virtual perf::AttentionMemory attention_memory(const perf::NodeShape& node, uint32_t expert_nodes,
                                                 uint32_t micro_batches, double rows) const = 0;
  virtual perf::ExpertMemory expert_memory(const perf::NodeShape& node, double experts_held,
                                           uint32_t attention_nodes, uint32_t micro_batches,
                                           double rows) const = 0;
  /// Of expert_layer(): the time to sum `rows` rows over the devices of a node. A colocated layout
  /// sums each token once, over all experts.
  virtual double expert_sum_time(const perf::NodeShape&, double /*rows*/) const { return 0; }
};

class RooflineNodes final : public NodeModel {
 public:
  explicit RooflineNodes(perf::ModelShape model) : model_(std::move(model)) {}
  std::unique_ptr<const perf::StageTimes> times(const perf::NodeShape& node) const override;
  perf::AttentionMemory attention_memory(const perf::NodeShape& node, uint32_t expert_nodes,
                                         uint32_t micro_batches, double rows) const override;
  perf::ExpertMemory expert_memory(const perf::NodeShape& node, double experts_held,
                                   uint32_t attention_nodes, uint32_t micro_batches,
                                   double rows) const override;

  double expert_sum_time(const perf::NodeShape& node, double rows) const override;

 private:
  const perf::ModelShape model_;
};

/// What a token step waits for.
enum class Bottleneck : uint8_t {
  kAttention,
  kExperts,
  kNetwork,
  kLatency,  ///< One micro-batch's way through a layer: too few are in flight to hide it.
};
std::string_view name_of(Bottleneck bottleneck);

/// Why no more rows fit.
enum class RowLimit : uint8_t { kMemory, kTpot, kTpotP99, kRowsMax };
std::string_view name_of(RowLimit limit);

/// Bytes per device. Colocated: both pools' on one device.
struct MemoryUse {
  double attention_weights = 0;
  double attention_buffers = 0;  ///< Slots and activations.
  double kv = 0;                 ///< Of the plan's sequences.
  double attention_usable = 0;
  double expert_weights = 0;
  double expert_buffers = 0;
  double expert_usable = 0;
};

struct Prediction {
  LayerTimes times;  ///< Mean, stragglers included.
  double tpot_s = 0;
  double tpot_p99_s = 0;
  double tokens_per_s = 0;
  double cost = 0;   ///< Sum of prices; 0: unknown.
  double watts = 0;  ///< Sum; 0: unknown.
  double value = 0;  ///< tokens_per_s over GPUs, cost or watts: the objective.
  Bottleneck bottleneck = Bottleneck::kAttention;
  RowLimit row_limit = RowLimit::kMemory;  ///< Set by PlanModel::fill().
  double attention_stretch = 1;            ///< Context of the slowest node over the mean.
  double expert_stretch = 1;               ///< Rows of the slowest node over the mean.
  MemoryUse memory;
};

/// Prices plans. Keeps what plans have in common between calls, so one object per search. One
/// thread.
class PlanModel {
 public:
  /// `planning` has passed check_case(). `model` and `nodes` must outlive the object.
  PlanModel(const perf::ModelShape& model, const NodeModel& nodes, const PlanningCase& planning);

  const PlanningCase& planning() const { return planning_; }
  const perf::ModelShape& model() const { return model_; }

  /// What the plan would do, whether it fits or not.
  Prediction predict(const Plan& plan) const;
  /// Memory of both sides suffices.
  bool fits(const Plan& plan) const;
  bool meets_slo(const Plan& plan) const;
  /// Sets plan.rows to the most that memory, SLO and rows_max allow, by binary search: memory and
  /// times grow with the rows. Nothing: not even one row.
  std::optional<Prediction> fill(Plan& plan) const;

  double denominator(const Plan& plan) const;   ///< What the objective divides by.
  bool can_slice_attention(uint32_t tp) const;  ///< Heads.
  bool can_slice_experts(uint32_t tp) const;    ///< Their width.
  /// One side's memory, disaggregated.
  bool attention_fits(const Pool& pool, uint32_t expert_nodes, uint32_t micro_batches,
                      double rows) const;
  bool experts_fit(const Pool& pool, uint32_t replicas, uint32_t attention_nodes,
                   uint32_t micro_batches, double rows) const;
  const Placement& placement(uint32_t nodes, uint32_t replicas) const;
  /// T_a, with its share of the step, of the slowest of `nodes` nodes, `deviations` above the mean.
  double attention_time(const Pool& pool, double rows, double deviations) const;
  /// T_e of the slowest node when `tokens` tokens are routed, `deviations` above the mean.
  double expert_time(const Pool& pool, uint32_t replicas, double tokens, double deviations) const;
  /// For how long answers keep the NIC of one device busy: an attention device with `rows`, the
  /// most loaded expert device with `tokens`. Disaggregated.
  double attention_wire_time(const Pool& pool, uint32_t expert_nodes, double rows) const;
  double expert_wire_time(const Pool& pool, uint32_t replicas, double tokens) const;
  uint32_t layers() const { return layers_; }
  uint32_t experts() const { return experts_; }
  /// Of layers priced so far.
  uint64_t evaluations() const { return evaluations_; }

 private:
  struct Deviations;  // How far above the mean stragglers are.

  const perf::NodeShape& shape(const Pool& pool) const;
  const perf::StageTimes& stage_times(const Pool& pool) const;
  LayerTimes layer_times(const Plan& plan, const Deviations& deviations) const;
  /// Rows that one token's dispatch is copied to, and that come back, in the mean of the layers.
  double rows_out(uint32_t expert_nodes) const;
  double rows_back(uint32_t expert_nodes) const;
  /// Rows of the most loaded expert node over those of a mean one.
  double load_factor(const Placement& placement, double tokens, double deviations) const;
  void add_transfers(const Plan& plan, double load, LayerTimes& times) const;
  void add_exchange(const Plan& plan, double load, LayerTimes& times) const;
  double tpot(const Plan& plan, const LayerTimes& times) const;
  Deviations mean_deviations(const Plan& plan) const;
  Deviations p99_deviations(const Plan& plan) const;
  MemoryUse memory(const Plan& plan) const;
  double kv_need(uint32_t tp, double sequences) const;
  double experts_held(const Pool& pool, uint32_t replicas) const;

  const perf::ModelShape& model_;
  const NodeModel& nodes_;
  const PlanningCase& planning_;
  uint32_t layers_ = 0;
  uint32_t experts_ = 1, top_k_ = 1;
  bool shared_experts_ = false;
  double row_bytes_ = 0;      // Of one token on the wire.
  double routed_layers_ = 0;  // Fraction of layers.
  struct Node {
    perf::NodeShape shape;
    std::unique_ptr<const perf::StageTimes> times;
  };
  mutable std::map<std::pair<uint32_t, uint32_t>, Node> nodes_by_shape_;  // (device, tp)
  mutable std::map<std::pair<uint32_t, uint32_t>, Placement> placements_;
  mutable std::vector<double> rows_of_expert_;
  mutable uint64_t evaluations_ = 0;
};

/// Bytes of keys and values that one sequence of `tokens` takes on each device of a node. Heads are
/// shared out; a latent cache, or fewer heads than devices, is held several times.
double device_kv_bytes(const perf::ModelShape& model, uint32_t tp, double tokens);

}  // namespace volley::planner
