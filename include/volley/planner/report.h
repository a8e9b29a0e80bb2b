#pragma once

// What a search found, for programs and for the daemons. Tables for people are the CLI's.

#include <string>
#include <vector>

#include "volley/planner/search.h"

namespace volley::planner {

/// All that `volley plan` knows in the end.
struct PlanReport {
  perf::ModelShape model;
  PlanningCase planning;
  SearchSpace space;
  SearchResult result;
  std::vector<Sensitivity> sensitivity;  ///< Of result.best[0].
};

/// One JSON object; times in seconds, memory in bytes per device. docs/planning.md lists the keys.
std::string report_json(const PlanReport& report);

struct ClusterFileOptions {
  std::string cluster = "planned";
  std::string checkpoint;  ///< model.path.
  std::string fabric = "shm";
};
/// A cluster file of the plan: its nodes, micro-batches, batch sizes, and the experts of each node.
/// Addresses are loopback ones with ports that the system picks: the operator sets those of real
/// machines. A device group of a plan (tensor parallelism) is one node of the file; the file says
/// in comments what the daemons do not read.
std::string cluster_file(const PlanReport& report, const Plan& plan,
                         const ClusterFileOptions& options);

/// "tpot=150ms", "tpot=150ms,p99=0.2s"; units us, ms and s.
/// Errors: kInvalidArgument naming the part.
Result<Slo> parse_slo(const std::string& text);

}  // namespace volley::planner
