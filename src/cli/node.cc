#include <unistd.h>

#include <memory>

#include "child_processes.h"
#include "commands.h"
#include "volley/daemon/log.h"
#include "volley/daemon/role.h"

namespace volley::cli {
namespace {

struct NodeOptions {
  std::string config;
  std::string node;
  pid_t parent = 0;
};

using StartRole = Result<std::unique_ptr<daemon::Role>> (*)(const config::ClusterConfig&,
                                                            const std::string&, daemon::OnFailure);

Result<std::unique_ptr<daemon::Role>> start_frontend(const config::ClusterConfig& config,
                                                     const std::string&,
                                                     daemon::OnFailure on_failure) {
  return daemon::start_frontend(config, std::move(on_failure));
}

Result<std::unique_ptr<daemon::Role>> start_attention(const config::ClusterConfig& config,
                                                      const std::string& node,
                                                      daemon::OnFailure on_failure) {
  return daemon::start_attention(config, node, std::move(on_failure));
}

Result<std::unique_ptr<daemon::Role>> start_expert(const config::ClusterConfig& config,
                                                   const std::string& node,
                                                   daemon::OnFailure on_failure) {
  return daemon::start_expert(config, node, std::move(on_failure));
}

int run_node(const NodeOptions& options, const GlobalOptions& global, StartRole start) {
  if (options.parent != 0) {
    if (const Status status = end_with_parent(options.parent); !status.ok()) return report(status);
  }
  const auto config = config::load_cluster_config(options.config);
  if (!config.ok()) return report(config.status());
  const std::string name = options.node.empty() ? config->frontend.name : options.node;
  if (const Status status = daemon::set_up_logging(global.log_level, global.log_format, name);
      !status.ok()) {
    return report(status);
  }
  const Status status =
      daemon::run_until_stopped({[&](daemon::OnFailure on_failure) {
                                  return start(*config, options.node, std::move(on_failure));
                                }},
                                Nanos{config->stop_timeout_ms} * kMillisecond);
  return status.ok() ? kExitOk : report(annotate(status, name));
}

void add_role(CLI::App& app, const GlobalOptions& global, Run& run, const std::string& role,
              const std::string& help, StartRole start) {
  auto options = std::make_shared<NodeOptions>();
  CLI::App* command = app.add_subcommand(role, help);
  command->add_option("--config", options->config, "The cluster file")->required();
  if (role != "frontend") {
    command->add_option("--node", options->node, "Which of the file's " + role + " nodes to run")
        ->required();
  }
  // Used by `volley up` on its children.
  command->add_option("--parent", options->parent)->group("");
  command->callback([options, &global, &run, start] {
    run = [options, &global, start] { return run_node(*options, global, start); };
  });
}

}  // namespace

void add_node_commands(CLI::App& app, const GlobalOptions& global, Run& run) {
  add_role(app, global, run, "frontend", "Runs a frontend: the gRPC API, and the controller",
           start_frontend);
  add_role(app, global, run, "attention", "Runs an attention node", start_attention);
  add_role(app, global, run, "expert", "Runs an expert node", start_expert);
}

}  // namespace volley::cli
