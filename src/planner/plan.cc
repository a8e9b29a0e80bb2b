#include "volley/planner/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "volley/base/check.h"

namespace volley::planner {
namespace {

// Standard deviations above the mean that 99 % stay below.
constexpr double kP99 = 2.3263478740408408;
constexpr uint32_t kRowsLimit = 65'535;  // Of a dispatch: the header's count.

/// The largest value in [low, high] for which `holds`, which is true for `low` and true up to some
/// value, then false.
template <class Holds>
uint32_t last_that_holds(uint32_t low, uint32_t high, const Holds& holds) {
  if (holds(high)) return high;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    (holds(middle) ? low : high) = middle;
  }
  return low;
}

Status check_number(const char* what, double value, double least, double most) {
  // Written so that it also catches what is not a number.
  if (value >= least && value <= most) return ok_status();
  return invalid_argument("{} {} is not in [{}, {}]", what, value, least, most);
}

Status check_device(const perf::Device& device, const PlanningCase& planning) {
  const auto require = [&](bool good, const char* what) {
    return good ? ok_status() : invalid_argument("device {}: {}", device.name, what);
  };
  VOLLEY_RETURN_IF_ERROR(require(device.memory_bytes > 0, "memory is not known"));
  VOLLEY_RETURN_IF_ERROR(require(device.network_bytes_per_s > 0, "its network is not known"));
  VOLLEY_RETURN_IF_ERROR(require(device.per_node > 0, "no devices per node"));
  VOLLEY_RETURN_IF_ERROR(require(device.per_node == 1 || device.link_bytes_per_s > 0,
                                 "the link between the devices of its node is not known"));
  VOLLEY_RETURN_IF_ERROR(require(planning.objective != Objective::kPerCost || device.price > 0,
                                 "its price is not known, which the objective needs"));
  return require(planning.objective != Objective::kPerWatt || device.watts > 0,
                 "its power is not known, which the objective needs");
}

}  // namespace

std::string_view name_of(Layout layout) {
  constexpr std::array<std::string_view, kLayouts> kNames = {"disaggregated", "TP", "EP", "TP+EP",
                                                             "DP+EP"};
  return kNames[static_cast<size_t>(layout)];
}

std::string_view name_of(Objective objective) {
  constexpr std::array<std::string_view, 3> kNames = {"GPU", "cost", "watt"};
  return kNames[static_cast<size_t>(objective)];
}

std::string_view name_of(Bottleneck bottleneck) {
  constexpr std::array<std::string_view, 4> kNames = {"attention", "experts", "network", "latency"};
  return kNames[static_cast<size_t>(bottleneck)];
}

std::string_view name_of(RowLimit limit) {
  constexpr std::array<std::string_view, 4> kNames = {"memory", "SLO", "SLO (P99)", "row limit"};
  return kNames[static_cast<size_t>(limit)];
}

uint32_t Plan::gpus() const {
  const uint32_t own = attention.nodes * attention.tp;
  return layout == Layout::kDisaggregated ? own + expert.nodes * expert.tp : own * stages;
}

double Plan::batch() const {
  return static_cast<double>(attention.nodes) * micro_batches * rows * stages;
}

Status check_case(const perf::ModelShape& model, const PlanningCase& planning) {
  if (model.layers.empty() || model.hidden == 0) {
    return invalid_argument("model '{}' has no layers", model.name);
  }
  if (planning.devices.empty()) return invalid_argument("no hardware to plan with");
  for (const perf::Device& device : planning.devices) {
    VOLLEY_RETURN_IF_ERROR(check_device(device, planning));
  }
  const Workload& workload = planning.workload;
  VOLLEY_RETURN_IF_ERROR(check_number("input tokens", workload.input_tokens, 0, 1e8));
  VOLLEY_RETURN_IF_ERROR(check_number("output tokens", workload.output_tokens, 1, 1e8));
  VOLLEY_RETURN_IF_ERROR(check_number("context variation", workload.context_cv, 0, 10));
  VOLLEY_RETURN_IF_ERROR(check_number("expert skew", workload.expert_skew, 0, 10));
  VOLLEY_RETURN_IF_ERROR(check_number("TPOT limit in s", planning.slo.tpot_s, 0, 1e6));
  VOLLEY_RETURN_IF_ERROR(check_number("P99 TPOT limit in s", planning.slo.tpot_p99_s, 0, 1e6));
  VOLLEY_RETURN_IF_ERROR(check_number("message tail in s", planning.message_tail_s, 0, 10));
  return check_number("rows of a micro-batch", planning.rows_max, 1, kRowsLimit);
}

