#pragma once

// One random run: a cluster, a workload and faults, all from one seed; first safety under faults,
// then the faults stop and liveness must follow.

#include <cstdint>
#include <string>

#include "sim/network.h"

namespace volley::sim {

struct RunResult {
  std::string violations;  ///< Empty: none.
  std::string options;     ///< What the seed chose.
  uint64_t hash = 0;       ///< Over all events.
  uint64_t events = 0, dispatches = 0, finished = 0, failed = 0, lost = 0;
  uint64_t landed_after_failure = 0;

  bool violated(const std::string& id) const {
    return violations.rfind(id + ":", 0) == 0 ||
           violations.find("\n" + id + ":") != std::string::npos;
  }
};

RunResult run_seed(uint64_t seed, Bug bug = Bug::kNone);

}  // namespace volley::sim
