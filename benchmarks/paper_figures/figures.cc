#include "figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "volley/planner/search.h"

namespace volley::paper_figures {
namespace {

using planner::Candidate;
using planner::Layout;
using planner::Plan;

constexpr uint32_t kTestBedGpus = 64;  // The paper's homogeneous one: 8 nodes of 8.
constexpr uint32_t kServerGpus = 8;
constexpr size_t kDbrx = 1;  // Of Inputs::models.

planner::PlanningCase case_of(std::vector<perf::Device> devices, planner::Objective objective) {
  planner::PlanningCase planning;
  planning.devices = std::move(devices);
  planning.objective = objective;
  return planning;
}

std::string describe(const planner::PlanningCase& planning, const Candidate& best) {
  const Plan& plan = best.plan;
  const planner::Prediction& p = best.prediction;
  return fmt::format("{}: {} x tp {} + {} x tp {}, m {}, {} rows, {:.0f} ms, bound by {}, {}",
                     planner::kind_of(planning, plan), plan.attention.nodes, plan.attention.tp,
                     plan.expert.nodes, plan.expert.tp, plan.micro_batches, plan.rows,
                     1e3 * p.tpot_s, planner::name_of(p.bottleneck), planner::name_of(p.row_limit));
}

/// The paper's own search: one expert per expert node, three or four micro-batches.
planner::SearchSpace paper_space(uint32_t gpus_max) {
  planner::SearchSpace space;
  space.micro_batches_min = 3;
  space.replicas_max = 1;
  space.gpus_max = gpus_max;
  space.colocated = false;
  return space;
}

/// How the baselines were run: one server, two for the largest model.
planner::SearchSpace baseline_space(const perf::ModelShape& model) {
  planner::SearchSpace space;
  const uint32_t servers = model.name == "scaled-moe" ? 2 : 1;
  space.attention_tp = {kServerGpus};
  space.stages = {servers};
  space.gpus_max = servers * kServerGpus;
  space.disaggregated = false;
  return space;
}

Result<Candidate> best_of(const perf::ModelShape& model, const planner::PlanningCase& planning,
                          const planner::SearchSpace& space, const std::vector<Layout>& layouts) {
  const planner::RooflineNodes nodes(model);
  VOLLEY_ASSIGN_OR_RETURN(const planner::SearchResult result,
                          planner::search(model, nodes, planning, space));
  for (const Candidate& candidate : result.best) {
    if (std::find(layouts.begin(), layouts.end(), candidate.plan.layout) != layouts.end()) {
      return candidate;
    }
  }
  return failed_precondition("{}: no plan of the layouts asked for", model.name);
}

/// The colocated layouts that each baseline ran, by the paper's text.
const std::vector<Layout> kVllm = {Layout::kTp};
const std::vector<Layout> kTensorRtLlm = {Layout::kEp, Layout::kTpEp};
const std::vector<Layout> kOurs = {Layout::kDisaggregated};

struct Bar {
  std::string column;
  std::vector<std::string> devices;
  const std::vector<Layout>* layouts;
};

Result<std::vector<Value>> throughput(const Inputs& inputs, const std::string& figure,
                                      planner::Objective objective, const std::string& unit,
                                      const std::vector<Bar>& bars) {
  std::vector<Value> values;
  for (const perf::ModelShape& model : inputs.models) {
    for (const Bar& bar : bars) {
      std::vector<perf::Device> devices;
      for (const std::string& name : bar.devices) devices.push_back(inputs.devices.at(name));
      const auto planning = case_of(std::move(devices), objective);
      const bool ours = bar.layouts == &kOurs;
      Value value{.figure = figure, .row = model.name, .column = bar.column, .unit = unit};
      VOLLEY_ASSIGN_OR_RETURN(value.paper, inputs.paper.at(figure).at(model.name, bar.column));
      // The paper's two pools are two kinds of GPU where there are two.
      const auto found = best_of(
          model, planning, ours ? paper_space(kTestBedGpus) : baseline_space(model), *bar.layouts);
      if (found.ok()) {
        value.ours = found->prediction.value;
        value.note = describe(planning, *found);
      } else if (found.status().code() != StatusCode::kFailedPrecondition) {
        return found.status();
      } else {
        value.note = message_of(found.status());
      }
      values.push_back(std::move(value));
    }
  }
  return values;
}

/// The shape of the plans on the homogeneous test bed, as far as the paper shows it.
Plan paper_plan(const perf::ModelShape& model, uint32_t attention_nodes, uint32_t rows) {
  Plan plan;
  plan.attention = {.device = 0, .tp = 2, .nodes = attention_nodes};
  plan.expert = {.device = 0, .tp = 1, .nodes = model.experts()};
  plan.micro_batches = 3;
  plan.rows = rows;
  return plan;
}

Candidate priced(const perf::ModelShape& model, const planner::PlanningCase& planning,
                 const Plan& plan) {
  const planner::RooflineNodes nodes(model);
  const planner::PlanModel plans(model, nodes, planning);
  return {plan, plans.predict(plan)};
}

perf::Device with(const perf::Device& device, const Constants& constants) {
  perf::Device changed = device;
  std::vector<perf::Curve::Point> points = device.efficiency.compute.points();
  const double scale = constants.compute / points.back().y;
  for (auto& point : points) point.y *= scale;
  changed.efficiency.compute = perf::Curve::make(std::move(points)).value();
  changed.efficiency.attention_layer_s = constants.attention_layer_s;
  return changed;
}

/// The argument in [low, high] where the rising `function` is 0.
template <class Function>
double root_of(double low, double high, const Function& function) {
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (function(middle) < 0 ? low : high) = middle;
  }
  return (low + high) / 2;
}

Result<Constants> fit(const Inputs& inputs) {
  const perf::ModelShape& dbrx = inputs.models[kDbrx];
  const perf::Device& device = inputs.devices.at("a800");
  VOLLEY_ASSIGN_OR_RETURN(const double throughput,
                          inputs.paper.at("fig8").at(dbrx.name, "megascale_infer"));
  VOLLEY_ASSIGN_OR_RETURN(const double tpot_ms, inputs.paper.at("fig13").at("1", "tpot_ms"));
  const auto price = [&](const Constants& constants, uint32_t attention_nodes, uint32_t rows) {
    const auto planning = case_of({with(device, constants)}, planner::Objective::kPerGpu);
    return priced(dbrx, planning, paper_plan(dbrx, attention_nodes, rows)).prediction;
  };
  // Each bar depends on one of them alone, as long as experts bind the one and attention the other.
  Constants constants;
  constants.compute = root_of(0.2, 1, [&](double compute) {
    return price({.compute = compute}, 8, 256).value - throughput;
  });
  constants.attention_layer_s = root_of(0, 1e-3, [&](double layer_s) {
    return 1e3 * price({constants.compute, layer_s}, 1, 128).tpot_s - tpot_ms;
  });
  return constants;
}

}  // namespace