std::unique_ptr<const perf::StageTimes> RooflineNodes::times(const perf::NodeShape& node) const {
  return std::make_unique<perf::RooflineTimes>(model_, node, node);
}

perf::AttentionMemory RooflineNodes::attention_memory(const perf::NodeShape& node,
                                                      uint32_t expert_nodes, uint32_t micro_batches,
                                                      double rows) const {
  return perf::attention_memory(model_, node, expert_nodes, micro_batches, rows);
}

perf::ExpertMemory RooflineNodes::expert_memory(const perf::NodeShape& node, double experts_held,
                                                uint32_t attention_nodes, uint32_t micro_batches,
                                                double rows) const {
  return perf::expert_memory(model_, node, experts_held, attention_nodes, micro_batches, rows);
}

double RooflineNodes::expert_sum_time(const perf::NodeShape& node, double rows) const {
  return perf::all_reduce_time(node.device, node.tp,
                               rows * model_.hidden * perf::bytes_of(perf::NumberFormat::kBf16));
}

double device_kv_bytes(const perf::ModelShape& model, uint32_t tp, double tokens) {
  double bytes = 0;
  for (const perf::LayerGroup& group : model.layers) {
    const perf::AttentionShape& attention = group.attention;
    const double kept = attention.window > 0 ? std::min<double>(tokens, attention.window) : tokens;
    const bool latent = attention.kind == perf::AttentionShape::Kind::kLatent;
    const double slices = latent ? 1 : std::min(tp, std::max(attention.kv_heads, 1u));
    bytes += group.count * perf::kv_bytes(model, attention) * kept / slices;
  }
  return bytes;
}

struct PlanModel::Deviations {
  double attention = 0;
  double expert = 0;
};

PlanModel::PlanModel(const perf::ModelShape& model, const NodeModel& nodes,
                     const PlanningCase& planning)
    : model_(model),
      nodes_(nodes),
      planning_(planning),
      row_bytes_(model.hidden * perf::bytes_of(model.activation_format)) {
  double routed = 0;
  for (const perf::LayerGroup& group : model.layers) {
    layers_ += group.count;
    experts_ = std::max(experts_, group.ffn.experts);
    top_k_ = std::max(top_k_, group.ffn.top_k);
    shared_experts_ = shared_experts_ || group.ffn.shared_width > 0;
    if (group.ffn.routed()) routed += group.count;
  }
  routed_layers_ = routed / layers_;
}

const perf::NodeShape& PlanModel::shape(const Pool& pool) const {
  const auto key = std::pair(pool.device, pool.tp);
  const auto found = nodes_by_shape_.find(key);
  if (found != nodes_by_shape_.end()) return found->second.shape;
  const perf::NodeShape node{.device = planning_.devices[pool.device], .tp = pool.tp};
  return nodes_by_shape_.emplace(key, Node{node, nodes_.times(node)}).first->second.shape;
}

const perf::StageTimes& PlanModel::stage_times(const Pool& pool) const {
  shape(pool);
  return *nodes_by_shape_.at({pool.device, pool.tp}).times;
}

const Placement& PlanModel::placement(uint32_t nodes, uint32_t replicas) const {
  const auto key = std::pair(nodes, replicas);
  const auto found = placements_.find(key);
  if (found != placements_.end()) return found->second;
  const auto popularity = expert_popularity(experts_, top_k_, planning_.workload.expert_skew);
  return placements_.emplace(key, place_experts(popularity, top_k_, nodes, replicas)).first->second;
}

