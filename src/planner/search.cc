#include "volley/planner/search.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "volley/planner/colocated.h"

namespace volley::planner {
namespace {

// Values closer than this are equal; bounds that promise less than this more are not followed.
constexpr double kTie = 1e-9;
constexpr uint32_t kGpusLimit = 16'384;
constexpr uint32_t kTpLimit = 64;
constexpr uint32_t kMicroBatchesLimit = 16;
constexpr uint32_t kReplicasLimit = 8;
constexpr double kGiga = 1e9;

Status check_list(const char* what, const std::vector<uint32_t>& values, uint32_t most) {
  if (values.empty()) return invalid_argument("{}: needs at least one value", what);
  for (const uint32_t value : values) {
    if (value < 1 || value > most) {
      return invalid_argument("{} {} is not in [1, {}]", what, value, most);
    }
  }
  return ok_status();
}

Status check_space(const SearchSpace& space) {
  VOLLEY_RETURN_IF_ERROR(check_list("attention tp", space.attention_tp, kTpLimit));
  VOLLEY_RETURN_IF_ERROR(check_list("expert tp", space.expert_tp, kTpLimit));
  VOLLEY_RETURN_IF_ERROR(check_list("pipeline stages", space.stages, kTpLimit));
  VOLLEY_RETURN_IF_ERROR(
      check_list("micro-batches", {space.micro_batches_min}, kMicroBatchesLimit));
  VOLLEY_RETURN_IF_ERROR(
      check_list("micro-batches", {space.micro_batches_max}, kMicroBatchesLimit));
  VOLLEY_RETURN_IF_ERROR(check_list("replicas", {space.replicas_max}, kReplicasLimit));
  VOLLEY_RETURN_IF_ERROR(check_list("GPUs at most", {space.gpus_max}, kGpusLimit));
  if (space.micro_batches_min > space.micro_batches_max) {
    return invalid_argument("micro-batches: {} at least is more than {} at most",
                            space.micro_batches_min, space.micro_batches_max);
  }
  if (!space.disaggregated && !space.colocated) return invalid_argument("no layout to search");
  return ok_status();
}

/// The better of two: more value, of equals fewer devices.
bool better(const Candidate& a, const Candidate& b) {
  const double difference = a.prediction.value - b.prediction.value;
  if (std::abs(difference) > kTie * b.prediction.value) return difference > 0;
  return a.plan.gpus() < b.plan.gpus();
}

/// What is nearest in the way of a kind for which nothing fits.
class Obstacles {
 public:
  /// `plan` does not fit with one row per micro-batch, or misses the SLO.
  void note(const PlanModel& model, Plan plan) {
    plan.rows = 1;
    if (!model.fits(plan)) {
      note_memory(model, plan);
      return;
    }
    const Prediction prediction = model.predict(plan);
    const Slo& slo = model.planning().slo;
    const bool p99 = slo.tpot_p99_s > 0 && prediction.tpot_p99_s > slo.tpot_p99_s;
    const double limit = p99 ? slo.tpot_p99_s : slo.tpot_s;
    const double time = p99 ? prediction.tpot_p99_s : prediction.tpot_s;
    if (time / limit >= slo_excess_) return;
    slo_excess_ = time / limit;
    slo_ = fmt::format(
        "SLO: with one sequence per micro-batch a {}token takes {:.1f} ms, limit {:.1f} ms ({})",
        p99 ? "P99 " : "", time * 1e3, limit * 1e3, name_of(prediction.bottleneck));
  }

  std::string text() const {
    if (!slo_.empty()) return slo_;
    return memory_.empty() ? "no plan of this kind is in the space that was searched" : memory_;
  }

