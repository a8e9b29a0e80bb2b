#pragma once

// A discrete-event simulation of Volley clusters. The scheduler, the micro-batch state machines,
// the gather policy, the links and the expert map are the engine's own (volley/scheduler,
// volley/protocol); modelled are only times: compute by perf::StageTimes, messages by
// perf::NetworkTimes, and arrivals. docs/simulation.md says what that leaves out.

#include "volley/base/status.h"
#include "volley/perf/stage_times.h"
#include "volley/simulation/options.h"
#include "volley/simulation/report.h"

namespace volley::simulation {

/// Equal options and times give equal reports but for wall times.
/// Errors: kInvalidArgument (options); kInternal (requests that never end: a bug of the engine or
/// of the simulation).
Result<Report> simulate(const SimulationOptions& options, const perf::StageTimes& times);

}  // namespace volley::simulation
