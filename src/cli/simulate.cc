// volley simulate: plays a workload on a modelled cluster.

#include "volley/simulation/simulate.h"

#include <cstdio>
#include <memory>
#include <optional>
#include <vector>

#include "catalogue.h"
#include "commands.h"
#include "output_file.h"
#include "volley/simulation/scaling.h"
#include "volley/simulation/simulation_file.h"

namespace volley::cli {
namespace {

struct SimulateOptions {
  std::string file;
  std::string catalogue;
  std::string json, trace, svg;
  std::optional<double> duration_s, warm_up_s;
  std::optional<uint32_t> replicas, simulated, micro_batches;
  std::optional<uint64_t> seed;
  std::vector<std::string> changes;
  bool costs = false;
  bool scaling = false;
};

Status apply(const SimulateOptions& given, simulation::SimulationOptions& options) {
  if (given.duration_s) options.duration_s = *given.duration_s;
  if (given.warm_up_s) options.warm_up_s = *given.warm_up_s;
  if (given.replicas) options.replicas = *given.replicas;
  if (given.simulated) options.simulated = *given.simulated;
  if (given.micro_batches) {
    options.cluster.micro_batches = *given.micro_batches;
    options.cluster.adaptive_micro_batches = false;
  }
  if (given.seed) options.seed = *given.seed;
  for (const std::string& text : given.changes) {
    VOLLEY_ASSIGN_OR_RETURN(const simulation::ChangeOptions change, simulation::parse_change(text));
    options.changes.push_back(change);
  }
  options.measure_costs = given.costs;
  return ok_status();
}

int run_scaling(const simulation::Simulation& simulation, OutputFile& json) {
  const auto rows = simulation::measure_scaling(
      simulation.options, *simulation.times, [](const simulation::ScalingRow& row) {
        std::fprintf(stderr, "%s: %u attention nodes, %u experts on %u nodes, %u rows\n",
                     row.varied.c_str(), row.attention_nodes, row.experts, row.expert_nodes,
                     row.rows);
      });
  if (!rows.ok()) return report(rows.status());
  std::fputs(simulation::format_scaling(*rows).c_str(), stdout);
  if (const Status status = json.write(simulation::scaling_json(*rows)); !status.ok()) {
    return report(status);
  }
  return kExitOk;
}

int run_simulate(const SimulateOptions& given) {
  const auto catalogue = find_catalogue(given.catalogue);
  if (!catalogue.ok() && !given.catalogue.empty()) return report(catalogue.status());
  // A file that names nothing of the catalogue needs none.
  auto simulation = simulation::load_simulation(given.file, catalogue.value_or("configs"));
  if (!simulation.ok()) return report(simulation.status());
  simulation::SimulationOptions& options = simulation->options;
  if (const Status status = apply(given, options); !status.ok()) return report(status);
  const bool pictures = !given.trace.empty() || !given.svg.empty();
  if (pictures && options.trace.length_s == 0) {
    return report(invalid_argument(
        "{}: trace.length_s: --trace and --svg need a stretch of time to show", given.file));
  }
  if (!pictures) options.trace = {};
  // Before the work: a path that cannot be written is told at once.
  auto json = OutputFile::open(given.json);
  if (!json.ok()) return report(json.status());
  auto trace = OutputFile::open(given.trace);
  if (!trace.ok()) return report(trace.status());
  auto svg = OutputFile::open(given.svg);
  if (!svg.ok()) return report(svg.status());
  if (given.scaling) return run_scaling(*simulation, *json);

  const auto result = simulation::simulate(options, *simulation->times);
  if (!result.ok()) return report(result.status());
  std::fputs(simulation::format_report(*result, true).c_str(), stdout);
  if (result->trace.cut) {
    std::fprintf(stderr, "the trace has the first %zu spans only: trace.spans\n",
                 result->trace.spans.size());
  }
  for (const Status& status : {json->write(simulation::report_json(*result, true)),
                               trace->write(simulation::trace_json(result->trace)),
                               svg->write(simulation::trace_svg(result->trace, given.file))}) {
    if (!status.ok()) return report(status);
  }
  return kExitOk;
}

}  // namespace

void add_simulate_command(CLI::App& app, const GlobalOptions&, Run& run) {
  auto options = std::make_shared<SimulateOptions>();
  CLI::App* command = app.add_subcommand(
      "simulate", "Plays a workload on a modelled cluster, with the engine's own scheduler");
  command->add_option("file", options->file, "simulation.yaml; examples are in configs/simulations")
      ->required();
  command->add_option(
      "--catalogue", options->catalogue,
      "Folder with models/ and hardware/; otherwise ./configs, or that of the binary");
  command->add_option("--json", options->json, "Writes the report to this file as well");
  command->add_option("--trace", options->trace,
                      "Writes the file's trace window to this file, for ui.perfetto.dev");
  command->add_option("--svg", options->svg, "Writes a picture of it to this file");
  command->add_option("--duration", options->duration_s, "Seconds, in place of run.duration_s");
  command->add_option("--warm-up", options->warm_up_s, "Seconds, in place of run.warm_up_s");
  command->add_option("--replicas", options->replicas, "In place of run.replicas");
  command->add_option("--simulated", options->simulated,
                      "In place of run.simulated: so many replicas stand for all");
  command->add_option("--micro-batches", options->micro_batches,
                      "In place of cluster.micro_batches");
  command->add_option("--seed", options->seed, "In place of run.seed");
  command->add_option(
      "--change", options->changes,
      "\"SECONDS kill|add|remove NODE\", beside those of the file; may be repeated");
  command->add_flag("--costs", options->costs,
                    "Times each call into the scheduler, which slows the simulation down");
  command->add_flag("--scaling", options->scaling,
                    "Measures instead how the scheduler's cost grows with nodes, experts, streams");
  command->callback([options, &run] { run = [options] { return run_simulate(*options); }; });
}

}  // namespace volley::cli
