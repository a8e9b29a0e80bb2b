#include <cstdio>
#include <memory>

#include "commands.h"
#include "output_file.h"
#include "volley/bench/kernel_bench.h"
#include "volley/bench/m2n_command.h"
#include "volley/transport/rdma_options.h"

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

int run_m2n(const bench::M2nCommand& command) {
  const auto options = command.options();
  if (!options.ok()) return report(options.status());
  auto json = OutputFile::open(command.json);
  if (!json.ok()) return report(json.status());
  const auto measured = bench::run_m2n_bench(*options, print_progress);
  if (!measured.ok()) return report(measured.status());
  std::fputs(bench::format_m2n_report(*measured).c_str(), stdout);
  if (const Status status = json->write(bench::m2n_report_json(*measured)); !status.ok()) {
    return report(status);
  }
  return kExitOk;
}

void add_m2n(CLI::App& bench, Run& run) {
  auto options = std::make_shared<bench::M2nCommand>();
  CLI::App* command =
      bench.add_subcommand("m2n", "Times messages between M senders and N receivers on this host");
  command
      ->add_option("--fabric", options->bench.fabric,
                   "shm, tcp or rdma: the peers are processes; local: they are threads")
      ->check(CLI::IsMember({"shm", "tcp", "local", "rdma"}))
      ->capture_default_str();
  command
      ->add_option("--rdma-ports", options->bench.rdma_ports,
                   "NAME or NAME:PORT of the senders and of the receivers, separated by a comma; "
                   "otherwise the first active port")
      ->delimiter(',');
  command->add_option("--queue-pairs", options->bench.queue_pairs, "Of a link, on rdma")
      ->check(CLI::Range(1u, transport::kRailsMax))
      ->capture_default_str();
  options->add_options(*command);
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
