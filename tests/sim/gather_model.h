#pragma once

// Attention nodes and expert nodes reduced to their times, around the production GatherPolicy: what
// the policy is judged by. No protocol, no faults: see cluster.h for those.

#include <cstdint>
#include <vector>

#include "volley/base/ids.h"
#include "volley/scheduler/gather.h"

namespace volley::sim {

struct GatherModelOptions {
  uint32_t attention_nodes = 2;
  uint32_t expert_nodes = 1;
  uint32_t micro_batches = 2;
  uint32_t layers = 16;
  Nanos attention = 100 * kMicrosecond;   ///< T_a of one micro-batch and layer.
  Nanos expert_base = 95 * kMicrosecond;  ///< T_e of a run, without rows: reading the weights.
  Nanos expert_row = 40;                  ///< T_e per entry.
  Nanos transfer = 5 * kMicrosecond;      ///< T_c, one way.
  Nanos head = 150 * kMicrosecond;        ///< At the end of a step: head, sampling, next plan.
  uint32_t entries = 64;                  ///< Per dispatch.
  double jitter = 0.08;                   ///< Every time is uniform in [1 - jitter, 1 + jitter].
  /// Per attention node, a factor on its T_a and head; missing: 1.
  std::vector<double> slowness = {};
  /// Steps of a stream between two pauses; 0: it never pauses.
  uint32_t burst_steps = 0;
  Nanos pause = 0;          ///< Mean length of a pause.
  double empty_share = 0;   ///< Share of dispatches without entries.
  Nanos start_spread = -1;  ///< Nodes start within this time; -1: within about one step.
  Nanos duration = 400 * kMillisecond;
  Nanos warm_up = 100 * kMillisecond;  ///< Not counted in the results.
  /// Never wait: decisions to wait are taken again with a policy whose window is zero.
  bool wait = true;
  Nanos window_max = 2 * kMillisecond;
  uint64_t seed = 1;
};

struct GatherModelResult {
  double merged_share = 0;       ///< merged_runs / mergeable_runs, after the warm-up.
  double layers_per_second = 0;  ///< Answered dispatches of all attention nodes, after the warm-up.
  std::vector<double> node_rate;  ///< The same per attention node.
  double entries_per_run = 0;
  Nanos longest_wait = 0;                 ///< Longest time of a dispatch between arrival and run.
  double waited_share = 0;                ///< Of the time, what expert 0 spent idle waiting.
  uint64_t dispatches = 0, answered = 0;  ///< Of the whole run, to compare (GATHER-1).
};

GatherModelResult run_gather_model(const GatherModelOptions& options);

}  // namespace volley::sim