bool PlanModel::can_slice_attention(uint32_t tp) const {
  return std::all_of(model_.layers.begin(), model_.layers.end(),
                     [&](const auto& group) { return group.attention.heads % tp == 0; });
}

bool PlanModel::can_slice_experts(uint32_t tp) const {
  return std::all_of(model_.layers.begin(), model_.layers.end(),
                     [&](const auto& group) { return group.ffn.width % tp == 0; });
}

double PlanModel::attention_time(const Pool& pool, double rows, double deviations) const {
  // The sum of `rows` contexts varies by cv / sqrt(rows) of itself.
  const double stretch = 1 + deviations * planning_.workload.context_cv / std::sqrt(rows);
  const perf::StepLoad load{
      .rows = rows,
      .context_tokens = rows * planning_.workload.context_tokens() * std::max(stretch, 0.0),
      .emitting_rows = rows};
  const perf::StageTimes& times = stage_times(pool);
  return times.attention_layer(load) + times.attention_step(load) / layers_;
}

double PlanModel::load_factor(const Placement& placement, double tokens, double deviations) const {
  return placement.heaviest_sum * placement.nodes / top_k_ *
         expert_straggler(placement, experts_, top_k_, tokens, deviations);
}

double PlanModel::expert_time(const Pool& pool, uint32_t replicas, double tokens,
                              double deviations) const {
  const Placement& placed = placement(pool.nodes, replicas);
  const double factor = expert_straggler(placed, experts_, top_k_, tokens, deviations);
  rows_of_expert_.clear();
  for (const double share : placed.heaviest) rows_of_expert_.push_back(share * tokens * factor);
  if (shared_experts_) rows_of_expert_.push_back(tokens / pool.nodes);
  return stage_times(pool).expert_layer(rows_of_expert_);
}

double PlanModel::rows_out(uint32_t expert_nodes) const {
  // A layer that is not routed sends each token to one node; so may a shared expert, to one that
  // gets the token anyway.
  return routed_layers_ * nodes_touched(experts_, top_k_, expert_nodes) + (1 - routed_layers_);
}

double PlanModel::rows_back(uint32_t expert_nodes) const {
  if (planning_.pre_reduce) return rows_out(expert_nodes);
  return routed_layers_ * (top_k_ + (shared_experts_ ? 1.0 : 0.0)) + (1 - routed_layers_);
}

void PlanModel::add_transfers(const Plan& plan, double load, LayerTimes& times) const {
  const perf::Device& attention = planning_.devices[plan.attention.device];
  const perf::Device& expert = planning_.devices[plan.expert.device];
  const double tokens = static_cast<double>(plan.attention.nodes) * plan.rows;
  const double sender_rows = static_cast<double>(plan.rows) / plan.attention.tp;
  const double out = rows_out(plan.expert.nodes), back = rows_back(plan.expert.nodes);
  // A token goes to a node once at most, however loaded the node is.
  const double out_node = std::min(tokens, tokens * out / plan.expert.nodes * load);
  const double back_node = tokens * back / plan.expert.nodes * load;
  times.dispatch = phase_time(attention, sender_rows * out * row_bytes_, expert,
                              out_node * row_bytes_ / plan.expert.tp);
  times.combine = phase_time(expert, back_node * row_bytes_ / plan.expert.tp, attention,
                             sender_rows * back * row_bytes_);
  times.dispatch.total += planning_.message_tail_s;
  times.combine.total += planning_.message_tail_s;
}

double PlanModel::attention_wire_time(const Pool& pool, uint32_t expert_nodes, double rows) const {
  const double bytes = rows * rows_back(expert_nodes) * row_bytes_ / pool.tp;
  const perf::Device& device = planning_.devices[pool.device];
  return phase_time(device, bytes, device, 0).wire;
}

