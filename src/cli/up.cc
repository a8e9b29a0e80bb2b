#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>

#include "child_processes.h"
#include "commands.h"
#include "format.h"
#include "volley/base/clock.h"
#include "volley/control/credentials.h"
#include "volley/daemon/log.h"
#include "volley/daemon/role.h"
#include "volley/v1/control.grpc.pb.h"

namespace volley::cli {
namespace {

struct UpOptions {
  std::string config;
  uint32_t ready_timeout_ms = 120'000;
};

// How much longer than the children's own drain the parent waits before it kills them.
constexpr Nanos kKillGrace = 5 * kSecond;
constexpr int kReadyPollMs = 100;
constexpr std::chrono::milliseconds kStatusTimeout(
    250);  // A signal or a dead child waits for as long.

/// Every node of the file has joined and requests can be served.
bool all_ready(const config::ClusterConfig& config, v1::Operator::Stub& stub,
               v1::GetStatusResponse& response) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kStatusTimeout);
  // A connection is made only while somebody polls, and in this process that is a call that waits.
  // One that fails at once because the frontend is not up yet would leave it to gRPC's timer of
  // five seconds.
  context.set_wait_for_ready(true);
  response.Clear();
  if (!stub.GetStatus(&context, {}, &response).ok() || !response.view().serving()) return false;
  const auto ready = std::ranges::count_if(
      response.view().members(),
      [](const v1::ClusterMember& member) { return member.health().ready(); });
  const size_t nodes = 1 + config.attention.nodes.size() + config.expert.nodes.size();
  return static_cast<size_t>(ready) == nodes;
}

class Supervisor {
 public:
  Supervisor(const config::ClusterConfig& config, const UpOptions& options,
             const GlobalOptions& global)
      : config_(config), options_(options), global_(global) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    signals_ = UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  }

  int run() {
    if (const Status status = check_free(); !status.ok()) return report(status);
    if (const Status status = start_all(); !status.ok()) return report(status);
    if (const int code = wait_ready(); code != kExitOk || stopping_) {
      stop_all();
      return code;
    }
    while (!stopping_ && children_.running_count() > 0) {
      wait(-1);
      report_ended();
    }
    const bool all_died = !stopping_;
    stop_all();
    return all_died ? report(unavailable("all nodes have ended")) : kExitOk;
  }

 private:
  /// The controller of another cluster would answer for the nodes that are about to start, and call
  /// them ready. Errors: kFailedPrecondition.
  Status check_free() const {
    VOLLEY_ASSIGN_OR_RETURN(const auto channel,
                            control::make_channel({}, config_.controller.listen));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(1));
    v1::GetStatusResponse response;
    if (!v1::Operator::NewStub(channel)->GetStatus(&context, {}, &response).ok())
      return ok_status();
    return failed_precondition("{}: controller.listen: a cluster of {} nodes already runs at {}",
                               config_.file, response.view().members_size(),
                               config_.controller.listen);
  }

  Status start_all() {
    VOLLEY_RETURN_IF_ERROR(start("frontend", config_.frontend.name));
    for (const auto& node : config_.attention.nodes)
      VOLLEY_RETURN_IF_ERROR(start("attention", node.name));
    for (const auto& node : config_.expert.nodes)
      VOLLEY_RETURN_IF_ERROR(start("expert", node.name));
    return ok_status();
  }

  Status start(const std::string& role, const std::string& name) {
    std::vector<std::string> arguments = {
        "--log-level", global_.log_level, "--log-format", global_.log_format,        role,
        "--config",    options_.config,   "--parent",     std::to_string(::getpid())};
    if (role != "frontend") arguments.insert(arguments.end(), {"--node", name});
    return children_.start(name, arguments);
  }

  /// Waits for a signal, the end of a child, or the timeout. True: a signal came, and the end
  /// begins.
  bool wait(int timeout_ms) {
    std::vector<pollfd> fds{{.fd = signals_.get(), .events = POLLIN, .revents = 0}};
    for (const int fd : children_.watch())
      fds.push_back({.fd = fd, .events = POLLIN, .revents = 0});
    ::poll(fds.data(), fds.size(), timeout_ms);
    signalfd_siginfo info;
    if (::read(signals_.get(), &info, sizeof info) != sizeof info) return false;
    spdlog::info("stopping on signal {}", info.ssi_signo);
    stopping_ = true;
    return true;
  }

  /// Logs what has ended; true when something did.
  bool report_ended() {
    bool any = false;
    while (const auto ended = children_.reap()) {
      any = true;
      if (stopping_ && ended->clean) {
        spdlog::debug("{} has ended", ended->name);
      } else {
        spdlog::error("{} has ended: {}", ended->name, ended->how);
      }
    }
    return any;
  }

  int wait_ready() {
    const auto channel = control::make_channel({}, config_.controller.listen);
    if (!channel.ok()) return report(channel.status());
    const auto stub = v1::Operator::NewStub(*channel);
    const Nanos deadline = monotonic_now() + Nanos{options_.ready_timeout_ms} * kMillisecond;
    v1::GetStatusResponse status;
    while (!all_ready(config_, *stub, status)) {
      wait(kReadyPollMs);
      if (stopping_) return kExitOk;
      if (report_ended()) return report(unavailable("a node ended before the cluster was ready"));
      if (monotonic_now() > deadline) {
        return report(Status(StatusCode::kDeadlineExceeded,
                             fmt::format("the cluster was not ready after {} ms: {}",
                                         options_.ready_timeout_ms, status.view().reason())));
      }
    }
    std::fputs(format_cluster(status).c_str(), stdout);
    std::printf("cluster %s is ready at %s\n", config_.cluster.c_str(),
                config_.frontend.listen.c_str());
    std::fflush(stdout);
    return kExitOk;
  }

  void stop_all() {
    stopping_ = true;
    children_.signal_all(SIGTERM);
    const Nanos deadline =
        monotonic_now() + Nanos{config_.stop_timeout_ms} * kMillisecond + kKillGrace;
    while (children_.running_count() > 0) {
      const Nanos left = deadline - monotonic_now();
      if (left <= 0) {
        spdlog::error("killing {} processes that did not end in time", children_.running_count());
        return;  // ~ChildProcesses kills and reaps.
      }
      if (wait(static_cast<int>(std::min<Nanos>(left / kMillisecond + 1, 1000)))) {
        children_.signal_all(
            SIGTERM);  // A second signal cuts the drain short, in the children too.
      }
      report_ended();
    }
  }

  const config::ClusterConfig& config_;
  const UpOptions& options_;
  const GlobalOptions& global_;
  UniqueFd signals_;
  ChildProcesses children_;
  bool stopping_ = false;
};

