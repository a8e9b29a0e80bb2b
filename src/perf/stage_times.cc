#include "volley/perf/stage_times.h"

#include <algorithm>

namespace volley::perf {

double LinearStageTimes::attention_layer(const StepLoad& load) const {
  return times_.layer + times_.layer_row * load.rows + times_.layer_context * load.context_tokens;
}

double LinearStageTimes::attention_step(const StepLoad& load) const {
  return times_.step + times_.step_row * load.rows + times_.step_emit * load.emitting_rows;
}

double LinearStageTimes::expert_layer(std::span<const double> rows_of_expert) const {
  double time = times_.expert_layer;
  for (const double rows : rows_of_expert) {
    // A mean of less than one row is the chance that the expert is read at all.
    time += times_.expert * std::min(rows, 1.0) + times_.expert_row * rows;
  }
  return time;
}

double NetworkTimes::phase(double send_bytes, double receive_bytes) const {
  return latency_s + std::max(send_bytes, receive_bytes) / bytes_per_s;
}

}  // namespace volley::perf
