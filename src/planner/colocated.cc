#include "volley/planner/colocated.h"

#include <algorithm>
#include <set>

#include "volley/planner/search.h"

namespace volley::planner {
namespace {

constexpr uint32_t kOverlapMax = 2;  // Dual batch overlap.

/// TP, EP and TP+EP: one group within a server, several in a pipeline.
void visit_groups(const PlanModel& model, const SearchSpace& space, uint32_t device, uint32_t tp,
                  const std::function<void(const Plan&)>& visit) {
  for (const uint32_t stages : space.stages) {
    if (tp * stages > space.gpus_max || stages > model.layers()) continue;
    Plan plan{.layout = Layout::kTp,
              .attention = {.device = device, .tp = tp, .nodes = 1},
              .expert = {.device = device, .tp = tp, .nodes = 1},
              .stages = stages};
    if (model.can_slice_experts(tp)) visit(plan);
    std::set<uint32_t> slices(space.expert_tp.begin(), space.expert_tp.end());
    for (const uint32_t expert_tp : slices) {
      if (expert_tp >= tp || tp % expert_tp != 0 || !model.can_slice_experts(expert_tp) ||
          tp / expert_tp > model.experts()) {
        continue;
      }
      plan.layout = expert_tp == 1 ? Layout::kEp : Layout::kTpEp;
      plan.expert.tp = expert_tp;
      plan.expert.nodes = tp / expert_tp;
      visit(plan);
    }
  }
}

void visit_data_parallel(const PlanModel& model, const SearchSpace& space, uint32_t device,
                         uint32_t tp, const std::function<void(const Plan&)>& visit) {
  if (model.experts() == 1) return;
  for (uint32_t replicas = 1; replicas <= space.replicas_max; ++replicas) {
    std::set<uint32_t> sizes;
    for (const uint32_t nodes :
         expert_node_counts(model.experts(), replicas, false, space.gpus_max)) {
      sizes.insert((nodes + tp - 1) / tp * tp);
    }
    for (const uint32_t devices : sizes) {
      if (devices < 2 * tp || devices > space.gpus_max || devices > model.experts() * replicas) {
        continue;
      }
      for (uint32_t micro_batches = 1; micro_batches <= kOverlapMax; ++micro_batches) {
        visit({.layout = Layout::kDpEp,
               .attention = {.device = device, .tp = tp, .nodes = devices / tp},
               .expert = {.device = device, .tp = 1, .nodes = devices},
               .replicas = replicas,
               .micro_batches = micro_batches});
      }
    }
  }
}

}  // namespace

void for_each_colocated(const PlanModel& model, const SearchSpace& space,
                        const std::function<void(const Plan&)>& visit) {
  const std::vector<perf::Device>& devices = model.planning().devices;
  for (uint32_t device = 0; device < devices.size(); ++device) {
    for (const uint32_t tp : space.attention_tp) {
      if (tp > devices[device].per_node || !model.can_slice_attention(tp)) continue;
      visit_groups(model, space, device, tp, visit);
      visit_data_parallel(model, space, device, tp, visit);
    }
  }
}

}  // namespace volley::planner
