#include "simulated.h"

#include <algorithm>
#include <utility>

#include "volley/simulation/simulate.h"

namespace volley::benchmarks {
namespace {

class CalibratedTimes final : public perf::StageTimes {
 public:
  CalibratedTimes(std::map<uint32_t, PhaseTimes> by_rows, uint32_t top_k)
      : by_rows_(std::move(by_rows)), top_k_(top_k) {}

  double attention_layer(const perf::StepLoad& load) const override {
    return at(load.rows, &PhaseTimes::attention);
  }
  double attention_step(const perf::StepLoad& load) const override {
    return at(load.emitting_rows, &PhaseTimes::head);
  }
  double expert_layer(std::span<const double> rows_of_expert) const override {
    double pairs = 0;
    for (const double rows : rows_of_expert) pairs += rows;
    return at(pairs / top_k_, &PhaseTimes::expert);
  }

 private:
  double at(double rows, double PhaseTimes::*part) const {
    const auto above =
        std::lower_bound(by_rows_.begin(), by_rows_.end(), rows,
                         [](const auto& point, double wanted) { return point.first < wanted; });
    if (above == by_rows_.end()) {
      const auto& [most, times] = *by_rows_.rbegin();
      return times.*part * rows / most / 1e9;
    }
    if (above == by_rows_.begin()) return above->second.*part * rows / above->first / 1e9;
    const auto below = std::prev(above);
    const double share = (rows - below->first) / (above->first - below->first);
    return (below->second.*part * (1 - share) + above->second.*part * share) / 1e9;
  }

  const std::map<uint32_t, PhaseTimes> by_rows_;
  const double top_k_;
};

}  // namespace

std::unique_ptr<perf::StageTimes> calibrated_times(const std::map<uint32_t, PhaseTimes>& by_rows,
                                                   uint32_t top_k) {
  return std::make_unique<CalibratedTimes>(by_rows, top_k);
}

Result<double> simulated_tokens_per_s(const model::ModelSpec& spec, const SimulatedRun& run,
                                      const perf::StageTimes& times) {
  simulation::SimulationOptions options;
  options.cluster = {.attention_nodes = run.attention_nodes,
                     .expert_nodes = run.expert_nodes,
                     .layers = spec.layer_count(),
                     .experts = spec.layers.front().moe.experts,
                     .top_k = spec.layers.front().moe.top_k,
                     .held = {},
                     .micro_batches = run.micro_batches,
                     .tokens_per_step = std::max(run.rows, 64u),
                     .sequences = run.micro_batches * run.rows};
  options.network = {.latency_s = run.transfer_s, .bytes_per_s = 1e15};
  // Prompts are there from the start, as in the measured window, in which every sequence decodes.
  const double sequences = run.attention_nodes * run.micro_batches * run.rows;
  options.workload.streams = static_cast<uint32_t>(sequences);
  options.workload.prefilled = true;
  options.workload.input.a = run.prompt_tokens;
  options.workload.output.a = 100'000;
  // Contexts grow with the steps, so as many are simulated as were measured. How long they take, a
  // first simulation says, which is given more time than a few steps can need.
  const double rows = run.rows;
  const perf::StepLoad load{.rows = rows,
                            .context_tokens = rows * (run.prompt_tokens + run.steps),
                            .emitting_rows = rows};
  const double layer = times.attention_layer(load) + 2 * run.transfer_s + 1e-3;
  double step = run.micro_batches * (spec.layer_count() * layer + times.attention_step(load));
  for (const uint32_t steps : {8u, run.steps}) {
    options.warm_up_s = 4 * step;
    options.duration_s = (4 + steps) * step;
    VOLLEY_ASSIGN_OR_RETURN(const simulation::Report report, simulation::simulate(options, times));
    if (report.tokens_per_s <= 0) return internal_error("the simulation made no token");
    step = sequences / report.tokens_per_s;
  }
  return sequences / step;
}

Result<double> transfer_for(const model::ModelSpec& spec, SimulatedRun run,
                            const perf::StageTimes& times, double tokens_per_s) {
  double low = 0, high = 10e-3;
  for (int i = 0; i < 14; ++i) {
    run.transfer_s = (low + high) / 2;
    VOLLEY_ASSIGN_OR_RETURN(const double rate, simulated_tokens_per_s(spec, run, times));
    (rate > tokens_per_s ? low : high) = run.transfer_s;
  }
  return low;
}

}  // namespace volley::benchmarks
