// The volley binary: daemons and the operator's tools. See docs/ for what each subcommand is for.

#include <cstdio>

#include "commands.h"
#include "volley/daemon/log.h"

namespace volley::cli {

int report(const Status& status) {
  std::fprintf(stderr, "volley: %s\n", message_of(status).c_str());
  switch (status.code()) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kNotFound:
      return kExitUsage;
    default:
      return kExitFailure;
  }
}

}  // namespace volley::cli

int main(int argc, char** argv) {
  using namespace volley::cli;
  CLI::App app(
      "Volley serves Mixture-of-Experts models with attention and experts on separate pools.",
      "volley");
  app.set_version_flag("--version", "volley " VOLLEY_VERSION);
  app.require_subcommand(1);
  app.fallthrough();  // Global flags may follow the subcommand.
  GlobalOptions global;
  app.add_option("--log-level", global.log_level, "trace, debug, info, warn or error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_option("--log-format", global.log_format, "text, or json: one object per line")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  Run run;
  add_node_commands(app, global, run);
  add_up_command(app, global, run);
  add_generate_command(app, global, run);
  add_status_command(app, global, run);
  add_plan_command(app, global, run);
  add_simulate_command(app, global, run);
  add_bench_command(app, global, run);
  add_profile_command(app, global, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? kExitOk : kExitUsage;
  }
  if (const volley::Status status =
          volley::daemon::set_up_logging(global.log_level, global.log_format, "volley");
      !status.ok()) {
    return report(status);
  }
  return run();
}