double PlanModel::expert_wire_time(const Pool& pool, uint32_t replicas, double tokens) const {
  const Placement& placed = placement(pool.nodes, replicas);
  const double load = load_factor(placed, tokens, expected_max(pool.nodes));
  const double bytes = tokens * rows_back(pool.nodes) / pool.nodes * load * row_bytes_ / pool.tp;
  const perf::Device& device = planning_.devices[pool.device];
  return phase_time(device, bytes, device, 0).wire;
}

void PlanModel::add_exchange(const Plan& plan, double load, LayerTimes& times) const {
  const perf::Device& device = planning_.devices[plan.attention.device];
  const double devices = plan.expert.nodes;
  if (devices <= 1) return;
  const double near = std::min<double>(device.per_node, devices);
  const double near_share = (near - 1) / devices;
  const double far_share = (devices - near) / devices;
  const double rows = static_cast<double>(plan.rows) / plan.attention.tp;
  const auto phase = [&](double rows_per_token) {
    // The most loaded end: it receives dispatches, and sends answers.
    const double bytes = rows * rows_per_token * row_bytes_ * std::max(load, 1.0);
    PhaseTime time;
    if (const double link = bytes * near_share; link > 0) {
      time.wire = link / (device.link_bytes_per_s * device.efficiency.link.at(link));
      time.total = device.efficiency.collective_s + time.wire;
    }
    if (const double network = bytes * far_share; network > 0) {
      const PhaseTime far = phase_time(device, network, device, network);
      time.wire = std::max(time.wire, far.wire);
      time.total = std::max(time.total, far.total + planning_.message_tail_s);
    }
    return time;
  };
  times.dispatch = phase(rows_out(plan.expert.nodes));
  times.combine = phase(rows_back(plan.expert.nodes));
}

LayerTimes PlanModel::layer_times(const Plan& plan, const Deviations& deviations) const {
  ++evaluations_;
  const double tokens = static_cast<double>(plan.attention.nodes) * plan.rows;
  LayerTimes times;
  times.colocated = plan.layout != Layout::kDisaggregated;
  times.attention = attention_time(plan.attention, plan.rows, deviations.attention);
  times.expert = expert_time(plan.expert, plan.replicas, tokens, deviations.expert);
  const double load =
      load_factor(placement(plan.expert.nodes, plan.replicas), tokens, deviations.expert);
  switch (plan.layout) {
    case Layout::kDisaggregated:
      add_transfers(plan, load, times);
      break;
    case Layout::kTp:
    case Layout::kEp:
    case Layout::kTpEp: {
      const double held_rows = tokens * top_k_ / plan.expert.nodes;
      times.expert -= nodes_.expert_sum_time(shape(plan.expert), held_rows * load);
      const double time = perf::all_reduce_time(planning_.devices[plan.attention.device],
                                                plan.attention.tp, plan.rows * row_bytes_);
      times.combine = {.total = time, .wire = time};
      break;
    }
    case Layout::kDpEp:
      add_exchange(plan, load, times);
      break;
  }
  return times;
}

double PlanModel::tpot(const Plan& plan, const LayerTimes& times) const {
  double period = token_period(times, plan.micro_batches, layers_);
  if (plan.stages > 1) {
    const perf::Device& device = planning_.devices[plan.attention.device];
    const double bytes = plan.rows * row_bytes_ / plan.attention.tp;
    period +=
        plan.stages * (phase_time(device, bytes, device, bytes).total + planning_.message_tail_s);
  }
  return period;
}

PlanModel::Deviations PlanModel::mean_deviations(const Plan& plan) const {
  return {.attention = expected_max(plan.attention.nodes),
          .expert = expected_max(plan.expert.nodes)};
}

PlanModel::Deviations PlanModel::p99_deviations(const Plan& plan) const {
  // Contexts stay as they are for the whole step: its P99 is theirs. Routing is drawn anew in each
  // layer: over the layers of a step it averages out, and a maximum varies less than one value.
  return {.attention = quantile_max(plan.attention.nodes, 0.99),
          .expert = expected_max(plan.expert.nodes) + kP99 / std::sqrt(layers_)};
}

