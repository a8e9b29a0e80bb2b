#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <set>

#include "catalogue.h"
#include "commands.h"
#include "format.h"
#include "output_file.h"
#include "volley/planner/report.h"

namespace volley::cli {
namespace {

using planner::Candidate;
using planner::Layout;
using planner::Objective;
using planner::Plan;
using planner::PlanReport;
using planner::Pool;
using planner::Prediction;

constexpr double kGiga = 1e9;
constexpr double kMilli = 1e3;
constexpr double kMicro = 1e6;

const std::map<std::string, Objective> kObjectives = {
    {"gpu", Objective::kPerGpu}, {"cost", Objective::kPerCost}, {"watt", Objective::kPerWatt}};

struct PlanCommand {
  std::string model;
  std::vector<std::string> hardware;
  std::string catalogue;
  std::string slo = "tpot=150ms";
  std::string objective = "gpu";
  std::string layouts = "all";
  planner::PlanningCase planning;
  planner::SearchSpace space;
  uint32_t top = 8;
  std::string json;
  std::string cluster;
  planner::ClusterFileOptions cluster_options;
};

/// "1.23 M" for people; exact numbers are in the JSON.
std::string short_number(double value) {
  if (value >= 1e6) return fmt::format("{:.2f} M", value / 1e6);
  return value >= 1e4 ? fmt::format("{:.0f} k", value / 1e3) : fmt::format("{:.0f}", value);
}

std::string pool_text(const PlanReport& report, const Pool& pool) {
  const std::string& name = report.planning.devices[pool.device].name;
  return fmt::format("{} x {}{}", pool.nodes, name,
                     pool.tp > 1 ? fmt::format(" tp{}", pool.tp) : std::string());
}

std::string experts_text(const PlanReport& report, const Plan& plan) {
  switch (plan.layout) {
    case Layout::kDisaggregated:
      return pool_text(report, plan.expert);
    case Layout::kTp:
      return "the same";
    default:
      return fmt::format("the same, EP {}{}", plan.expert.nodes,
                         plan.expert.tp > 1 ? fmt::format(" tp{}", plan.expert.tp) : "");
  }
}

/// Tokens/s per watt are small numbers, per GPU large ones.
std::string value_text(double value) {
  return fmt::format("{:.{}f}", value, value >= 100 ? 0 : value >= 1 ? 2 : 4);
}

std::string candidates_table(const PlanReport& report, size_t top) {
  std::vector<std::vector<std::string>> rows = {
      {"#", "layout", "attention", "experts", "stages", "m", "rows", "GPUs", "batch",
       fmt::format("tok/s/{}", name_of(report.planning.objective)), "of best", "TPOT ms", "P99 ms",
       "bound by", "batch by"}};
  const auto& best = report.result.best;
  for (size_t i = 0; i < std::min(top, best.size()); ++i) {
    const auto& [plan, prediction] = best[i];
    rows.push_back({fmt::format("{}", i + 1), std::string(name_of(plan.layout)),
                    pool_text(report, plan.attention), experts_text(report, plan),
                    fmt::format("{}", plan.stages), fmt::format("{}", plan.micro_batches),
                    fmt::format("{}", plan.rows), fmt::format("{}", plan.gpus()),
                    fmt::format("{:.0f}", plan.batch()), value_text(prediction.value),
                    fmt::format("{:.0f} %", 100 * prediction.value / best[0].prediction.value),
                    fmt::format("{:.1f}", prediction.tpot_s * kMilli),
                    fmt::format("{:.1f}", prediction.tpot_p99_s * kMilli),
                    std::string(name_of(prediction.bottleneck)),
                    std::string(name_of(prediction.row_limit))});
  }
  return format_table(rows);
}

std::string details(const PlanReport& report, const Candidate& winner) {
  const auto& [plan, prediction] = winner;
  const planner::LayerTimes& times = prediction.times;
  const planner::MemoryUse& memory = prediction.memory;
  const auto us = [](double seconds) { return fmt::format("{:.0f} us", seconds * kMicro); };
  const auto gb = [](double bytes) { return fmt::format("{:.1f} GB", bytes / kGiga); };
  std::vector<std::vector<std::string>> rows;
  rows.push_back(
      {"  attention", fmt::format("T_a {} per layer; slowest node +{:.1f} % context",
                                  us(times.attention), 100 * (prediction.attention_stretch - 1))});
  rows.push_back(
      {"  experts", fmt::format("T_e {} per layer; slowest node +{:.1f} % rows", us(times.expert),
                                100 * (prediction.expert_stretch - 1))});
  rows.push_back({"  communication", fmt::format("{} there, {} back", us(times.dispatch.total),
                                                 us(times.combine.total))});
  if (plan.layout == Layout::kDisaggregated) {
    const double transfer = (times.dispatch.total + times.combine.total) / 2;
    rows.push_back(
        {"  micro-batches",
         fmt::format("{}; {} hide communication (T_c / T_f = {:.2f})", plan.micro_batches,
                     planner::micro_batches_min(transfer / times.busiest()),
                     transfer / times.busiest())});
    rows.push_back(
        {"  attention memory",
         fmt::format("weights {}, buffers {}, KV {} of {}", gb(memory.attention_weights),
                     gb(memory.attention_buffers), gb(memory.kv), gb(memory.attention_usable))});
    rows.push_back(
        {"  expert memory", fmt::format("weights {}, buffers {} of {}", gb(memory.expert_weights),
                                        gb(memory.expert_buffers), gb(memory.expert_usable))});
  } else {
    rows.push_back({"  memory", fmt::format("weights {}, buffers {}, KV {} of {}",
                                            gb(memory.attention_weights + memory.expert_weights),
                                            gb(memory.attention_buffers + memory.expert_buffers),
                                            gb(memory.kv), gb(memory.attention_usable))});
  }
  rows.push_back({"  bound by", fmt::format("{}; the batch by {}", name_of(prediction.bottleneck),
                                            name_of(prediction.row_limit))});
  return fmt::format("Winner: {}, {:.0f} tokens/s\n{}", kind_of(report.planning, plan),
                     prediction.tokens_per_s, format_table(rows));
}

std::string sensitivity_table(const PlanReport& report) {
  const double base = report.result.best[0].prediction.value;
  const auto text = [&](const std::optional<Candidate>& candidate) {
    if (!candidate) return std::string("not possible");
    const Plan& plan = candidate->plan;
    return fmt::format("{:+.1f} %, TPOT {:.1f} ms, {} + {} nodes, m {}, {} rows",
                       100 * (candidate->prediction.value / base - 1),
                       candidate->prediction.tpot_s * kMilli, plan.attention.nodes,
                       plan.expert.nodes, plan.micro_batches, plan.rows);
  };
  std::vector<std::vector<std::string>> rows = {{"  change", "this plan", "best of its kind then"}};
  for (const planner::Sensitivity& change : report.sensitivity) {
    const bool searched = change.change.front() != '+';
    rows.push_back({"  " + change.change, text(change.same_plan),
                    searched ? text(change.best_plan) : std::string("-")});
  }
  return format_table(rows);
}

std::string format_report(const PlanReport& report, size_t top) {
  const planner::PlanningCase& planning = report.planning;
  const auto limit = [](double seconds) {
    return seconds > 0 ? fmt::format("{:.0f} ms", seconds * kMilli) : std::string("any");
  };
  std::string text = fmt::format(
      "{}: {:.0f} tokens in, {:.0f} out ({:.0f} of context); TPOT {}, P99 {}; most tokens/s per "
      "{}\n\n",
      report.model.name, planning.workload.input_tokens, planning.workload.output_tokens,
      planning.workload.context_tokens(), limit(planning.slo.tpot_s),
      limit(planning.slo.tpot_p99_s), name_of(planning.objective));
  text += candidates_table(report, top);
  if (report.result.best.size() > top) {
    text += fmt::format("({} more kinds; --top {} shows all)\n", report.result.best.size() - top,
                        report.result.best.size());
  }
  text += "\n" + details(report, report.result.best[0]);
  text += "\nSensitivity\n" + sensitivity_table(report);
  if (!report.result.rejected.empty()) {
    text += "\nNot possible\n";
    for (const planner::Rejection& rejection : report.result.rejected) {
      text += fmt::format("  {}: {}\n", rejection.kind, rejection.reason);
    }
  }
  const planner::SearchCounts& counts = report.result.counts;
  return text + fmt::format(
                    "\n{} plans in {:.2f} s ({} plans/s): {} priced, the others bounded away; {} "
                    "evaluations of the model\n",
                    short_number(static_cast<double>(counts.plans)), counts.seconds,
                    short_number(static_cast<double>(counts.plans) / counts.seconds),
                    short_number(static_cast<double>(counts.priced)),
                    short_number(static_cast<double>(counts.evaluations)));
}

/// A bar on a terminal, once the search has taken longer than an eye waits.
planner::Progress progress_bar() {
  if (::isatty(STDERR_FILENO) == 0) return {};
  return [start = std::chrono::steady_clock::now(), shown = false](double done) mutable {
    constexpr size_t kWidth = 40;
    constexpr std::chrono::milliseconds kPatience(500);
    if (std::chrono::steady_clock::now() - start < kPatience) return;
    if (done >= 1) {
      if (shown) std::fprintf(stderr, "\r\033[K");
      return;
    }
    shown = true;
    const auto filled = static_cast<size_t>(done * kWidth);
    std::fprintf(stderr, "\r[%s%s] %3.0f %%", std::string(filled, '#').c_str(),
                 std::string(kWidth - filled, ' ').c_str(), 100 * done);
  };
}

Status complete(PlanCommand& command, perf::ModelShape& model) {
  VOLLEY_ASSIGN_OR_RETURN(command.planning.slo, planner::parse_slo(command.slo));
  command.planning.objective = kObjectives.at(command.objective);
  command.space.disaggregated = command.layouts != "colocated";
  command.space.colocated = command.layouts != "disaggregated";
  VOLLEY_ASSIGN_OR_RETURN(const std::string catalogue, find_catalogue(command.catalogue));
  std::set<std::string> names;
  for (const std::string& name : command.hardware) {
    VOLLEY_ASSIGN_OR_RETURN(perf::Device device, perf::find_device(catalogue + "/hardware", name));
    if (!names.insert(device.name).second) {
      return invalid_argument("--hardware: {} is listed twice", device.name);
    }
    command.planning.devices.push_back(std::move(device));
  }
  VOLLEY_ASSIGN_OR_RETURN(model, perf::find_model_shape(catalogue + "/models", command.model));
  return ok_status();
}

int run_plan(PlanCommand command) {
  perf::ModelShape model;
  if (const Status status = complete(command, model); !status.ok()) return report(status);
  auto json = OutputFile::open(command.json);
  if (!json.ok()) return report(json.status());
  auto cluster = OutputFile::open(command.cluster);
  if (!cluster.ok()) return report(cluster.status());

  const planner::RooflineNodes nodes(model);
  auto found = planner::search(model, nodes, command.planning, command.space, progress_bar());
  if (!found.ok()) return report(found.status());
  const Plan winner = found->best[0].plan;
  const PlanReport plan_report{
      .model = model,
      .planning = command.planning,
      .space = command.space,
      .result = *std::move(found),
      .sensitivity = planner::sensitivity(model, nodes, command.planning, command.space, winner)};
  std::fputs(format_report(plan_report, command.top).c_str(), stdout);
  if (const Status status = json->write(planner::report_json(plan_report)); !status.ok()) {
    return report(status);
  }
  if (command.cluster.empty()) return kExitOk;
  planner::ClusterFileOptions options = command.cluster_options;
  if (options.checkpoint.empty()) options.checkpoint = command.model;
  const Status status = cluster->write(planner::cluster_file(plan_report, winner, options));
  return status.ok() ? kExitOk : report(status);
}

void add_options(CLI::App& app, PlanCommand& command) {
  planner::PlanningCase& planning = command.planning;
  planner::SearchSpace& space = command.space;
  app.add_option("--model", command.model,
                 "A name of the catalogue, a model's YAML file, or a Hugging Face folder")
      ->required();
  app.add_option("--hardware", command.hardware,
                 "Names of the catalogue or YAML files, separated by commas")
      ->required()
      ->delimiter(',');
  app.add_option("--catalogue", command.catalogue,
                 "Folder with hardware/ and models/; otherwise ./configs, or that of the binary");
  app.add_option("--slo", command.slo, "tpot=TIME[,p99=TIME] of a token, like tpot=150ms")
      ->capture_default_str();
  app.add_option("--input", planning.workload.input_tokens, "Tokens of a prompt, in the mean")
      ->capture_default_str();
  app.add_option("--output", planning.workload.output_tokens, "Tokens generated, in the mean")
      ->capture_default_str();
  app.add_option("--context-cv", planning.workload.context_cv,
                 "Standard deviation of context lengths over their mean")
      ->capture_default_str();
  app.add_option("--expert-skew", planning.workload.expert_skew,
                 "Zipf exponent of the popularity of experts; 0: even")
      ->capture_default_str();
  app.add_option("--objective", command.objective, "Tokens/s per gpu, cost (price) or watt")
      ->check(CLI::IsMember({"gpu", "cost", "watt"}))
      ->capture_default_str();
  app.add_option("--layouts", command.layouts, "all, disaggregated or colocated")
      ->check(CLI::IsMember({"all", "disaggregated", "colocated"}))
      ->capture_default_str();
  app.add_option("--gpus-max", space.gpus_max, "Of one instance")->capture_default_str();
  app.add_option("--micro-batches-max", space.micro_batches_max, "The most that are tried")
      ->capture_default_str();
  app.add_option("--replicas-max", space.replicas_max, "Copies of an expert, in the mean, at most")
      ->capture_default_str();
  app.add_option("--attention-tp", space.attention_tp, "Tensor parallelism of attention to try")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--expert-tp", space.expert_tp, "Tensor parallelism of experts to try")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--rows-max", planning.rows_max, "Of a micro-batch of an attention node")
      ->capture_default_str();
  app.add_flag("--spare-expert-node", planning.spare_expert_node,
               "Expert nodes keep room for the experts of a lost one");
  app.add_flag("--pre-reduce", planning.pre_reduce,
               "Expert nodes add up a token's answers before they return them");
  app.add_option("--top", command.top, "Kinds of deployment to print")->capture_default_str();
  app.add_option("--json", command.json, "Writes the report to this file as well");
  app.add_option("--cluster", command.cluster, "Writes a cluster file of the winner");
  app.add_option("--checkpoint", command.cluster_options.checkpoint,
                 "model.path of the cluster file; otherwise the value of --model");
  app.add_option("--fabric", command.cluster_options.fabric, "transport.fabric of the cluster file")
      ->check(CLI::IsMember({"shm", "tcp", "rdma"}))
      ->capture_default_str();
}

}  // namespace

void add_plan_command(CLI::App& app, const GlobalOptions&, Run& run) {
  auto command = std::make_shared<PlanCommand>();
  CLI::App* plan = app.add_subcommand(
      "plan", "Finds the deployment of a model on given hardware, disaggregated or not");
  add_options(*plan, *command);
  plan->callback([command, &run] { run = [command] { return run_plan(*command); }; });
}

}  // namespace volley::cli
