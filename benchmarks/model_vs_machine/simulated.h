#pragma once

// What the simulator says of the runs of this program.

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "trace_analysis.h"
#include "volley/model/model_spec.h"
#include "volley/perf/stage_times.h"

namespace volley::benchmarks {

/// T_a, T_e and T_h of runs with one micro-batch, by its rows, as times of any load: linear between
/// measured numbers of rows, beyond them in proportion to the nearest. One expert node holds all
/// experts; a merged run of two micro-batches costs what one micro-batch with the rows of both
/// would.
std::unique_ptr<perf::StageTimes> calibrated_times(const std::map<uint32_t, PhaseTimes>& by_rows,
                                                   uint32_t top_k);

struct SimulatedRun {
  uint32_t attention_nodes = 1;
  uint32_t expert_nodes = 1;
  uint32_t micro_batches = 1;
  uint32_t rows = 1;
  uint32_t prompt_tokens = 1;
  uint32_t steps = 1;
  double transfer_s = 0;  ///< T_c, one way.
};

/// Tokens per second of all attention nodes while every sequence decodes. Errors: those of
/// simulation::simulate().
Result<double> simulated_tokens_per_s(const model::ModelSpec& spec, const SimulatedRun& run,
                                      const perf::StageTimes& times);

/// The T_c in seconds with which the simulation of `run` gives `tokens_per_s`; 0 where it is slower
/// without any. Errors: as above.
Result<double> transfer_for(const model::ModelSpec& spec, SimulatedRun run,
                            const perf::StageTimes& times, double tokens_per_s);

}  // namespace volley::benchmarks
