// Predictions beside the machine. First real kernels: one attention and one expert node, each a
// process on a core of its own. Then larger clusters with modelled computation, whose scheduler,
// gather and messages are real. Predictions know the run with m = 1 only. docs/profiling.md says
// what the numbers mean.

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "common/report.h"
#include "modelled_cluster.h"
#include "pair_run.h"
#include "simulated.h"
#include "trace_analysis.h"
#include "volley/base/random.h"
#include "volley/config/stage_times.h"
#include "volley/protocol/wire.h"

namespace volley::benchmarks {
namespace {

using nlohmann::json;

struct Options {
  std::vector<std::string> models;
  std::vector<std::string> fabrics = {"shm", "tcp"};
  std::vector<uint32_t> rows = {8, 32, 64};
  std::vector<uint32_t> micro_batches = {1, 2, 3, 4};
  std::vector<std::string> clusters = {"2x2", "3x5"};
  std::string kind = "both";
  std::string times;
  uint32_t layers = 0;
  uint32_t steps = 32, window_rounds = 8, repeat = 2;
  uint32_t attention_core = 0, expert_core = 1;
  std::string json_path, markdown_path;
};

constexpr const char* kClosedForm = "closed form";
constexpr const char* kSimulation = "simulation";
// Not a prediction: how far the formula is off when the times are right.
constexpr const char* kOwnTimes = "closed form, own times";

/// One line of the report.
struct Line {
  std::string kind, model, fabric, cluster;
  uint32_t rows = 0, micro_batches = 0;
  double tokens_per_s = 0;
  PhaseTimes times{};                         ///< Measured in that run; real ones.
  std::map<std::string, double> predicted{};  ///< Tokens per second, by predictor.