Result<Inputs> read_inputs(const std::string& catalogue, const std::string& data) {
  Inputs inputs;
  for (const char* name : {"a800", "h20", "l40s"}) {
    VOLLEY_ASSIGN_OR_RETURN(inputs.devices[name], perf::find_device(catalogue + "/hardware", name));
  }
  for (const char* name : {"mixtral-8x22b", "dbrx", "scaled-moe"}) {
    VOLLEY_ASSIGN_OR_RETURN(inputs.models.emplace_back(),
                            perf::find_model_shape(catalogue + "/models", name));
  }
  for (const char* name : {"fig8", "fig9", "fig10", "fig11", "fig12", "fig13"}) {
    VOLLEY_ASSIGN_OR_RETURN(inputs.paper[name], read_table(fmt::format("{}/{}.csv", data, name)));
  }
  VOLLEY_ASSIGN_OR_RETURN(inputs.constants, fit(inputs));
  for (auto& [name, device] : inputs.devices) device = with(device, inputs.constants);
  return inputs;
}

Result<std::vector<Value>> throughput_per_gpu(const Inputs& inputs) {
  VOLLEY_ASSIGN_OR_RETURN(std::vector<Value> values,
                          throughput(inputs, "fig8", planner::Objective::kPerGpu, "tokens/s/GPU",
                                     {{"vllm", {"a800"}, &kVllm},
                                      {"tensorrt_llm", {"a800"}, &kTensorRtLlm},
                                      {"megascale_infer", {"a800"}, &kOurs}}));
  const perf::ModelShape& dbrx = inputs.models[kDbrx];
  const auto planning = case_of({inputs.devices.at("a800")}, planner::Objective::kPerGpu);
  const Candidate inferred = priced(dbrx, planning, paper_plan(dbrx, 8, 256));
  Value value{.figure = "fig8",
              .row = dbrx.name,
              .column = "megascale_infer, inferred plan",
              .unit = "tokens/s/GPU",
              .ours = inferred.prediction.value,
              .kind = Kind::kFitted,
              .note = describe(planning, inferred)};
  VOLLEY_ASSIGN_OR_RETURN(value.paper, inputs.paper.at("fig8").at(dbrx.name, "megascale_infer"));
  values.push_back(std::move(value));
  return values;
}

