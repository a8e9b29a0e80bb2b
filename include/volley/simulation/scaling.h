#pragma once

// How the engine's own scheduling grows with the cluster: the simulation's clusters, with every
// call into the production code timed on this machine.

#include <functional>
#include <string>
#include <vector>

#include "volley/base/status.h"
#include "volley/perf/stage_times.h"
#include "volley/simulation/options.h"
#include "volley/simulation/report.h"

namespace volley::simulation {

struct ScalingRow {
  std::string varied;  ///< "attention nodes"
  uint32_t attention_nodes = 0, expert_nodes = 0, experts = 0, rows = 0;
  // Microseconds of this machine:
  double attention_layer_us = 0;  ///< All AttentionCore calls, per micro-batch and layer.
  double pair_ns = 0;             ///< The same per (row, expert) pair.
  double gather_run_us = 0;       ///< All GatherPolicy and AnswerLink calls, per run.
  double control_us = 0;          ///< Per node and change of members.
  double events_per_s = 0;        ///< Of the simulation, production code included.
};

/// From the options' cluster as the middle: attention nodes, expert nodes (with as many experts)
/// and rows, each alone, halved and doubled a few times. `on_row` hears of each row as it is done.
/// Errors: as simulate().
Result<std::vector<ScalingRow>> measure_scaling(
    const SimulationOptions& options, const perf::StageTimes& times,
    const std::function<void(const ScalingRow&)>& on_row);

std::string format_scaling(const std::vector<ScalingRow>& rows);
std::string scaling_json(const std::vector<ScalingRow>& rows);

}  // namespace volley::simulation