  uint32_t attention_nodes() const { return static_cast<uint32_t>(std::stoul(cluster)); }
  /// Time between two tokens of a sequence, when so many tokens come per second.
  double tpot_s(double rate) const { return attention_nodes() * micro_batches * rows / rate; }
};

/// The model, cut to its first layers where the options say so.
Result<model::Checkpoint> open_model(const std::string& folder, const Options& options) {
  VOLLEY_ASSIGN_OR_RETURN(model::Checkpoint checkpoint, model::Checkpoint::open_dummy(folder, 1));
  if (options.layers != 0 && options.layers < checkpoint.spec.layer_count()) {
    checkpoint.spec.layers.resize(options.layers);
  }
  return checkpoint;
}

std::string name_of(const std::string& folder) {
  return std::filesystem::path(folder).lexically_normal().filename().string();
}

double error_of(const Line& line, const std::string& predictor) {
  return line.predicted.at(predictor) / line.tokens_per_s - 1;
}

void tell(const Line& line) {
  std::fprintf(stderr,
               "%s %s %s %s b=%u m=%u: %.1f tokens/s, closed form %+.1f %%, simulation %+.1f %%\n",
               line.kind.c_str(), line.model.c_str(), line.fabric.c_str(), line.cluster.c_str(),
               line.rows, line.micro_batches, line.tokens_per_s, error_of(line, kClosedForm) * 100,
               error_of(line, kSimulation) * 100);
}

/// The fastest window of every number of micro-batches. Repetitions go around all of them, so that
/// what else the machine does for a while does not hit one of them only.
Result<std::vector<Window>> fastest_windows(const model::Checkpoint& checkpoint, PairOptions pair,
                                            const Options& options) {
  std::vector<Window> best(options.micro_batches.size());
  for (uint32_t i = 0; i < options.repeat; ++i) {
    for (size_t j = 0; j < best.size(); ++j) {
      pair.micro_batches = options.micro_batches[j];
      VOLLEY_ASSIGN_OR_RETURN(const RunTrace run, run_pair(checkpoint, pair));
      VOLLEY_ASSIGN_OR_RETURN(const std::vector<Window> windows,
                              find_windows(run, options.window_rounds));
      for (const Window& window : windows) {
        if (window.steps_per_s > best[j].steps_per_s) best[j] = window;
      }
    }
  }
  return best;
}

/// The runs of one model over one fabric, predicted from those with m = 1.
Status predict_real(const model::ModelSpec& spec, const Options& options,
                    const std::map<uint32_t, std::vector<Window>>& measured, const Line& common,
                    std::vector<Line>& lines) {
  const uint32_t layers = spec.layer_count();
  std::map<uint32_t, PhaseTimes> calibration;
  for (const auto& [rows, windows] : measured) calibration[rows] = windows.front().times;
  const auto times = calibrated_times(calibration, spec.layers.front().moe.top_k);
  for (const auto& [rows, windows] : measured) {
    for (size_t i = 0; i < windows.size(); ++i) {
      const uint32_t m = options.micro_batches[i];
      Line line = common;
      line.rows = rows;
      line.micro_batches = m;
      line.tokens_per_s = windows[i].steps_per_s * rows;
      line.times = windows[i].times;
      line.predicted[kClosedForm] = predicted_steps_per_s(calibration[rows], m, layers) * rows;
      // T_c hides behind the computation with more micro-batches.
      PhaseTimes own = line.times;
      own.transfer = calibration[rows].transfer;
      line.predicted[kOwnTimes] = predicted_steps_per_s(own, m, layers) * rows;
      VOLLEY_ASSIGN_OR_RETURN(
          line.predicted[kSimulation],
          simulated_tokens_per_s(spec,
                                 {.micro_batches = m,
                                  .rows = rows,
                                  .prompt_tokens = PairOptions{}.prompt_tokens,
                                  .steps = options.steps,
                                  .transfer_s = calibration[rows].transfer / 1e9},
                                 *times));
      tell(line);
      lines.push_back(std::move(line));
    }
  }
  return ok_status();
}

Status measure_real(const Options& options, std::vector<Line>& lines) {
  for (const std::string& folder : options.models) {
    VOLLEY_ASSIGN_OR_RETURN(const model::Checkpoint checkpoint, open_model(folder, options));
    for (const std::string& fabric : options.fabrics) {
      std::map<uint32_t, std::vector<Window>> measured;
      for (const uint32_t rows : options.rows) {
        VOLLEY_ASSIGN_OR_RETURN(measured[rows],
                                fastest_windows(checkpoint,
                                                {.fabric = fabric,
                                                 .attention_core = options.attention_core,
                                                 .expert_core = options.expert_core,
                                                 .rows = rows,
                                                 .steps = options.steps},
                                                options));
      }
      const Line common{
          .kind = "real", .model = name_of(folder), .fabric = fabric, .cluster = "1x1"};
      VOLLEY_RETURN_IF_ERROR(predict_real(checkpoint.spec, options, measured, common, lines));
    }
  }
  return ok_status();
}

/// T_e of an expert node whose run has `rows` rows that choose their experts at random: the mean
/// over draws, because with few rows some experts have none and are not read.
double mean_expert_layer(const perf::StageTimes& times, const model::MoeSpec& moe, uint32_t rows,
                         uint32_t expert_nodes) {
  constexpr int kDraws = 200;
  SplitMix64 random(1);
  double sum = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    std::vector<double> rows_of(moe.experts, 0.0);
    for (uint32_t row = 0; row < rows; ++row) {
      std::vector<uint64_t> chosen;
      while (chosen.size() < moe.top_k) {
        const uint64_t expert = random.below(moe.experts);
        if (std::ranges::find(chosen, expert) != chosen.end()) continue;
        chosen.push_back(expert);
        ++rows_of[expert];
      }
    }
    const uint32_t held = (moe.experts + expert_nodes - 1) / expert_nodes;
    rows_of.resize(held);
    sum += times.expert_layer(rows_of);
  }
  return sum / kDraws;
}

/// T_a, T_e, T_h of the times file; every dispatch of the attention nodes' micro-batches is in one
/// run.
PhaseTimes modelled_times(const perf::StageTimes& times, const model::ModelSpec& spec,
                          const ModelledClusterOptions& cluster) {
  const model::MoeSpec& moe = spec.layers.front().moe;
  const double rows = cluster.rows;
  // The middle of the measured tokens.
  const double context = cluster.prompt_tokens + 1 + cluster.steps / 2.0;
  const perf::StepLoad load{.rows = rows, .context_tokens = rows * context, .emitting_rows = rows};
  return {.attention = times.attention_layer(load) * 1e9,
          .expert = mean_expert_layer(times, moe, cluster.rows * cluster.attention_nodes,
                                      cluster.expert_nodes) *
                    1e9,
          .transfer = 0,
          .head = times.attention_step(load) * 1e9};
}

/// One shape of cluster with one number of rows, for each m; predicted from m = 1.
Status measure_cluster(const Options& options, const model::Checkpoint& checkpoint,
                       ModelledClusterOptions cluster, const Line& common,
                       std::vector<Line>& lines) {
  const perf::StageTimes& times = *cluster.compute.times;
  const uint32_t layers = checkpoint.spec.layer_count();
  PhaseTimes calibration;
  SimulatedRun simulated{.attention_nodes = cluster.attention_nodes,
                         .expert_nodes = cluster.expert_nodes,
                         .rows = cluster.rows,
                         .prompt_tokens = cluster.prompt_tokens,
                         .steps = cluster.steps};
  for (const uint32_t m : options.micro_batches) {
    Line line = common;
    line.rows = cluster.rows;
    line.micro_batches = cluster.micro_batches = m;
    for (uint32_t i = 0; i < options.repeat; ++i) {
      VOLLEY_ASSIGN_OR_RETURN(const ModelledRun run, run_modelled_cluster(checkpoint, cluster));
      line.tokens_per_s = std::max(line.tokens_per_s, run.tokens_per_s);
    }
    if (m == 1) {
      calibration = modelled_times(times, checkpoint.spec, cluster);
      // What is left of the period is both ways of the messages, wake-ups included, and in the
      // closed form also the wait for the slowest node, which the simulation has without it.
      const double period = line.tpot_s(line.tokens_per_s) * 1e9;
      calibration.transfer = std::max(
          0.0,
          ((period - calibration.head) / layers - calibration.attention - calibration.expert) / 2);
      VOLLEY_ASSIGN_OR_RETURN(simulated.transfer_s,
                              transfer_for(checkpoint.spec, simulated, times, line.tokens_per_s));
    }
    line.predicted[kClosedForm] =
        predicted_steps_per_s(calibration, m, layers) * cluster.rows * cluster.attention_nodes;
    simulated.micro_batches = m;
    VOLLEY_ASSIGN_OR_RETURN(line.predicted[kSimulation],
                            simulated_tokens_per_s(checkpoint.spec, simulated, times));
    tell(line);
    lines.push_back(std::move(line));
  }
  return ok_status();
}

Status measure_modelled(const Options& options, std::vector<Line>& lines) {
  perf::LinearTimes coefficients{.layer = 500e-6,
                                 .layer_row = 10e-6,
                                 .layer_context = 0.02e-6,
                                 .step = 500e-6,
                                 .step_emit = 5e-6,
                                 .expert_layer = 200e-6,
                                 .expert = 30e-6,
                                 .expert_row = 2e-6};
  if (!options.times.empty()) {
    VOLLEY_ASSIGN_OR_RETURN(const auto read, config::load_stage_times(options.times));
    coefficients = perf::linear_times(read);
  }
  ModelledClusterOptions cluster;
  cluster.compute.times = std::make_shared<perf::LinearStageTimes>(coefficients);
  for (const std::string& folder : options.models) {
    VOLLEY_ASSIGN_OR_RETURN(const model::Checkpoint checkpoint, open_model(folder, options));
    for (const std::string& fabric : options.fabrics) {
      cluster.fabric = fabric;
      for (const std::string& shape : options.clusters) {
        if (std::sscanf(shape.c_str(), "%ux%u", &cluster.attention_nodes, &cluster.expert_nodes) !=
            2) {
          return invalid_argument("--clusters: '{}' is not like 2x2", shape);
        }
        const Line common{
            .kind = "modelled", .model = name_of(folder), .fabric = fabric, .cluster = shape};
        for (const uint32_t rows : options.rows) {
          cluster.rows = rows;
          VOLLEY_RETURN_IF_ERROR(measure_cluster(options, checkpoint, cluster, common, lines));
        }
      }
    }
  }
  return ok_status();
}

/// Median and largest |predicted / measured - 1| of what was not calibrated on.
std::pair<double, double> errors_of(const std::vector<Line>& lines, const std::string& kind,
                                    const std::string& predictor) {
  std::vector<double> errors;
  for (const Line& line : lines) {
    if (line.kind != kind || line.micro_batches == 1) continue;
    errors.push_back(std::abs(error_of(line, predictor)));
  }
  if (errors.empty()) return {0, 0};
  std::ranges::sort(errors);
  return {errors[errors.size() / 2], errors.back()};
}

std::string markdown(const std::vector<Line>& lines) {
  std::string text =
      "| kind | model | fabric | nodes | b | m | tokens/s | simulation | closed form | TPOT ms | "
      "simulation | T_a us | T_e us | T_c us | closed form, own times |\n"
      "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";
  for (const Line& line : lines) {
    const auto error = [&](const char* predictor) {
      return fmt::format("{:+.1f} %", error_of(line, predictor) * 100);
    };
    text += fmt::format("| {} | {} | {} | {} | {} | {} | {:.1f} | {} | {} | {:.2f} | {:.2f} |",
                        line.kind, line.model, line.fabric, line.cluster, line.rows,
                        line.micro_batches, line.tokens_per_s, error(kSimulation),
                        error(kClosedForm), line.tpot_s(line.tokens_per_s) * 1e3,
                        line.tpot_s(line.predicted.at(kSimulation)) * 1e3);
    const PhaseTimes& times = line.times;
    text += times.attention == 0
                ? " | | | |\n"
                : fmt::format(" {:.0f} | {:.0f} | {:.0f} | {} |\n", times.attention / 1e3,
                              times.expert / 1e3, times.transfer / 1e3, error(kOwnTimes));
  }
  for (const char* kind : {"real", "modelled"}) {
    for (const char* predictor : {kSimulation, kClosedForm}) {
      const auto [median, worst] = errors_of(lines, kind, predictor);
      if (worst == 0) continue;
      text += fmt::format("\n{}, m > 1, {}: median error {:.1f} %, worst {:.1f} %.\n", kind,
                          predictor, median * 100, worst * 100);
    }
  }
  return text;
}

json to_json(const std::vector<Line>& lines, const json& run) {
  json report{{"benchmark", "model_vs_machine"}, {"run", run}, {"lines", json::array()}};
  for (const Line& line : lines) {
    json predicted = json::object();
    for (const auto& [name, rate] : line.predicted) {
      predicted[name] = {{"tokens_per_s", rate}, {"tpot_s", line.tpot_s(rate)}};
    }
    report["lines"].push_back({{"kind", line.kind},
                               {"model", line.model},
                               {"fabric", line.fabric},
                               {"cluster", line.cluster},
                               {"rows", line.rows},
                               {"micro_batches", line.micro_batches},
                               {"tokens_per_s", line.tokens_per_s},
                               {"tpot_s", line.tpot_s(line.tokens_per_s)},
                               {"attention_us", line.times.attention / 1e3},
                               {"expert_us", line.times.expert / 1e3},
                               {"transfer_us", line.times.transfer / 1e3},
                               {"head_us", line.times.head / 1e3},
                               {"predicted", predicted}});
  }
  return report;
}

Status run(const Options& options, const json& description) {
  if (options.micro_batches.front() != 1) {
    return invalid_argument("--micro-batches must begin with 1, which predictions are made from");
  }
  for (const std::string& path : {options.json_path, options.markdown_path}) {
    VOLLEY_RETURN_IF_ERROR(check_writable(path));
  }
  std::vector<Line> lines;
  // Processes first: they are forked, and must be while this one has a single thread.
  if (options.kind != "modelled") VOLLEY_RETURN_IF_ERROR(measure_real(options, lines));
  if (options.kind != "real") VOLLEY_RETURN_IF_ERROR(measure_modelled(options, lines));
  const std::string text = markdown(lines);
  std::fputs(text.c_str(), stdout);
  if (!options.markdown_path.empty()) {
    VOLLEY_RETURN_IF_ERROR(write_text_file(options.markdown_path, text));
  }
  if (options.json_path.empty()) return ok_status();
  return write_text_file(options.json_path, to_json(lines, description).dump(2) + "\n");
}

}  // namespace
}  // namespace volley::benchmarks

