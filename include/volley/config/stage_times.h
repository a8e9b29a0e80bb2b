#pragma once

// Stage times as files spell them: under `modelled.times` of a cluster file, and as a file of their
// own, which `volley profile` writes and the simulator and the daemons read.

#include <string>

#include "volley/base/status.h"

namespace volley::config {

/// The coefficients of perf::LinearTimes, in microseconds; none is negative.
struct StageTimesConfig {
  double layer_us = 0;          ///< Attention: of a layer, whatever the rows.
  double layer_row_us = 0;      ///< Per row.
  double layer_context_us = 0;  ///< Per token of context.
  double step_us = 0;           ///< Per step of a micro-batch.
  double step_row_us = 0;       ///< Per row of the step.
  double step_emit_us = 0;      ///< Per row that ends in a token.
  double expert_layer_us = 0;   ///< Expert: of a run.
  double expert_us = 0;         ///< Per expert that has rows.
  double expert_row_us = 0;     ///< Per (row, expert).
  bool operator==(const StageTimesConfig&) const = default;
};

/// Reads a file of stage times. All coefficients must be there; comments and the key `about`, a
/// text, are for people. Errors: kNotFound, kInvalidArgument ("FILE:LINE: KEY: ...").
Result<StageTimesConfig> load_stage_times(const std::string& file);
/// The same from text; `origin` names it in messages.
Result<StageTimesConfig> parse_stage_times(const std::string& text, const std::string& origin);
/// The text that parse_stage_times() reads back to equal coefficients.
std::string format_stage_times(const StageTimesConfig& times, const std::string& about);

}  // namespace volley::config
