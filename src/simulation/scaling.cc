#include "volley/simulation/scaling.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

#include "volley/simulation/simulate.h"

namespace volley::simulation {
namespace {

constexpr uint32_t kNodesMost = 64;
constexpr uint32_t kRowsMost = 512;
constexpr uint32_t kSteps = 4;  // Virtual steps of each micro-batch, about, in a measurement.

double per(double whole, double count) {
  return count > 0 ? whole / count : 0;
}

/// About `kSteps` steps: the larger the cluster, the more each of them says.
double duration_of(const SimulationOptions& options, const perf::StageTimes& times) {
  const ClusterOptions& cluster = options.cluster;
  const double rows = cluster.tokens_per_step;
  const double context = options.workload.input.a + options.workload.output.a / 2;
  const double attention = times.attention_layer(
      {.rows = rows, .context_tokens = rows * context, .emitting_rows = rows});
  const double pairs = rows * cluster.top_k * cluster.attention_nodes / cluster.expert_nodes;
  const auto held = std::max<size_t>(1, cluster.experts / cluster.expert_nodes);
  const std::vector<double> counts(held, pairs / static_cast<double>(held));
  const double layer = std::max(attention, times.expert_layer(counts));
  return layer * cluster.layers * cluster.micro_batches * kSteps;
}

Result<ScalingRow> measure(const char* varied, SimulationOptions options,
                           const perf::StageTimes& times) {
  ClusterOptions& cluster = options.cluster;
  cluster.held.clear();
  cluster.slot_rows = 0;
  cluster.sequences = cluster.tokens_per_step * cluster.micro_batches;
  cluster.adaptive_micro_batches = false;
  options.workload.arrivals = WorkloadOptions::Arrivals::kClosed;
  options.workload.streams = cluster.sequences * cluster.attention_nodes;
  options.workload.prefilled = true;
  options.workload.aged = true;
  options.replicas = 1;
  options.simulated = 0;
  options.drain = false;
  options.trace = {};
  options.measure_costs = true;
  options.duration_s = duration_of(options, times);
  options.warm_up_s = 0;
  // An expert node comes and goes in the middle: what a change of members costs.
  options.detection_s = options.control_s = 0;
  options.changes = {{.at_s = options.duration_s / 2,
                      .kind = ChangeOptions::Kind::kAdd,
                      .expert = true,
                      .node = cluster.expert_nodes}};
  VOLLEY_ASSIGN_OR_RETURN(const Report report, simulate(options, times));
  const ProductionCosts& costs = report.costs;
  const double attention = costs.core_message.seconds + costs.core_next_work.seconds +
                           costs.core_route.seconds + costs.core_finish.seconds;
  const double gather =
      costs.gather_dispatch.seconds + costs.gather_decide.seconds + costs.gather_answered.seconds;
  const double layers = report.layers_computed;
  return ScalingRow{
      .varied = varied,
      .attention_nodes = cluster.attention_nodes,
      .expert_nodes = cluster.expert_nodes,
      .experts = cluster.experts,
      .rows = cluster.tokens_per_step,
      .attention_layer_us = per(attention, layers) * 1e6,
      .pair_ns = per(attention, layers * report.batch_rows * cluster.top_k) * 1e9,
      .gather_run_us = per(gather, costs.gather_answered.calls) * 1e6,
      // Start and one change: each node has handled two.
      .control_us =
          per(costs.control.seconds, 2.0 * (cluster.attention_nodes + cluster.expert_nodes)) * 1e6,
      .events_per_s = per(report.events, report.cpu_s)};
}

}  // namespace

Result<std::vector<ScalingRow>> measure_scaling(
    const SimulationOptions& options, const perf::StageTimes& times,
    const std::function<void(const ScalingRow&)>& on_row) {
  std::vector<ScalingRow> rows;
  const auto add = [&](const char* varied, const SimulationOptions& one) -> Status {
    VOLLEY_ASSIGN_OR_RETURN(const ScalingRow row, measure(varied, one, times));
    rows.push_back(row);
    on_row(row);
    return ok_status();
  };
  for (uint32_t nodes = 1; nodes <= kNodesMost; nodes *= 2) {
    SimulationOptions one = options;
    one.cluster.attention_nodes = nodes;
    VOLLEY_RETURN_IF_ERROR(add("attention nodes", one));
  }
  for (uint32_t nodes = std::max(2u, options.cluster.top_k); nodes <= kNodesMost; nodes *= 2) {
    SimulationOptions one = options;
    one.cluster.expert_nodes = one.cluster.experts = nodes;
    VOLLEY_RETURN_IF_ERROR(add("expert nodes", one));
  }
  for (uint32_t experts = options.cluster.expert_nodes;
       experts <= 16 * options.cluster.expert_nodes; experts *= 2) {
    if (experts < options.cluster.top_k) continue;
    SimulationOptions one = options;
    one.cluster.experts = experts;
    VOLLEY_RETURN_IF_ERROR(add("experts", one));
  }
  for (uint32_t batch = 8; batch <= kRowsMost; batch *= 2) {
    SimulationOptions one = options;
    one.cluster.tokens_per_step = batch;
    VOLLEY_RETURN_IF_ERROR(add("streams", one));
  }
  return rows;
}

std::string format_scaling(const std::vector<ScalingRow>& rows) {
  std::string out =
      "varied            attention  experts on  rows  us per layer   ns per  us per  us per change "
      " "
      "M events\n"
      "                      nodes       nodes        and m.-batch     pair     run     and node   "
      "  "
      " per s\n";
  for (const ScalingRow& row : rows) {
    fmt::format_to(std::back_inserter(out),
                   "{:<16}{:>11}{:>9}{:>5}{:>6}{:>12.2f}{:>11.2f}{:>8.2f}{:>13.2f}{:>12.2f}\n",
                   row.varied, row.attention_nodes, row.experts, row.expert_nodes, row.rows,
                   row.attention_layer_us, row.pair_ns, row.gather_run_us, row.control_us,
                   row.events_per_s / 1e6);
  }
  return out;
}

std::string scaling_json(const std::vector<ScalingRow>& rows) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const ScalingRow& row : rows) {
    json.push_back({{"varied", row.varied},
                    {"attention_nodes", row.attention_nodes},
                    {"expert_nodes", row.expert_nodes},
                    {"experts", row.experts},
                    {"rows", row.rows},
                    {"attention_layer_us", row.attention_layer_us},
                    {"pair_ns", row.pair_ns},
                    {"gather_run_us", row.gather_run_us},
                    {"control_us", row.control_us},
                    {"events_per_s", row.events_per_s}});
  }
  return json.dump(1) + "\n";
}

}  // namespace volley::simulation