int main(int argc, char** argv) {
  using namespace volley;
  CLI::App app("Predicted throughput beside the measured one, calibrated on m = 1 only.");
  benchmarks::Options options;
  const auto positive = CLI::Range(1u, 100'000u);
  app.add_option("--models", options.models, "Folders with a config.json")
      ->delimiter(',')
      ->required();
  app.add_option("--kind", options.kind)->check(CLI::IsMember({"real", "modelled", "both"}));
  app.add_option("--fabrics", options.fabrics)
      ->delimiter(',')
      ->check(CLI::IsMember({"shm", "tcp"}));
  app.add_option("--rows", options.rows, "Sequences of a micro-batch")
      ->delimiter(',')
      ->check(positive);
  app.add_option("--micro-batches", options.micro_batches)
      ->delimiter(',')
      ->check(CLI::Range(1u, protocol::kMicroBatchesMax));
  app.add_option("--clusters", options.clusters, "Modelled ones, ATTENTIONxEXPERT nodes")
      ->delimiter(',');
  app.add_option("--times", options.times, "Stage times of the modelled clusters: a file");
  app.add_option("--layers", options.layers, "Only the first so many layers; 0: all");
  app.add_option("--steps", options.steps, "Measured steps of a real run")->check(positive);
  app.add_option("--window-rounds", options.window_rounds)->check(positive);
  app.add_option("--repeat", options.repeat, "The best of so many runs counts")->check(positive);
  app.add_option("--attention-core", options.attention_core);
  app.add_option("--expert-core", options.expert_core);
  app.add_option("--json", options.json_path);
  app.add_option("--markdown", options.markdown_path);
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::warn);
  const Status status = benchmarks::run(options, benchmarks::run_description(argc, argv));
  if (!status.ok()) {
    std::fprintf(stderr, "model_vs_machine: %s\n", message_of(status).c_str());
    return 1;
  }
  return 0;
}
