#include "baseline_main.h"

#include <CLI/CLI.hpp>
#include <cstdio>

#include "common/report.h"
#include "volley/bench/m2n_command.h"

namespace volley::benchmarks {
namespace {

Status measure(const bench::M2nCommand& command, const bench::M2nSystem& system) {
  const bool reports = !system.world || system.world->self == 0;
  VOLLEY_ASSIGN_OR_RETURN(const bench::M2nBenchOptions options, command.options());
  if (reports && !command.json.empty()) VOLLEY_RETURN_IF_ERROR(check_writable(command.json));
  const auto progress = [&](const std::string& line) {
    if (reports) std::fprintf(stderr, "%s\n", line.c_str());
  };
  VOLLEY_ASSIGN_OR_RETURN(const bench::M2nReport report,
                          bench::run_m2n_system(system, options, progress));
  if (!reports) return ok_status();
  std::fputs(bench::format_m2n_report(report).c_str(), stdout);
  if (command.json.empty()) return ok_status();
  return write_text_file(command.json, bench::m2n_report_json(report));
}

}  // namespace

int run_baseline(int argc, char** argv, const std::string& name,
                 const std::vector<std::string>& transports,
                 const std::function<Result<bench::M2nSystem>(const std::string&)>& make) {
  CLI::App app(name + ": measured like volley bench m2n");
  bench::M2nCommand command;
  std::string transport = transports.front();
  app.add_option("--transport", transport, "What carries the messages")
      ->check(CLI::IsMember(transports))
      ->capture_default_str();
  command.add_options(app);
  CLI11_PARSE(app, argc, argv);
  const auto system = make(transport);
  const Status status = system.ok() ? measure(command, *system) : system.status();
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s: %s\n", name.c_str(), message_of(status).c_str());
  return 1;
}

}  // namespace volley::benchmarks
