#include <cstdio>
#include <memory>

#include "commands.h"
#include "output_file.h"
#include "volley/bench/kernel_bench.h"
#include "volley/bench/m2n_bench.h"

namespace volley::cli {
namespace {

struct KernelOptions {
  bench::KernelBenchOptions bench;
  std::string json;
  bool list = false;
};

void print_progress(const std::string& line) {
  std::fprintf(stderr, "%s\n", line.c_str());
}

int run_kernels(const KernelOptions& options) {
  if (options.list) {
    for (const std::string& name : bench::kernel_case_names()) std::puts(name.c_str());
    return kExitOk;
  }
  // Before the measurements: they take minutes.
  auto json = OutputFile::open(options.json);
  if (!json.ok()) return report(json.status());
  const auto measured = bench::run_kernel_bench(options.bench, print_progress);
  if (!measured.ok()) return report(measured.status());
  std::fputs(bench::format_kernel_report(*measured).c_str(), stdout);
  if (const Status status = json->write(bench::kernel_report_json(*measured)); !status.ok()) {
    return report(status);
  }
  return kExitOk;
}

void add_kernels(CLI::App& bench, Run& run) {
  auto options = std::make_shared<KernelOptions>();
  CLI::App* command =
      bench.add_subcommand("kernels", "Times the CPU kernels, beside the limits of this machine");
  command->add_option("--isa", options->bench.isa, "auto, or the name of an instruction set")
      ->capture_default_str();
  command
      ->add_option("--threads", options->bench.threads,
                   "Numbers of threads, separated by commas; each thread gets a core")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--filter", options->bench.filter,
                      "A regular expression: only cases whose name has a match (see --list)");
  command->add_option("--min-time-ms", options->bench.min_time_ms, "What a repetition lasts")
      ->check(CLI::Range(1u, 60'000u))
      ->capture_default_str();
  command->add_option("--repetitions", options->bench.repetitions, "Of each case")
      ->check(CLI::Range(1u, 1'000u))
      ->capture_default_str();
  command->add_option("--json", options->json, "Writes the report to this file as well");
  command->add_flag("--list", options->list, "Prints the names of the cases and measures nothing");
  command->callback([options, &run] { run = [options] { return run_kernels(*options); }; });
}

struct M2nOptions {
  bench::M2nBenchOptions bench;
  std::string json;
};

int run_m2n(const M2nOptions& options) {
  auto json = OutputFile::open(options.json);
  if (!json.ok()) return report(json.status());
  const auto measured = bench::run_m2n_bench(options.bench, print_progress);
  if (!measured.ok()) return report(measured.status());
  std::fputs(bench::format_m2n_report(*measured).c_str(), stdout);
  if (const Status status = json->write(bench::m2n_report_json(*measured)); !status.ok()) {
    return report(status);
  }
  return kExitOk;
}

void add_m2n(CLI::App& bench, Run& run) {
  auto options = std::make_shared<M2nOptions>();
  bench::M2nBenchOptions& values = options->bench;
  CLI::App* command = bench.add_subcommand(
      "m2n", "Times round trips between M senders and N receivers on this host");
  command
      ->add_option("--fabric", values.fabric,
                   "shm or tcp: the peers are processes; local: they are threads")
      ->check(CLI::IsMember({"shm", "tcp", "local"}))
      ->capture_default_str();
  command->add_option("--m", values.senders, "Senders")
      ->check(CLI::Range(1u, bench::kM2nPeersMax))
      ->capture_default_str();
  command->add_option("--n", values.receivers, "Receivers")
      ->check(CLI::Range(1u, bench::kM2nPeersMax))
      ->capture_default_str();
  command
      ->add_option("--bytes", values.bytes,
                   "Sizes of a dispatch to one receiver, separated by commas: 2KB to 8MB")
      ->delimiter(',')
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  command->add_option("--answer-bytes", values.answer_bytes, "Size of an answer: 2KB to 8MB")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  command->add_option("--iterations", values.iterations, "Measured round trips of each sender")
      ->check(CLI::Range(1u, 10'000'000u))
      ->capture_default_str();
  command->add_option("--warmup", values.warmup, "Round trips before them")
      ->check(CLI::Range(0u, 10'000'000u))
      ->capture_default_str();
  command
      ->add_option("--pin", values.cores,
                   "Cores for the peers, separated by commas: senders first, around and around")
      ->delimiter(',');
  command->add_option("--wait", values.wait, "How peers wait: sleep, as the engines do, or poll")
      ->check(CLI::IsMember({"sleep", "poll"}))
      ->capture_default_str();
  command->add_option("--timeout-ms", values.timeout_ms, "For all round trips of one size")
      ->check(CLI::Range(1u, 86'400'000u))
      ->capture_default_str();
  command->add_option("--json", options->json, "Writes the report to this file as well");
  command->callback([options, &run] { run = [options] { return run_m2n(*options); }; });
}

}  // namespace

void add_bench_command(CLI::App& app, const GlobalOptions&, Run& run) {
  CLI::App* command = app.add_subcommand("bench", "Micro-benchmarks of this machine");
  command->require_subcommand(1);
  add_kernels(*command, run);
  add_m2n(*command, run);
}

}  // namespace volley::cli
