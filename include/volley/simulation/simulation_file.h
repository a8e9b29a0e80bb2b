#pragma once

// simulation.yaml: docs/simulation.md describes it, configs/simulations has examples.

#include <memory>
#include <string>
#include <vector>

#include "volley/base/status.h"
#include "volley/perf/stage_times.h"
#include "volley/simulation/options.h"

namespace volley::simulation {

struct Simulation {
  SimulationOptions options;
  std::unique_ptr<const perf::StageTimes> times;
};

/// Reads a file. Names of models and devices are looked up in DIRECTORY/models and
/// DIRECTORY/hardware; a workload's file beside the simulation's. Strict: an unknown key, a
/// duplicate or a bad value is an error "FILE:LINE: KEY: ...".
/// Errors: kNotFound, kInvalidArgument.
Result<Simulation> load_simulation(const std::string& file, const std::string& directory);
/// The same from text; `origin` names it in messages.
Result<Simulation> parse_simulation(const std::string& text, const std::string& origin,
                                    const std::string& directory);

/// Requests, one JSON object per line: {"arrival_s": 0.5, "input": 571, "output": 159}.
/// Errors: kNotFound, kInvalidArgument "FILE:LINE: ...".
Result<std::vector<RequestRecord>> load_requests(const std::string& file);
Result<std::vector<RequestRecord>> parse_requests(const std::string& text,
                                                  const std::string& origin);

/// "10 kill expert-1", "20 add expert-1", "30 remove attention-0": seconds, verb, node; of replica
/// 0. Errors: kInvalidArgument.
Result<ChangeOptions> parse_change(const std::string& text);

}  // namespace volley::simulation
