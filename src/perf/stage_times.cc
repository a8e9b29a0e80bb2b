#include "volley/perf/stage_times.h"

#include <algorithm>
#include <array>

namespace volley::perf {
namespace {

constexpr double kMicrosecondS = 1e-6;

struct Coefficient {
  double LinearTimes::*seconds;
  double config::StageTimesConfig::*us;
};
constexpr std::array kCoefficients{
    Coefficient{&LinearTimes::layer, &config::StageTimesConfig::layer_us},
    Coefficient{&LinearTimes::layer_row, &config::StageTimesConfig::layer_row_us},
    Coefficient{&LinearTimes::layer_context, &config::StageTimesConfig::layer_context_us},
    Coefficient{&LinearTimes::step, &config::StageTimesConfig::step_us},
    Coefficient{&LinearTimes::step_row, &config::StageTimesConfig::step_row_us},
    Coefficient{&LinearTimes::step_emit, &config::StageTimesConfig::step_emit_us},
    Coefficient{&LinearTimes::expert_layer, &config::StageTimesConfig::expert_layer_us},
    Coefficient{&LinearTimes::expert, &config::StageTimesConfig::expert_us},
    Coefficient{&LinearTimes::expert_row, &config::StageTimesConfig::expert_row_us},
};

}  // namespace

LinearTimes linear_times(const config::StageTimesConfig& times) {
  LinearTimes result;
  for (const Coefficient& one : kCoefficients) result.*one.seconds = times.*one.us * kMicrosecondS;
  return result;
}

config::StageTimesConfig to_config(const LinearTimes& times) {
  config::StageTimesConfig result;
  for (const Coefficient& one : kCoefficients) result.*one.us = times.*one.seconds / kMicrosecondS;
  return result;
}

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
