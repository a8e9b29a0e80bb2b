#pragma once

// Real processes for the end-to-end tests: one `volley` command, and a cluster of them with its
// file, ports and model. Nothing outlives the objects here, nor the test program when it is killed.
//
// Use on one thread, the one that lives longest: processes end with the thread that started them.

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "volley/base/fd.h"
#include "volley/v1/control.grpc.pb.h"
#include "volley/v1/inference.grpc.pb.h"

namespace volley::e2e {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// Polls until `condition` holds; false when it does not before `timeout`.
bool eventually(const std::function<bool()>& condition, milliseconds timeout);

std::string read_file(const std::filesystem::path& path);
void write_file(const std::filesystem::path& path, const std::string& text);

/// A folder of its own, removed with everything in it.
class TempDir {
 public:
  TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir();
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// A TCP port of 127.0.0.1 that stays taken, or is only known to have been free.
class Port {
 public:
  Port();
  int number() const { return number_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(number_); }
  /// From now on another process can have it.
  void release() { socket_ = UniqueFd(); }

 private:
  UniqueFd socket_;
  int number_ = 0;
};

/// One run of the volley binary. Its output goes to two files in `folder`, PREFIX.out and
/// PREFIX.err.
class Process {
 public:
  Process(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
          const std::string& prefix);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  /// Kills it if it still runs.
  ~Process();

  pid_t pid() const { return pid_; }
  void signal(int number) const;
  /// The exit code, or minus the signal that ended it; nothing when it still runs after `timeout`.
  std::optional<int> wait_exit(milliseconds timeout);
  std::string out() const { return read_file(out_); }
  std::string err() const { return read_file(err_); }

 private:
  std::filesystem::path out_, err_;
  pid_t pid_ = -1;
  UniqueFd pidfd_;
  std::optional<int> exit_;
};

struct CommandResult {
  int exit_code = 0;
  std::string out, err;
};
/// Runs a command to its end; the exit code is -1000 when it had to be killed after `timeout`.
CommandResult run_volley(const std::vector<std::string>& arguments,
                         milliseconds timeout = seconds(15));

/// Processes that run with this cluster file, by node; `volley up` itself is "up".
std::map<std::string, pid_t> processes_with(const std::string& cluster_file);

struct ClusterOptions {
  std::string fabric = "shm";
  uint32_t attention = 1, expert = 1, micro_batches = 1;
  uint32_t threads = 1;                 ///< Of each node.
  bool adaptive_micro_batches = false;  ///< `micro_batches: auto`.
  /// The bundled model; else the random one, with dummy weights.
  bool bundled_model = false;
  /// Of the random model: a longer context makes longer streams.
  uint32_t sequence_tokens = 512;
  uint32_t in_flight_max = 64, queue_max = 64;
  uint32_t stop_timeout_ms = 10'000;
  /// Each expert of the random model on all expert nodes but one.
  bool replicated_experts = false;
  /// More lines of the `transport` map, each indented by two spaces and ended.
  std::string transport{};
  /// More top-level lines, each ended.
  std::string more{};
  std::string cpu_isa = "auto";
  uint32_t report_interval_ms = 100;
  milliseconds start_timeout = seconds(30);
};

/// A cluster's folder with the file, the model and the output of its processes.
class Cluster {
 public:
  explicit Cluster(const ClusterOptions& options);
  ~Cluster();

  /// Starts `volley up` and waits until it says that the cluster is ready. False: it did not; why
  /// is on the test's output.
  bool up();
  /// Starts one node by hand: "frontend", "attention-0", "expert-1".
  Process& start_node(const std::string& name);
  /// Waits until the controller reports that all nodes are ready.
  bool wait_ready();
  /// Sends SIGTERM to `volley up` and waits for its end. Its exit code.
  std::optional<int> stop();

  /// The controller's answer; nothing when there is none within a second.
  std::optional<v1::GetStatusResponse> status() const;
  /// One node of status().
  std::optional<v1::NodeHealth> health(const std::string& node) const;

  std::map<std::string, pid_t> processes() const { return processes_with(file()); }
  /// What is left that should not be once the cluster is down: processes, shared memory, files.
  /// Empty when all is well.
  std::string leftovers() const;

  const std::filesystem::path& folder() const { return dir_.path(); }
  std::string file() const { return (dir_.path() / "cluster.yaml").string(); }
  std::string api() const { return api_; }
  std::string controller() const { return controller_; }
  /// Of `volley up`; it must have been started.
  Process& supervisor() { return *up_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  v1::Inference::Stub& inference() const { return *inference_; }

 private:
  void write_model() const;
  /// Chooses ports, and writes the file with them.
  void configure();

  const ClusterOptions options_;
  TempDir dir_;
  std::string api_, controller_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Operator::Stub> operator_;
  std::unique_ptr<Process> up_;
  std::vector<std::unique_ptr<Process>> nodes_;
  uint32_t starts_ = 0;
};

}  // namespace volley::e2e