 private:
  void note_memory(const PlanModel& model, const Plan& plan) {
    const PlanningCase& planning = model.planning();
    if (planning.spare_expert_node && plan.layout == Layout::kDisaggregated &&
        plan.expert.nodes == 1) {
      return;  // Room for a lost node's experts needs a second node.
    }
    const MemoryUse use = model.predict(plan).memory;
    const double attention = use.attention_weights + use.attention_buffers + use.kv;
    const double expert = use.expert_weights + use.expert_buffers;
    const auto note = [&](const char* what, const Pool& pool, double need, double usable) {
      if (need <= usable || need / usable >= memory_excess_) return;
      memory_excess_ = need / usable;
      memory_ =
          fmt::format("memory: {} on {} (tp {}) need {:.1f} GB per device, {:.1f} are usable", what,
                      planning.devices[pool.device].name, pool.tp, need / kGiga, usable / kGiga);
    };
    if (plan.layout == Layout::kDisaggregated) {
      // The worse side is what stands in the way of this plan.
      if (attention / use.attention_usable > expert / use.expert_usable) {
        note("attention weights and one sequence", plan.attention, attention, use.attention_usable);
      } else {
        note(planning.spare_expert_node ? "experts with spare room for a lost node" : "experts",
             plan.expert, expert, use.expert_usable);
      }
    } else {
      note("all weights and one sequence", plan.attention, attention + expert,
           use.attention_usable);
    }
  }

  double memory_excess_ = std::numeric_limits<double>::infinity();
  double slo_excess_ = std::numeric_limits<double>::infinity();
  std::string memory_, slo_;
};

struct Best {
  std::optional<Candidate> found;

  double value() const { return found ? found->prediction.value : 0; }
  void offer(const PlanModel& model, Plan plan) {
    const std::optional<Prediction> prediction = model.fill(plan);
    if (!prediction) return;
    const Candidate candidate{.plan = plan, .prediction = *prediction};
    if (!found || better(candidate, *found)) found = candidate;
  }
};

/// The most of x / time(x) over the sizes up to the largest that is possible. It is at the largest,
/// unless an efficiency falls with the size: then one of the smaller sizes is near it.
template <class Rate>
double most_over_halves(double largest, const Rate& rate) {
  double most = 0;
  for (double size = largest; size >= 1; size = std::floor(size / 2)) {
    most = std::max(most, rate(size));
  }
  return most;
}

/// The largest whole number in [0, most] for which `holds`; 0: none.
template <class Holds>
double largest_whole(double most, const Holds& holds) {
  double low = 0, high = 1;
  while (high <= most && holds(high)) {
    low = high;
    high *= 2;
  }
  high = std::min(high, most + 1);
  while (high - low > 1) {
    const double middle = std::floor((low + high) / 2);
    (holds(middle) ? low : high) = middle;
  }
  return low;
}

/// One side of disaggregated plans, with the most tokens per second that it could reach.
struct Side {
  Pool pool;
  uint32_t replicas = 1;
  double gpus = 0;
  double share = 0;          // Of the objective's denominator: a node of attention; all experts.
  std::vector<double> rate;  // By micro-batches from the fewest; 0: impossible.
};

/// The disaggregated plans on two devices, by branch and bound.
class PairSearch {
 public:
  PairSearch(const PlanModel& model, const SearchSpace& space, uint32_t attention_device,
             uint32_t expert_device)
      : model_(model),
        space_(space),
        attention_device_(attention_device),
        expert_device_(expert_device) {}

  Best run(SearchCounts& counts) {
    make_sides();
    bound(counts);
    std::sort(branches_.begin(), branches_.end(),
              [](const Branch& a, const Branch& b) { return a.bound > b.bound; });
    Best best;
    for (const Branch& branch : branches_) {
      if (!promises_more(branch.bound, best)) break;
      follow(branch, best, counts);
    }
    return best;
  }

  /// Call after a run() that found nothing.
  void explain(Obstacles& obstacles) const {
    for (const Side& attention : attention_) {
      for (const Side& expert : expert_) {
        if (attention.gpus + expert.gpus > space_.gpus_max) continue;
        obstacles.note(model_, plan(attention, expert, space_.micro_batches_min, 1));
      }
    }
  }

 private:
  /// All plans that differ in the number of attention nodes only.
  struct Branch {
    double bound = 0;
    const Side* attention = nullptr;
    const Side* expert = nullptr;
    uint32_t micro_batches = 1;
  };

