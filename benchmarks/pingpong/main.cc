// The ping-pong pipeline of MegaScale-Infer, measured: one attention node and one expert node, each
// a process on a core of its own, m micro-batches of equal size, without and with a delay on the
// wire. docs/benchmarks-end-to-end.md says what the numbers mean.

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/children.h"
#include "common/report.h"
#include "pair_run.h"
#include "timeline.h"
#include "trace_analysis.h"
#include "volley/base/clock.h"
#include "volley/protocol/wire.h"

namespace volley::benchmarks {
namespace {

using nlohmann::json;

// Expert widths are multiples of the row of weight panels, so that no tile is cut short.
constexpr uint32_t kFfnStep = 32;
constexpr uint32_t kCalibrationsMax = 6;
constexpr uint32_t kPictureLayers = 4;

struct Options {
  PairOptions pair;
  std::vector<uint32_t> micro_batches = {1, 2, 3, 4};
  uint32_t layers = 16;
  uint32_t hidden = 512;
  uint32_t heads = 16;
  uint32_t experts = 4;
  uint32_t ffn = 0;
  double balance = 0.03;
  double delay_share = 0.3;
  uint32_t window_rounds = 8;
  uint32_t repeat = 3;
  std::string json_path, markdown_path, svg_path, model_path;
};

/// The folder of a model that exists only for this run.
class ModelFolder {
 public:
  static Result<ModelFolder> create() {
    std::string path = (std::filesystem::temp_directory_path() / "volley-pingpong-XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr) {
      return unavailable("cannot make a folder like {}: {}", path, errno_text(errno));
    }
    return ModelFolder(std::move(path));
  }
  ModelFolder(ModelFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  ~ModelFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

  /// A Mixtral kind of model: top-2 of `experts`, and a vocabulary so small that the head, which
  /// has no counterpart on the expert node, costs next to nothing.
  /// The last one stays in options.model_path, if that is set.
  Result<model::Checkpoint> checkpoint(const Options& options, uint32_t ffn) const {
    const json config{{"architectures", {"MixtralForCausalLM"}},
                      {"model_type", "mixtral"},
                      {"hidden_size", options.hidden},
                      {"num_hidden_layers", options.layers},
                      {"num_attention_heads", options.heads},
                      {"num_key_value_heads", std::max(1u, options.heads / 4)},
                      {"head_dim", 64},
                      {"intermediate_size", ffn},
                      {"num_local_experts", options.experts},
                      {"num_experts_per_tok", 2},
                      {"vocab_size", 256},
                      {"max_position_embeddings", 4096},
                      {"rms_norm_eps", 1e-5},
                      {"rope_theta", 1e4},
                      {"tie_word_embeddings", false},
                      {"hidden_act", "silu"},
                      {"torch_dtype", "bfloat16"}};
    const std::string text = config.dump(2);
    VOLLEY_RETURN_IF_ERROR(write_text_file(path_ + "/config.json", text));
    if (!options.model_path.empty()) {
      std::error_code error;
      std::filesystem::create_directories(options.model_path, error);
      if (error) return unavailable("cannot make {}: {}", options.model_path, error.message());
      VOLLEY_RETURN_IF_ERROR(write_text_file(options.model_path + "/config.json", text));
    }
    return model::Checkpoint::open_dummy(path_, 1);
  }

 private:
  explicit ModelFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

/// The model of this run. Its folder is gone when this returns: a checkpoint of dummies reads only
/// its config.json, once.
Result<model::Checkpoint> make_checkpoint(const Options& options, uint32_t ffn) {
  VOLLEY_ASSIGN_OR_RETURN(const ModelFolder folder, ModelFolder::create());
  return folder.checkpoint(options, ffn);
}

/// All repetitions of one number of micro-batches, and the one window that counts: the fastest.
/// Other work on the machine only ever takes away.
struct Setting {
  uint32_t micro_batches = 1;
  Nanos delay = 0;
  std::vector<double> steps_per_s{};  ///< Of every window.
  Window best{};
  RunTrace best_run{};
  double predicted = 0;      ///< Steps per second, from this window's times.
  bool own_transfer = true;  ///< Else T_c is that of m = 1: here no receiver ever waited.

  /// The same from the times of the first number of micro-batches on the same wire: a prediction in
  /// the strict sense.
  double foretold = 0;

  double ratio() const { return best.steps_per_s / predicted; }
};

const Window& fastest(const std::vector<Window>& windows) {
  return *std::ranges::max_element(windows, {}, &Window::steps_per_s);
}

double larger(const PhaseTimes& times) {
  return std::max(times.attention, times.expert);
}

Result<Window> quick_window(const model::Checkpoint& checkpoint, PairOptions pair) {
  // Two micro-batches: T_a and T_e must agree while both cores are busy.
  pair.micro_batches = 2;
  pair.steps = std::min(pair.steps, 24u);
  VOLLEY_ASSIGN_OR_RETURN(const RunTrace run, run_pair(checkpoint, pair));
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<Window> windows,
                          find_windows(run, std::max(1u, std::min(4u, pair.steps / 4))));
  return fastest(windows);
}

/// Chooses the width of the experts so that T_a and T_e agree.
Result<uint32_t> tune_ffn(const Options& options) {
  // Equal operations per row, to begin with: QKV and output projection against two experts.
  const uint32_t width = options.heads * 64;
  uint32_t ffn = (2 * width + width / 2) / 6 / kFfnStep * kFfnStep + kFfnStep;
  uint32_t best = ffn;
  double best_error = INFINITY;
  std::vector<uint32_t> tried;
  for (uint32_t i = 0; i < kCalibrationsMax; ++i) {
    VOLLEY_ASSIGN_OR_RETURN(const auto checkpoint, make_checkpoint(options, ffn));
    VOLLEY_ASSIGN_OR_RETURN(const Window window, quick_window(checkpoint, options.pair));
    const double ratio = window.times.attention / window.times.expert;
    std::fprintf(stderr, "calibration: FFN %u: T_a %.1f us, T_e %.1f us\n", ffn,
                 window.times.attention / 1e3, window.times.expert / 1e3);
    if (std::abs(std::log(ratio)) < best_error) {
      best_error = std::abs(std::log(ratio));
      best = ffn;
    }
    tried.push_back(ffn);
    if (best_error <= options.balance) break;
    const double scaled = ffn * ratio / kFfnStep;
    ffn = kFfnStep * std::max(1u, static_cast<uint32_t>(std::lround(scaled)));
    if (std::ranges::find(tried, ffn) != tried.end()) break;
  }
  return best;
}

Status measure(const model::Checkpoint& checkpoint, const Options& options, Setting& setting) {
  PairOptions pair = options.pair;
  pair.micro_batches = setting.micro_batches;
  pair.wire_delay = setting.delay;
  VOLLEY_ASSIGN_OR_RETURN(RunTrace run, run_pair(checkpoint, pair));
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<Window> windows,
                          find_windows(run, options.window_rounds));
  for (const Window& window : windows) setting.steps_per_s.push_back(window.steps_per_s);
  if (const Window& window = fastest(windows); window.steps_per_s > setting.best.steps_per_s) {
    setting.best = window;
    setting.best_run = std::move(run);
  }
  return ok_status();
}

void predict(std::vector<Setting>& settings, uint32_t layers) {
  for (Setting& setting : settings) {
    // A mean of a handful of messages is no measurement.
    setting.own_transfer = setting.best.transfers >= layers;
    if (!setting.own_transfer) {
      const auto same_wire = [&](const Setting& each) {
        return each.delay == setting.delay && each.best.transfers >= layers;
      };
      const auto other = std::ranges::find_if(settings, same_wire);
      if (other != settings.end()) setting.best.times.transfer = other->best.times.transfer;
    }
    setting.predicted = predicted_steps_per_s(setting.best.times, setting.micro_batches, layers);
    const auto first = std::ranges::find(settings, setting.delay, &Setting::delay);
    setting.foretold = predicted_steps_per_s(first->best.times, setting.micro_batches, layers);
  }
}

json to_json(const Setting& setting, const Options& options) {
  const PhaseTimes& times = setting.best.times;
  const double path = times.attention + times.expert + 2 * times.transfer;
  return {{"micro_batches", setting.micro_batches},
          {"wire_delay_us", static_cast<double>(setting.delay) / 1e3},
          {"steps_per_s", setting.best.steps_per_s},
          {"tokens_per_s", setting.best.steps_per_s * options.pair.rows},
          {"attention_us", times.attention / 1e3},
          {"expert_us", times.expert / 1e3},
          {"transfer_us", times.transfer / 1e3},
          {"transfer_measured", setting.own_transfer},
          {"transfer_messages", setting.best.transfers},
          {"head_us", times.head / 1e3},
          {"path_us", path / 1e3},
          {"attention_busy", setting.best.attention_busy},
          {"expert_busy", setting.best.expert_busy},
          {"expert_runs_per_dispatch", setting.best.expert_runs},
          {"predicted_steps_per_s", setting.predicted},
          {"measured_over_predicted", setting.ratio()},
          {"foretold_steps_per_s", setting.foretold},
          {"measured_over_foretold", setting.best.steps_per_s / setting.foretold},
          {"window_steps_per_s", setting.steps_per_s}};
}

const Setting* find_setting(const std::vector<Setting>& settings, uint32_t m, Nanos delay) {
  for (const Setting& each : settings) {
    if (each.micro_batches == m && each.delay == delay) return &each;
  }
  return nullptr;
}

struct Gain {
  uint32_t from = 0, to = 0;
  Nanos delay = 0;
  double measured = 0, predicted = 0;
};

/// What each further micro-batch gives.
std::vector<Gain> gains_of(const std::vector<Setting>& settings) {
  std::vector<Gain> gains;
  for (const Setting& to : settings) {
    const Setting* from = find_setting(settings, to.micro_batches - 1, to.delay);
    if (from == nullptr) continue;
    gains.push_back({.from = from->micro_batches,
                     .to = to.micro_batches,
                     .delay = to.delay,
                     .measured = to.best.steps_per_s / from->best.steps_per_s,
                     .predicted = to.predicted / from->predicted});
  }
  return gains;
}

json report_json(const json& run, const Options& options, uint32_t ffn, Nanos delay,
                 const std::vector<Setting>& settings) {
  json report{{"benchmark", "pingpong"},
              {"run", run},
              {"fabric", options.pair.fabric},
              {"isa", options.pair.isa},
              {"attention_core", options.pair.attention_core},
              {"expert_core", options.pair.expert_core},
              {"rows_per_micro_batch", options.pair.rows},
              {"window_rounds", options.window_rounds},
              {"repeat", options.repeat},
              {"delay_share", options.delay_share},
              {"delay_us", static_cast<double>(delay) / 1e3},
              {"model",
               {{"layers", options.layers},
                {"hidden", options.hidden},
                {"heads", options.heads},
                {"experts", options.experts},
                {"top_k", 2},
                {"ffn", ffn}}},
              {"settings", json::array()},
              {"gains", json::array()}};
  for (const Setting& setting : settings) report["settings"].push_back(to_json(setting, options));
  for (const Gain& gain : gains_of(settings)) {
    report["gains"].push_back({{"from", gain.from},
                               {"to", gain.to},
                               {"wire_delay_us", static_cast<double>(gain.delay) / 1e3},
                               {"measured", gain.measured},
                               {"predicted", gain.predicted}});
  }
  return report;
}

std::string report_table(const Options& options, uint32_t ffn,
                         const std::vector<Setting>& settings) {
  std::string out = fmt::format(
      "{} layers, hidden {}, {} experts of {}, {} rows a micro-batch, {}, attention on core {}, "
      "experts on core {}\n\n"
      "| delay us | m | steps/s | tokens/s | T_a us | T_e us | T_c us | T_h us | predicted "
      "steps/s | measured / predicted | measured / foretold | attention busy | experts busy | gain "
      "over m - 1 | "
      "predicted gain |\n"
      "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
      options.layers, options.hidden, options.experts, ffn, options.pair.rows, options.pair.fabric,
      options.pair.attention_core, options.pair.expert_core);
  const std::vector<Gain> gains = gains_of(settings);
  for (const Setting& setting : settings) {
    const PhaseTimes& times = setting.best.times;
    std::string measured = "", predicted = "";
    for (const Gain& gain : gains) {
      if (gain.to != setting.micro_batches || gain.delay != setting.delay) continue;
      measured = fmt::format("{:.3f}", gain.measured);
      predicted = fmt::format("{:.3f}", gain.predicted);
    }
    out += fmt::format(
        "| {:.0f} | {} | {:.1f} | {:.0f} | {:.1f} | {:.1f} | {:.1f}{} | {:.1f} | {:.1f} | {:.3f} | "
        "{:.3f} | "
        "{:.0f} % | {:.0f} % | {} | {} |\n",
        static_cast<double>(setting.delay) / 1e3, setting.micro_batches, setting.best.steps_per_s,
        setting.best.steps_per_s * options.pair.rows, times.attention / 1e3, times.expert / 1e3,
        times.transfer / 1e3, setting.own_transfer ? "" : "*", times.head / 1e3, setting.predicted,
        setting.ratio(), setting.best.steps_per_s / setting.foretold,
        100 * setting.best.attention_busy, 100 * setting.best.expert_busy, measured, predicted);
  }
  const bool borrowed =
      std::ranges::any_of(settings, [](const Setting& setting) { return !setting.own_transfer; });
  if (borrowed) out += "\n\\* of another m: here hardly a message found its receiver waiting\n";
  return out;
}

std::string picture(const std::vector<Setting>& settings) {
  std::vector<TimelinePanel> panels;
  for (const Setting& setting : settings) {
    const PhaseTimes& times = setting.best.times;
    const double path = times.attention + times.expert + 2 * times.transfer;
    const double layer = std::max(setting.micro_batches * larger(times), path);
    const Nanos middle = (setting.best.begin + setting.best.end) / 2;
    panels.push_back(
        {.title = fmt::format("m = {}, wire delay {:.0f} us: {:.1f} steps/s", setting.micro_batches,
                              static_cast<double>(setting.delay) / 1e3, setting.best.steps_per_s),
         .run = &setting.best_run,
         .begin = middle,
         .end = std::min(setting.best.end, middle + static_cast<Nanos>(kPictureLayers * layer))});
  }
  return timeline_svg(panels);
}

Status run(const Options& options, const json& description) {
  for (const std::string& path : {options.markdown_path, options.svg_path, options.json_path}) {
    VOLLEY_RETURN_IF_ERROR(check_writable(path));
  }
  uint32_t ffn = options.ffn;
  if (ffn == 0) {
    VOLLEY_ASSIGN_OR_RETURN(ffn, tune_ffn(options));
  }
  VOLLEY_ASSIGN_OR_RETURN(const auto checkpoint, make_checkpoint(options, ffn));
  VOLLEY_ASSIGN_OR_RETURN(const Window balanced, quick_window(checkpoint, options.pair));
  const auto delay = static_cast<Nanos>(options.delay_share * larger(balanced.times));

  std::vector<Setting> settings;
  for (const Nanos each : {Nanos{0}, delay}) {
    if (each == 0 && !settings.empty()) continue;  // No delay was asked for.
    for (const uint32_t m : options.micro_batches) {
      settings.push_back({.micro_batches = m, .delay = each});
    }
  }
  // Round after round over all settings: what disturbs the machine for a while hits all of them.
  for (uint32_t round = 0; round < options.repeat; ++round) {
    for (Setting& setting : settings) {
      VOLLEY_RETURN_IF_ERROR(measure(checkpoint, options, setting));
      std::fprintf(stderr, "round %u, m = %u, delay %.0f us: best so far %.1f steps/s\n", round + 1,
                   setting.micro_batches, static_cast<double>(setting.delay) / 1e3,
                   setting.best.steps_per_s);
    }
  }
  predict(settings, options.layers);

  const std::string table = report_table(options, ffn, settings);
  std::fputs(table.c_str(), stdout);
  if (!options.markdown_path.empty()) {
    VOLLEY_RETURN_IF_ERROR(write_text_file(options.markdown_path, table));
  }
  if (!options.svg_path.empty()) {
    VOLLEY_RETURN_IF_ERROR(write_text_file(options.svg_path, picture(settings)));
  }
  if (!options.json_path.empty()) {
    const json report = report_json(description, options, ffn, delay, settings);
    VOLLEY_RETURN_IF_ERROR(write_text_file(options.json_path, report.dump(2) + "\n"));
  }
  return ok_status();
}

}  // namespace
}  // namespace volley::benchmarks