/// The `local` fabric joins engines of one process: all roles run in this one.
int run_colocated(const config::ClusterConfig& config, const GlobalOptions& global) {
  if (const Status status =
          daemon::set_up_logging(global.log_level, global.log_format, config.cluster);
      !status.ok()) {
    return report(status);
  }
  const std::shared_ptr<daemon::Colocation> colocation = daemon::make_colocation(config);
  std::vector<daemon::Start> starts;
  starts.push_back([&](daemon::OnFailure on_failure) {
    return daemon::start_frontend(config, std::move(on_failure));
  });
  for (const auto& node : config.expert.nodes) {
    starts.push_back([&](daemon::OnFailure on_failure) {
      return daemon::start_expert(config, node.name, std::move(on_failure), colocation);
    });
  }
  for (const auto& node : config.attention.nodes) {
    starts.push_back([&](daemon::OnFailure on_failure) {
      return daemon::start_attention(config, node.name, std::move(on_failure), colocation);
    });
  }
  const Status status =
      daemon::run_until_stopped(starts, Nanos{config.stop_timeout_ms} * kMillisecond, [&] {
        std::printf("cluster %s runs in one process at %s\n", config.cluster.c_str(),
                    config.frontend.listen.c_str());
        std::fflush(stdout);
      });
  return status.ok() ? kExitOk : report(status);
}

int run_up(const UpOptions& options, const GlobalOptions& global) {
  const auto config = config::load_cluster_config(options.config);
  if (!config.ok()) return report(config.status());
  if (config->transport.fabric == "local") return run_colocated(*config, global);
  return Supervisor(*config, options, global).run();
}

}  // namespace

void add_up_command(CLI::App& app, const GlobalOptions& global, Run& run) {
  auto options = std::make_shared<UpOptions>();
  CLI::App* command = app.add_subcommand("up", "Runs all nodes of a cluster file on this machine");
  command->add_option("config", options->config, "The cluster file")->required();
  command->add_option("--ready-timeout-ms", options->ready_timeout_ms, "How long starting may take")
      ->check(CLI::Range(1u, 86'400'000u))
      ->capture_default_str();
  command->callback(
      [options, &global, &run] { run = [options, &global] { return run_up(*options, global); }; });
}

}  // namespace volley::cli