  void make_sides() {
    const PlanningCase& planning = model_.planning();
    for (const uint32_t tp : space_.attention_tp) {
      if (tp > planning.devices[attention_device_].per_node || !model_.can_slice_attention(tp)) {
        continue;
      }
      add_side(attention_, {.device = attention_device_, .tp = tp, .nodes = 1}, 1);
    }
    for (const uint32_t tp : space_.expert_tp) {
      if (tp > planning.devices[expert_device_].per_node || !model_.can_slice_experts(tp)) continue;
      const auto add = [&](uint32_t nodes, uint32_t replicas) {
        add_side(expert_, {.device = expert_device_, .tp = tp, .nodes = nodes}, replicas);
      };
      const uint32_t nodes_max = space_.gpus_max / tp;
      // A dense FFN is one expert that any number of nodes hold.
      for (uint32_t nodes = 1; model_.experts() == 1 && nodes <= nodes_max; ++nodes) {
        add(nodes, nodes);
      }
      for (uint32_t replicas = 1; model_.experts() > 1 && replicas <= space_.replicas_max;
           ++replicas) {
        for (const uint32_t nodes : expert_node_counts(model_.experts(), replicas,
                                                       planning.spare_expert_node, nodes_max)) {
          add(nodes, replicas);
        }
      }
    }
    for (Side& side : attention_) {
      for (uint32_t m = space_.micro_batches_min; m <= space_.micro_batches_max; ++m) {
        side.rate.push_back(attention_rate(side, m));
      }
    }
    for (Side& side : expert_) {
      for (uint32_t m = space_.micro_batches_min; m <= space_.micro_batches_max; ++m) {
        side.rate.push_back(expert_rate(side, m));
      }
    }
  }

  void add_side(std::vector<Side>& sides, const Pool& pool, uint32_t replicas) {
    const perf::Device& figures = model_.planning().devices[pool.device];
    Side side{.pool = pool,
              .replicas = replicas,
              .gpus = 1.0 * pool.nodes * pool.tp,
              .share = 0,
              .rate = {}};
    const double each = model_.planning().objective == Objective::kPerCost   ? figures.price
                        : model_.planning().objective == Objective::kPerWatt ? figures.watts
                                                                             : 1;
    side.share = side.gpus * each;
    sides.push_back(std::move(side));
  }

  bool in_time(double layer_time, uint32_t micro_batches) const {
    const double limit = model_.planning().slo.tpot_s;
    return limit <= 0 || layer_time * micro_batches * model_.layers() <= limit;
  }

  /// Tokens per second of one node that never waits.
  double attention_rate(const Side& side, uint32_t m) const {
    const auto time = [&](double rows) { return model_.attention_time(side.pool, rows, 0); };
    const double rows = largest_whole(model_.planning().rows_max, [&](double size) {
      return model_.attention_fits(side.pool, 1, m, size) && in_time(time(size), m);
    });
    // One expert node makes the fewest answers where they are summed before they return.
    return most_over_halves(
               rows,
               [&](double size) {
                 return size / std::max(time(size), model_.attention_wire_time(side.pool, 1, size));
               }) /
           model_.layers();
  }

  /// Tokens per second of all nodes of the pool when they never wait.
  double expert_rate(const Side& side, uint32_t m) const {
    if (!model_.experts_fit(side.pool, side.replicas, 1, m, 1)) return 0;
    const double deviations = expected_max(side.pool.nodes);
    const auto time = [&](double tokens) {
      return model_.expert_time(side.pool, side.replicas, tokens, deviations);
    };
    const double most = 1.0 * model_.planning().rows_max * space_.gpus_max;
    const double tokens = largest_whole(most, [&](double size) { return in_time(time(size), m); });
    return most_over_halves(
               tokens,
               [&](double size) {
                 return size / std::max(time(size),
                                        model_.expert_wire_time(side.pool, side.replicas, size));
               }) /
           model_.layers();
  }

  uint32_t attention_nodes_max(const Side& attention, const Side& expert) const {
    const double left = space_.gpus_max - expert.gpus;
    return left <= 0 ? 0 : static_cast<uint32_t>(left / attention.gpus);
  }

  /// No plan of these sides has more of the objective: neither pool is faster than when it never
  /// waits, nor are m micro-batches that each go through both.
  double bound_of(const Side& attention, const Side& expert, uint32_t m,
                  uint32_t attention_nodes) const {
    const double a = attention_nodes * attention.rate[m - space_.micro_batches_min];
    const double e = expert.rate[m - space_.micro_batches_min];
    if (a <= 0 || e <= 0) return 0;
    return std::min({a, e, m / (1 / a + 1 / e)}) /
           (attention_nodes * attention.share + expert.share);
  }