int main(int argc, char** argv) {
  using namespace volley;
  benchmarks::Options options;
  uint32_t timeout_s = 120;
  CLI::App app{"The ping-pong pipeline, one core for attention and one for the experts."};
  const CLI::Range positive(1u, 1u << 20);
  app.add_option("--m", options.micro_batches, "Numbers of micro-batches.")
      ->delimiter(',')
      ->check(CLI::Range(1u, protocol::kMicroBatchesMax));
  app.add_option("--rows", options.pair.rows, "Sequences of each micro-batch.")->check(positive);
  app.add_option("--layers", options.layers)->check(positive);
  app.add_option("--hidden", options.hidden)->check(positive);
  app.add_option("--heads", options.heads, "Of 64 values each.")->check(positive);
  app.add_option("--experts", options.experts, "Two are chosen for a row.")
      ->check(CLI::Range(2, 64));
  app.add_option("--ffn", options.ffn, "Width of an expert; 0: so that T_a and T_e agree.");
  app.add_option("--balance", options.balance, "T_a and T_e shall differ by at most this share.");
  app.add_option("--delay-share", options.delay_share,
                 "Delay of each direction in the second half of the settings, in T_f; 0: no second "
                 "half.")
      ->check(CLI::Range(0.0, 10.0));
  app.add_option("--prompt", options.pair.prompt_tokens)->check(positive);
  app.add_option("--steps", options.pair.steps, "Decode steps of each micro-batch and repetition.")
      ->check(positive);
  app.add_option("--window", options.window_rounds, "Steps of each micro-batch in a window.")
      ->check(positive);
  app.add_option("--repeat", options.repeat)->check(positive);
  app.add_option("--fabric", options.pair.fabric)->check(CLI::IsMember({"shm", "tcp"}));
  app.add_option("--isa", options.pair.isa);
  app.add_option("--attention-core", options.pair.attention_core);
  app.add_option("--expert-core", options.pair.expert_core);
  app.add_option("--timeout", timeout_s, "Seconds for one run.")->check(positive);
  app.add_option("--json", options.json_path);
  app.add_option("--markdown", options.markdown_path);
  app.add_option("--svg", options.svg_path, "The timeline picture.");
  app.add_option("--keep-model", options.model_path,
                 "Folder for the model's config.json, for the throughput program.");
  CLI11_PARSE(app, argc, argv);
  options.pair.timeout = timeout_s * kSecond;
  spdlog::set_level(spdlog::level::err);
  const Status status = benchmarks::run(options, benchmarks::run_description(argc, argv));
  if (!status.ok()) {
    std::fprintf(stderr, "pingpong: %s\n", message_of(status).c_str());
    return 1;
  }
  return 0;
}