double PlanModel::denominator(const Plan& plan) const {
  const auto sum = [&](double perf::Device::*figure) {
    const double own = plan.attention.nodes * plan.attention.tp *
                       (planning_.devices[plan.attention.device].*figure);
    if (plan.layout != Layout::kDisaggregated) return own * plan.stages;
    return own +
           plan.expert.nodes * plan.expert.tp * (planning_.devices[plan.expert.device].*figure);
  };
  switch (planning_.objective) {
    case Objective::kPerGpu:
      return plan.gpus();
    case Objective::kPerCost:
      return sum(&perf::Device::price);
    case Objective::kPerWatt:
      return sum(&perf::Device::watts);
  }
  return 0;
}

double PlanModel::kv_need(uint32_t tp, double sequences) const {
  // Formula (8), with room for contexts that are longer than the mean by chance.
  const double stretch = 1 + kP99 * planning_.workload.context_cv / std::sqrt(sequences);
  return sequences * stretch * device_kv_bytes(model_, tp, planning_.workload.context_tokens());
}

double PlanModel::experts_held(const Pool& pool, uint32_t replicas) const {
  const double held = placement(pool.nodes, replicas).slots;
  if (!planning_.spare_expert_node) return held;
  if (pool.nodes == 1) return std::numeric_limits<double>::infinity();
  return std::max(held, std::ceil(experts_ / (pool.nodes - 1.0)));
}

bool PlanModel::attention_fits(const Pool& pool, uint32_t expert_nodes, uint32_t micro_batches,
                               double rows) const {
  return nodes_.attention_memory(shape(pool), expert_nodes, micro_batches, rows).kv_free >=
         kv_need(pool.tp, micro_batches * rows);
}

bool PlanModel::experts_fit(const Pool& pool, uint32_t replicas, uint32_t attention_nodes,
                            uint32_t micro_batches, double rows) const {
  const double held = experts_held(pool, replicas);
  return std::isfinite(held) &&
         nodes_.expert_memory(shape(pool), held, attention_nodes, micro_batches, rows).free >= 0;
}

MemoryUse PlanModel::memory(const Plan& plan) const {
  const bool disaggregated = plan.layout == Layout::kDisaggregated;
  const bool slots = disaggregated || plan.layout == Layout::kDpEp;
  const double held = disaggregated ? experts_held(plan.expert, plan.replicas)
                                    : placement(plan.expert.nodes, plan.replicas).slots;
  const auto attention = nodes_.attention_memory(
      shape(plan.attention), slots ? plan.expert.nodes : 0, plan.micro_batches, plan.rows);
  const auto expert = nodes_.expert_memory(shape(plan.expert), held, plan.attention.nodes,
                                           plan.micro_batches, plan.rows);
  MemoryUse use;
  use.attention_weights = attention.weights / plan.stages;
  use.attention_buffers = attention.activations + (slots ? attention.slots : 0);
  // A stage keeps the keys of its layers only, for the micro-batches of all stages.
  use.kv = kv_need(plan.attention.tp, static_cast<double>(plan.micro_batches) * plan.rows);
  use.attention_usable = planning_.devices[plan.attention.device].usable_bytes();
  use.expert_weights = expert.weights / plan.stages;
  use.expert_buffers = expert.activations + (slots ? expert.slots : 0);
  use.expert_usable = planning_.devices[plan.expert.device].usable_bytes();
  return use;
}

bool PlanModel::fits(const Plan& plan) const {
  if (plan.layout == Layout::kDisaggregated) {
    return attention_fits(plan.attention, plan.expert.nodes, plan.micro_batches, plan.rows) &&
           experts_fit(plan.expert, plan.replicas, plan.attention.nodes, plan.micro_batches,
                       plan.rows);
  }
  const MemoryUse use = memory(plan);
  return use.attention_weights + use.attention_buffers + use.kv + use.expert_weights +
             use.expert_buffers <=
         use.attention_usable;
}

