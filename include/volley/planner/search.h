#pragma once

// The search for the best deployment: Algorithm 1 of the paper, over heterogeneous pools, any
// number of expert nodes, replicas and micro-batches, beside the colocated alternatives.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "volley/base/status.h"
#include "volley/planner/plan.h"

namespace volley::planner {

/// What is tried. Every list must have an entry.
struct SearchSpace {
  std::vector<uint32_t> attention_tp{1, 2, 4, 8};  ///< At most Device::per_node are used.
  std::vector<uint32_t> expert_tp{1, 2, 4, 8};
  std::vector<uint32_t> stages{1, 2, 4, 8};  ///< Pipeline stages of colocated TP and EP.
  uint32_t micro_batches_min = 1;
  uint32_t micro_batches_max = 4;  ///< The paper's N_m: more makes the experts' GEMMs too thin.
  uint32_t replicas_max = 2;
  uint32_t gpus_max = 512;  ///< Of one instance.
  bool disaggregated = true;
  bool colocated = true;
};

/// Numbers of nodes worth trying for experts * replicas copies, rising: the fewest for each number
/// of copies per node. More nodes that hold as many each compute no faster. With `spare` one more
/// of each, which may need less spare room.
std::vector<uint32_t> expert_node_counts(uint32_t experts, uint32_t replicas, bool spare,
                                         uint32_t nodes_max);

struct Candidate {
  Plan plan;
  Prediction prediction;
};

/// A kind of deployment for which nothing fits, and what is nearest in the way.
struct Rejection {
  std::string kind;
  std::string reason;
};

struct SearchCounts {
  uint64_t plans = 0;        ///< In the space; a plan stands for all its batch sizes.
  uint64_t priced = 0;       ///< Of them: batch searched. The others were bounded away.
  uint64_t evaluations = 0;  ///< Of the performance model.
  double seconds = 0;
};

struct SearchResult {
  /// The best of each kind (layout and devices), the best first. Never empty.
  std::vector<Candidate> best;
  std::vector<Rejection> rejected;
  SearchCounts counts;
};

/// Called now and then with the fraction that is done.
using Progress = std::function<void(double done)>;

/// Finds the plan with the most objective; of equals the one with fewer devices. Exact within the
/// space as long as no efficiency curve falls with size: plans are left out only where a bound of
/// what they could reach is below what was found (docs/planning.md).
/// Errors: kInvalidArgument (check_case(), the space); kFailedPrecondition: nothing fits; the
/// message says for each kind what is in the way.
Result<SearchResult> search(const perf::ModelShape& model, const NodeModel& nodes,
                            const PlanningCase& planning, const SearchSpace& space,
                            const Progress& progress = {});

/// What a change of the world or of the plan would do.
struct Sensitivity {
  std::string change;
  /// The plan as it is, its batch searched again. Nothing: it does not fit any more.
  std::optional<Candidate> same_plan;
  /// The best plan of the same layout and devices under the change; only for changes of the world.
  std::optional<Candidate> best_plan;
};
/// +20 % network, one more node of either pool, twice the context.
/// `plan` is one that search() returned for the same arguments.
std::vector<Sensitivity> sensitivity(const perf::ModelShape& model, const NodeModel& nodes,
                                     const PlanningCase& planning, const SearchSpace& space,
                                     const Plan& plan);

/// "attention H20 tp 2, experts L40S": the kind of a plan, by which search() groups.
std::string kind_of(const PlanningCase& planning, const Plan& plan);

}  // namespace volley::planner