  void bound(SearchCounts& counts) {
    for (const Side& attention : attention_) {
      for (const Side& expert : expert_) {
        const uint32_t nodes_max = attention_nodes_max(attention, expert);
        for (uint32_t m = space_.micro_batches_min; m <= space_.micro_batches_max; ++m) {
          Branch branch{.bound = 0, .attention = &attention, .expert = &expert, .micro_batches = m};
          for (uint32_t nodes = 1; nodes <= nodes_max; ++nodes) {
            branch.bound = std::max(branch.bound, bound_of(attention, expert, m, nodes));
          }
          counts.plans += nodes_max;
          if (branch.bound > 0) branches_.push_back(branch);
        }
      }
    }
  }

  static bool promises_more(double bound, const Best& best) {
    return bound > best.value() * (1 - kTie);
  }

  void follow(const Branch& branch, Best& best, SearchCounts& counts) const {
    std::vector<std::pair<double, uint32_t>> numbers;  // Bound, attention nodes.
    const uint32_t nodes_max = attention_nodes_max(*branch.attention, *branch.expert);
    for (uint32_t nodes = 1; nodes <= nodes_max; ++nodes) {
      const double bound = bound_of(*branch.attention, *branch.expert, branch.micro_batches, nodes);
      if (promises_more(bound, best)) numbers.emplace_back(bound, nodes);
    }
    std::sort(numbers.begin(), numbers.end(),
              [](const auto& a, const auto& b) { return a.first > b.first; });
    for (const auto& [bound, nodes] : numbers) {
      if (!promises_more(bound, best)) return;
      ++counts.priced;
      best.offer(model_, plan(*branch.attention, *branch.expert, branch.micro_batches, nodes));
    }
  }

  Plan plan(const Side& attention, const Side& expert, uint32_t m, uint32_t nodes) const {
    Plan plan{.attention = attention.pool, .expert = expert.pool};
    plan.attention.nodes = nodes;
    plan.replicas = expert.replicas;
    plan.micro_batches = m;
    return plan;
  }