bool PlanModel::meets_slo(const Plan& plan) const {
  const Slo& slo = planning_.slo;
  if (slo.tpot_s > 0 && tpot(plan, layer_times(plan, mean_deviations(plan))) > slo.tpot_s) {
    return false;
  }
  return slo.tpot_p99_s <= 0 ||
         tpot(plan, layer_times(plan, p99_deviations(plan))) <= slo.tpot_p99_s;
}

std::optional<Prediction> PlanModel::fill(Plan& plan) const {
  const auto with = [&](uint32_t rows) {
    Plan changed = plan;
    changed.rows = rows;
    return changed;
  };
  if (!fits(with(1)) || !meets_slo(with(1))) return std::nullopt;
  const uint32_t by_memory =
      last_that_holds(1, planning_.rows_max, [&](uint32_t rows) { return fits(with(rows)); });
  plan.rows = last_that_holds(1, by_memory, [&](uint32_t rows) { return meets_slo(with(rows)); });
  Prediction prediction = predict(plan);
  if (plan.rows == planning_.rows_max) {
    prediction.row_limit = RowLimit::kRowsMax;
  } else if (plan.rows == by_memory) {
    prediction.row_limit = RowLimit::kMemory;
  } else {
    const Plan more = with(plan.rows + 1);
    const bool mean = planning_.slo.tpot_s > 0 &&
                      tpot(more, layer_times(more, mean_deviations(more))) > planning_.slo.tpot_s;
    prediction.row_limit = mean ? RowLimit::kTpot : RowLimit::kTpotP99;
  }
  return prediction;
}

Prediction PlanModel::predict(const Plan& plan) const {
  Prediction prediction;
  const Deviations mean = mean_deviations(plan);
  const LayerTimes times = layer_times(plan, mean);
  prediction.times = times;
  prediction.tpot_s = tpot(plan, times);
  prediction.tpot_p99_s = tpot(plan, layer_times(plan, p99_deviations(plan)));
  prediction.tokens_per_s = plan.batch() / prediction.tpot_s;
  const auto sum = [&](double perf::Device::*figure) {
    const double attention = planning_.devices[plan.attention.device].*figure;
    const double expert = planning_.devices[plan.expert.device].*figure;
    if (attention <= 0 || expert <= 0) return 0.0;
    const double attention_gpus = plan.attention.nodes * plan.attention.tp * plan.stages;
    return attention * attention_gpus + expert * (plan.gpus() - attention_gpus);
  };
  prediction.cost = sum(&perf::Device::price);
  prediction.watts = sum(&perf::Device::watts);
  prediction.value = prediction.tokens_per_s / denominator(plan);
  const double network = std::max(times.dispatch.wire, times.combine.wire);
  const bool waits = plan.micro_batches * times.busiest() < times.round_trip();
  if (!times.colocated && waits) {
    prediction.bottleneck = Bottleneck::kLatency;
  } else if (times.colocated && waits &&
             times.dispatch.total + times.combine.total > std::max(times.attention, times.expert)) {
    prediction.bottleneck = Bottleneck::kNetwork;
  } else if (network > std::max(times.attention, times.expert)) {
    prediction.bottleneck = Bottleneck::kNetwork;
  } else {
    prediction.bottleneck =
        times.attention >= times.expert ? Bottleneck::kAttention : Bottleneck::kExperts;
  }
  const double tokens = static_cast<double>(plan.attention.nodes) * plan.rows;
  prediction.attention_stretch =
      1 + mean.attention * planning_.workload.context_cv / std::sqrt(plan.rows);
  prediction.expert_stretch =
      load_factor(placement(plan.expert.nodes, plan.replicas), tokens, mean.expert);
  prediction.memory = memory(plan);
  return prediction;
}

}  // namespace volley::planner