Result<std::vector<Value>> throughput_per_cost(const Inputs& inputs) {
  return throughput(inputs, "fig9", planner::Objective::kPerCost, "tokens/s/cost",
                    {{"vllm_l40s", {"l40s"}, &kVllm},
                     {"tensorrt_llm_l40s", {"l40s"}, &kTensorRtLlm},
                     {"vllm_h20", {"h20"}, &kVllm},
                     {"tensorrt_llm_h20", {"h20"}, &kTensorRtLlm},
                     {"megascale_infer_h20_l40s", {"h20", "l40s"}, &kOurs}});
}

Result<std::vector<Value>> transfer_times(const Inputs& inputs) {
  const perf::Device& device = inputs.devices.at("a800");
  const auto time_us = [&](double peers, double bytes) {
    return 1e6 * planner::phase_time(device, peers * bytes, device, peers * bytes).total;
  };
  std::vector<Value> values;
  for (const Table::Row& row : inputs.paper.at("fig10").rows) {
    Value value{.figure = "fig10", .row = row.name, .column = "m2n_median_us", .unit = "us"};
    VOLLEY_ASSIGN_OR_RETURN(value.paper, inputs.paper.at("fig10").at(row.name, value.column));
    value.ours = time_us(8, std::stod(row.name));
    value.kind = Kind::kFitted;
    values.push_back(std::move(value));
  }
  for (const Table::Row& row : inputs.paper.at("fig11").rows) {
    Value value{.figure = "fig11", .row = row.name, .column = "m2n_median_us", .unit = "us"};
    VOLLEY_ASSIGN_OR_RETURN(value.paper, inputs.paper.at("fig11").at(row.name, value.column));
    value.ours = time_us(std::stod(row.name), 256 << 10);
    values.push_back(std::move(value));
  }
  return values;
}

Result<std::vector<Value>> micro_batch_sweep(const Inputs& inputs) {
  std::vector<Value> values;
  const auto planning = case_of({inputs.devices.at("a800")}, planner::Objective::kPerGpu);
  for (const perf::ModelShape& model : inputs.models) {
    Plan best;
    double most = 0;
    for (uint32_t nodes = 1; nodes <= kTestBedGpus; ++nodes) {
      Plan plan = paper_plan(model, nodes, 128);
      const double value = priced(model, planning, plan).prediction.value;
      if (value > most) {
        best = plan;
        most = value;
      }
    }
    for (uint32_t m = 1; m <= 4; ++m) {
      Plan plan = best;
      plan.micro_batches = m;
      Value value{.figure = "fig12",
                  .row = model.name,
                  .column = fmt::format("m{}", m),
                  .unit = "tokens/s/GPU"};
      VOLLEY_ASSIGN_OR_RETURN(value.paper, inputs.paper.at("fig12").at(model.name, value.column));
      const Candidate candidate = priced(model, planning, plan);
      value.ours = candidate.prediction.value;
      value.note = describe(planning, candidate);
      values.push_back(std::move(value));
    }
  }
  return values;
}

Result<std::vector<Value>> attention_node_sweep(const Inputs& inputs) {
  const perf::ModelShape& dbrx = inputs.models[kDbrx];
  const auto planning = case_of({inputs.devices.at("a800")}, planner::Objective::kPerGpu);
  std::vector<Value> values;
  for (const Table::Row& row : inputs.paper.at("fig13").rows) {
    const auto nodes = static_cast<uint32_t>(std::stoul(row.name));
    const Candidate candidate = priced(dbrx, planning, paper_plan(dbrx, nodes, 128));
    for (const char* column : {"tpot_ms", "tokens_per_s_per_gpu"}) {
      Value value{.figure = "fig13", .row = row.name, .column = column};
      const bool latency = value.column == "tpot_ms";
      value.unit = latency ? "ms" : "tokens/s/GPU";
      VOLLEY_ASSIGN_OR_RETURN(value.paper, inputs.paper.at("fig13").at(row.name, column));
      value.ours = latency ? 1e3 * candidate.prediction.tpot_s : candidate.prediction.value;
      value.kind = nodes == 1 ? Kind::kFitted : Kind::kPredicted;
      value.note = describe(planning, candidate);
      values.push_back(std::move(value));
    }
  }
  return values;
}

}  // namespace volley::paper_figures