  const PlanModel& model_;
  const SearchSpace& space_;
  const uint32_t attention_device_, expert_device_;
  std::vector<Side> attention_, expert_;
  std::vector<Branch> branches_;
};

/// Whether the two plans are compared with each other, or are runner-ups of each other.
bool same_kind(const Plan& a, const Plan& b) {
  return a.layout == b.layout && a.attention.device == b.attention.device &&
         a.expert.device == b.expert.device;
}

struct ColocatedKind {
  Plan kind;
  Best best;
  Obstacles obstacles;
};

/// All colocated plans are priced: there are few. `of`: only of this kind.
std::vector<ColocatedKind> search_colocated(const PlanModel& model, const SearchSpace& space,
                                            const Plan* of, SearchCounts& counts) {
  std::vector<ColocatedKind> kinds;
  for_each_colocated(model, space, [&](const Plan& plan) {
    if (of != nullptr && !same_kind(plan, *of)) return;
    auto kind = std::find_if(kinds.begin(), kinds.end(),
                             [&](const auto& known) { return same_kind(known.kind, plan); });
    if (kind == kinds.end()) {
      kinds.push_back({.kind = plan, .best = {}, .obstacles = {}});
      kind = kinds.end() - 1;
    }
    ++counts.plans;
    ++counts.priced;
    kind->best.offer(model, plan);
    if (!kind->best.found) kind->obstacles.note(model, plan);
  });
  return kinds;
}

std::optional<Candidate> best_of_kind(const PlanModel& model, const SearchSpace& space,
                                      const Plan& plan) {
  SearchCounts counts;
  if (plan.layout == Layout::kDisaggregated) {
    return PairSearch(model, space, plan.attention.device, plan.expert.device).run(counts).found;
  }
  const auto kinds = search_colocated(model, space, &plan, counts);
  return kinds.empty() ? std::nullopt : kinds.front().best.found;
}

}  // namespace

std::vector<uint32_t> expert_node_counts(uint32_t experts, uint32_t replicas, bool spare,
                                         uint32_t nodes_max) {
  std::set<uint32_t> counts;
  const uint32_t copies = experts * replicas;
  for (uint32_t held = 1; held <= copies; ++held) {
    const uint32_t nodes = (copies + held - 1) / held;
    for (const uint32_t count : {nodes, nodes + 1}) {
      if (count <= std::min(nodes_max, copies) && (spare || count == nodes)) counts.insert(count);
    }
  }
  return {counts.begin(), counts.end()};
}

std::string kind_of(const PlanningCase& planning, const Plan& plan) {
  const std::string& attention = planning.devices[plan.attention.device].name;
  if (plan.layout != Layout::kDisaggregated) {
    return fmt::format("colocated {} on {}", name_of(plan.layout), attention);
  }
  const std::string& expert = planning.devices[plan.expert.device].name;
  return plan.attention.device == plan.expert.device
             ? fmt::format("disaggregated on {}", attention)
             : fmt::format("disaggregated, attention on {}, experts on {}", attention, expert);
}

Result<SearchResult> search(const perf::ModelShape& shape, const NodeModel& nodes,
                            const PlanningCase& planning, const SearchSpace& space,
                            const Progress& progress) {
  VOLLEY_RETURN_IF_ERROR(check_case(shape, planning));
  VOLLEY_RETURN_IF_ERROR(check_space(space));
  const auto start = std::chrono::steady_clock::now();
  const PlanModel model(shape, nodes, planning);
  SearchResult result;
  const auto take = [&](const Plan& kind, const Best& best, const auto& explain) {
    if (best.found) {
      result.best.push_back(*best.found);
    } else {
      result.rejected.push_back({.kind = kind_of(planning, kind), .reason = explain()});
    }
  };
  if (space.colocated) {
    for (const ColocatedKind& kind : search_colocated(model, space, nullptr, result.counts)) {
      take(kind.kind, kind.best, [&] { return kind.obstacles.text(); });
    }
  }
  const auto devices = static_cast<uint32_t>(planning.devices.size());
  for (uint32_t pair = 0; space.disaggregated && pair < devices * devices; ++pair) {
    if (progress) progress(static_cast<double>(pair) / (devices * devices));
    PairSearch search_pair(model, space, pair / devices, pair % devices);
    Plan kind;
    kind.attention.device = pair / devices;
    kind.expert.device = pair % devices;
    take(kind, search_pair.run(result.counts), [&] {
      Obstacles obstacles;
      search_pair.explain(obstacles);
      return obstacles.text();
    });
  }
  if (progress) progress(1);
  std::stable_sort(result.best.begin(), result.best.end(), better);
  result.counts.evaluations = model.evaluations();
  result.counts.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!result.best.empty()) return result;
  std::string reasons;
  for (const Rejection& rejection : result.rejected) {
    reasons += fmt::format("\n  {}: {}", rejection.kind, rejection.reason);
  }
  return failed_precondition("no deployment of {} fits on at most {} GPUs:{}", shape.name,
                             space.gpus_max, reasons.empty() ? " no plan to try" : reasons);
}

std::vector<Sensitivity> sensitivity(const perf::ModelShape& shape, const NodeModel& nodes,
                                     const PlanningCase& planning, const SearchSpace& space,
                                     const Plan& plan) {
  std::vector<Sensitivity> changes;
  const auto fill = [](const PlanModel& model, Plan changed) -> std::optional<Candidate> {
    const std::optional<Prediction> prediction = model.fill(changed);
    if (!prediction) return std::nullopt;
    return Candidate{.plan = changed, .prediction = *prediction};
  };
  const auto change_world = [&](std::string what, const PlanningCase& world) {
    const PlanModel model(shape, nodes, world);
    changes.push_back({.change = std::move(what),
                       .same_plan = fill(model, plan),
                       .best_plan = best_of_kind(model, space, plan)});
  };
  PlanningCase faster = planning;
  for (perf::Device& device : faster.devices) device.network_bytes_per_s *= 1.2;
  change_world("network +20 %", faster);

  const PlanModel model(shape, nodes, planning);
  if (plan.layout == Layout::kDisaggregated) {
    Plan more = plan;
    ++more.attention.nodes;
    changes.push_back(
        {.change = "+1 attention node", .same_plan = fill(model, more), .best_plan = {}});
    more = plan;
    ++more.expert.nodes;
    // More nodes than copies would leave one without an expert.
    more.replicas =
        std::max(plan.replicas, (more.expert.nodes + model.experts() - 1) / model.experts());
    changes.push_back(
        {.change = "+1 expert node", .same_plan = fill(model, more), .best_plan = {}});
  }

  PlanningCase longer = planning;
  longer.workload.input_tokens *= 2;
  longer.workload.output_tokens *= 2;
  change_world("context x2", longer);
  return changes;
}

}  // namespace volley::planner
