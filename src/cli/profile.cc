#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>

#include "commands.h"
#include "output_file.h"
#include "volley/base/cores.h"
#include "volley/bench/stage_profile.h"
#include "volley/config/stage_times.h"

namespace volley::cli {
namespace {

struct ProfileOptions {
  bench::StageProfileOptions measure;
  std::string model, weights = "dummy", dtype = "bf16", cores, output, times;
  uint64_t weight_mib = 2048;
};

/// A bar that stays on one line of the terminal; nothing where there is none.
void show_progress(double done, const std::string& what) {
  if (::isatty(STDERR_FILENO) == 0) return;
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(done * kWidth);
  std::fprintf(stderr, "\r[%.*s%*s] %3.0f %%  %-40s", filled, "##############################",
               kWidth - filled, "", done * 100, what.c_str());
  if (done >= 1) std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
}

int run_profile(ProfileOptions& options) {
  // What the engines tell of their links would tear the bar apart.
  if (spdlog::get_level() == spdlog::level::info) spdlog::set_level(spdlog::level::warn);
  if (!options.cores.empty()) {
    auto cores = parse_core_list(options.cores);
    if (!cores.ok()) return report(annotate(cores.status(), "--cores"));
    if (const Status status = check_cores(*cores); !status.ok()) {
      return report(annotate(status, "--cores"));
    }
    options.measure.cores = *std::move(cores);
  }
  options.measure.dtype = options.dtype == "f32" ? kernels::DType::kF32 : kernels::DType::kBf16;
  options.measure.weight_bytes_max = options.weight_mib << 20;
  const auto checkpoint = options.weights == "dummy"
                              ? model::Checkpoint::open_dummy(options.model, 0)
                              : model::Checkpoint::open(options.model);
  if (!checkpoint.ok()) return report(checkpoint.status());
  // Before the measurements: they take a minute.
  auto output = OutputFile::open(options.output);
  if (!output.ok()) return report(output.status());
  auto times = OutputFile::open(options.times);
  if (!times.ok()) return report(times.status());

  const auto profile = bench::run_stage_profile(*checkpoint, options.measure, show_progress);
  if (!profile.ok()) return report(profile.status());
  std::fputs(bench::format_stage_profile(*profile).c_str(), stdout);
  const std::string model =
      std::filesystem::path(options.model).lexically_normal().filename().string();
  const std::string source = bench::stage_profile_source(*profile, model);
  for (const Status& status :
       {output->write(perf::format_device(profile->device, source)),
        times->write(config::format_stage_times(perf::to_config(profile->times), source))}) {
    if (!status.ok()) return report(status);
  }
  return kExitOk;
}

}  // namespace

void add_profile_command(CLI::App& app, const GlobalOptions&, Run& run) {
  auto options = std::make_shared<ProfileOptions>();
  CLI::App* command = app.add_subcommand(
      "profile", "Measures what a model's layers take on this machine, for planner and simulator");
  command->add_option("--model", options->model, "A Hugging Face folder; config.json is enough")
      ->required();
  command->add_option("--output", options->output,
                      "Writes the hardware file that the planner reads");
  command->add_option("--times", options->times,
                      "Writes the model's stage times, for the simulator and compute: modelled");
  command->add_option("--weights", options->weights, "dummy, or the checkpoint's")
      ->check(CLI::IsMember({"dummy", "checkpoint"}))
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "bf16 or f32")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  command->add_option("--isa", options->measure.isa, "auto, or the name of an instruction set")
      ->capture_default_str();
  command->add_option("--threads", options->measure.threads, "Of each node")
      ->check(CLI::Range(1u, 1024u))
      ->capture_default_str();
  command->add_option(
      "--cores", options->cores,
      "Like 0-3,8: the attention node gets the first ones, the expert node the next");
  command->add_option("--fabric", options->measure.fabric, "shm or tcp: between the two nodes")
      ->check(CLI::IsMember({"shm", "tcp"}))
      ->capture_default_str();
  command->add_option("--rows", options->measure.rows, "Rows of a step and of an expert")
      ->delimiter(',')
      ->check(CLI::Range(1u, 1024u))
      ->capture_default_str();
  command->add_option("--contexts", options->measure.contexts, "Positions that a row sees")
      ->delimiter(',')
      ->check(CLI::Range(1u, 65'536u))
      ->capture_default_str();
  command->add_option("--seconds", options->measure.seconds, "Of measuring, loading not counted")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command
      ->add_option("--weight-mib", options->weight_mib,
                   "Of expert weights: of a larger model the first layers are measured")
      ->check(CLI::Range(1u, 1u << 24))
      ->capture_default_str();
  command->add_option("--name", options->measure.name, "Of the device; default: the processor's");
  command->callback([options, &run] { run = [options] { return run_profile(*options); }; });
}

}  // namespace volley::cli
