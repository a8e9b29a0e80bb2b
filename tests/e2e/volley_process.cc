#include "e2e/volley_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "volley/base/check.h"
#include "volley/control/credentials.h"

extern char** environ;

namespace volley::e2e {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr uint32_t kExperts = 5;  // Of the random model.
constexpr int kStartAttempts =
    3;  // Another process may take a port between its choice and its use.

/// The arguments of a process; empty when it has ended.
std::vector<std::string> command_line(const std::string& pid) {
  const std::string text = read_file("/proc/" + pid + "/cmdline");
  std::vector<std::string> arguments;
  std::istringstream stream(text);
  for (std::string argument; std::getline(stream, argument, '\0');) arguments.push_back(argument);
  return arguments;
}

std::string node_of(const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--node" && i + 1 < arguments.size()) return arguments[i + 1];
    if (arguments[i] == "up") return "up";
  }
  return "frontend";
}

}  // namespace

bool eventually(const std::function<bool()>& condition, milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  while (!condition()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(10));
  }
  return true;
}

std::string read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

void write_file(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

TempDir::TempDir() {
  std::string name = (fs::temp_directory_path() / "volley-e2e-XXXXXX").string();
  VOLLEY_CHECK(::mkdtemp(name.data()) != nullptr);
  path_ = name;
}

TempDir::~TempDir() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

Port::Port() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  VOLLEY_CHECK(::bind(socket_.get(), generic, size) == 0 && ::listen(socket_.get(), 1) == 0);
  VOLLEY_CHECK(::getsockname(socket_.get(), generic, &size) == 0);
  number_ = ntohs(address.sin_port);
}

Process::Process(const std::vector<std::string>& arguments, const fs::path& folder,
                 const std::string& prefix)
    : out_(folder / (prefix + ".out")), err_(folder / (prefix + ".err")) {
  // setpriv becomes the binary; the signal then also ends it when the test program is killed.
  std::vector<std::string> words = {"setpriv", "--pdeathsig", "KILL", VOLLEY_BINARY};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  const int flags = O_WRONLY | O_CREAT | O_TRUNC;
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, out_.c_str(), flags, 0644);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, err_.c_str(), flags, 0644);
  const int error = ::posix_spawnp(&pid_, "setpriv", &files, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  VOLLEY_CHECK(error == 0);
  pidfd_ = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  VOLLEY_CHECK(static_cast<bool>(pidfd_));
}

Process::~Process() {
  if (exit_.has_value()) return;
  signal(SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void Process::signal(int number) const {
  if (!exit_.has_value()) ::kill(pid_, number);
}

std::optional<int> Process::wait_exit(milliseconds timeout) {
  if (exit_.has_value()) return exit_;
  pollfd ended{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
  if (::poll(&ended, 1, static_cast<int>(timeout.count())) != 1) return std::nullopt;
  int status = 0;
  ::waitpid(pid_, &status, 0);
  exit_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return exit_;
}

CommandResult run_volley(const std::vector<std::string>& arguments, milliseconds timeout) {
  const TempDir dir;
  Process process(arguments, dir.path(), "command");
  const int exit_code = process.wait_exit(timeout).value_or(-1000);
  return {.exit_code = exit_code, .out = process.out(), .err = process.err()};
}

std::map<std::string, pid_t> processes_with(const std::string& cluster_file) {
  std::map<std::string, pid_t> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string pid = entry.path().filename();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::vector<std::string> arguments = command_line(pid);
    if (std::find(arguments.begin(), arguments.end(), cluster_file) == arguments.end()) continue;
    found[node_of(arguments)] = std::stoi(pid);
  }
  return found;
}

Cluster::Cluster(const ClusterOptions& options) : options_(options) {
  write_model();
  configure();
}

Cluster::~Cluster() {
  up_.reset();  // Its children end with it.
  nodes_.clear();
  if (const std::string left = leftovers(); !left.empty()) {
    std::fprintf(stderr, "left behind: %s\n", left.c_str());
    for (const auto& [node, pid] : processes()) ::kill(pid, SIGKILL);
  }
}

void Cluster::write_model() const {
  if (options_.bundled_model) return;
  const fs::path source = fs::path(VOLLEY_TEST_DATA) / "models/random-moe";
  const fs::path model = dir_.path() / "model";
  fs::create_directory(model);
  fs::copy(source / "tokenizer.json", model);
  std::string config = read_file(source / "config.json");
  const std::string field = "\"max_position_embeddings\": ", old = field + "1024";
  VOLLEY_CHECK(config.find(old) != std::string::npos);
  config.replace(config.find(old), old.size(), field + std::to_string(options_.sequence_tokens));
  write_file(model / "config.json", config);
}

void Cluster::configure() {
  Port api, controller;  // Both held until both are chosen.
  api_ = api.address();
  controller_ = controller.address();
  const std::string model =
      options_.bundled_model
          ? fmt::format("  path: {}/configs/models/licence-mixtral\n", VOLLEY_SOURCE_DIR)
          : "  path: model\n  weights: dummy\n  seed: 7\n";
  std::string attention, expert;
  for (uint32_t i = 0; i < options_.attention; ++i) {
    attention += fmt::format("    - name: attention-{}\n      threads: {}\n", i, options_.threads);
  }
  for (uint32_t i = 0; i < options_.expert; ++i) {
    expert += fmt::format("    - name: expert-{}\n      threads: {}\n", i, options_.threads);
    if (!options_.replicated_experts) continue;
    std::string held;
    for (uint32_t e = 0; e < kExperts; ++e) {
      if (e % options_.expert != i) held += fmt::format("{}{}", held.empty() ? "" : ", ", e);
    }
    expert += fmt::format("      experts: [{}]\n", held);
  }
  write_file(
      file(),
      fmt::format("cluster: e2e\n"
                  "model:\n{}"
                  "transport:\n  fabric: {}\n  micro_batches: {}\n  slot_rows: 64\n{}"
                  "controller:\n  listen: {}\n  report_interval_ms: {}\n"
                  "frontend:\n  listen: {}\n  in_flight_max: {}\n  queue_max: {}\n"
                  "attention:\n  tokens_per_step: 64\n  sequences_max: 32\n"
                  "  sequence_tokens: {}\n  nodes:\n{}"
                  "expert:\n  nodes:\n{}"
                  "stop_timeout_ms: {}\n"
                  "cpu_isa: {}\n{}",
                  model, options_.fabric,
                  options_.adaptive_micro_batches ? "auto" : std::to_string(options_.micro_batches),
                  options_.transport, controller_, options_.report_interval_ms, api_,
                  options_.in_flight_max, options_.queue_max,
                  options_.bundled_model ? 512 : options_.sequence_tokens, attention, expert,
                  options_.stop_timeout_ms, options_.cpu_isa, options_.more));
  channel_ = *control::make_channel({}, api_);
  inference_ = v1::Inference::NewStub(channel_);
  operator_ = v1::Operator::NewStub(*control::make_channel({}, controller_));
}

bool Cluster::up() {
  for (int attempt = 0; attempt < kStartAttempts; ++attempt) {
    up_ = std::make_unique<Process>(std::vector<std::string>{"up", file()}, folder(), "up");
    const bool ready = eventually(
        [&] {
          return up_->wait_exit(milliseconds(0)).has_value() ||
                 up_->out().find("cluster e2e ") != std::string::npos;
        },
        options_.start_timeout);
    if (ready && !up_->wait_exit(milliseconds(0)).has_value()) return wait_ready();
    if (up_->err().find("cannot listen on") == std::string::npos) break;
    configure();
  }
  std::fprintf(stderr, "the cluster did not start:\n%s%s", up_->out().c_str(), up_->err().c_str());
  return false;
}

Process& Cluster::start_node(const std::string& name) {
  std::vector<std::string> arguments = {name.substr(0, name.find('-')), "--config", file()};
  if (name != "frontend") arguments.insert(arguments.end(), {"--node", name});
  const std::string prefix = fmt::format("{}.{}", name, starts_++);
  return *nodes_.emplace_back(std::make_unique<Process>(arguments, folder(), prefix));
}

bool Cluster::wait_ready() {
  const auto all_ready = [&] {
    const auto response = status();
    if (!response.has_value() || !response->view().serving()) return false;
    uint32_t ready = 0;
    for (const auto& member : response->view().members()) ready += member.health().ready() ? 1 : 0;
    return ready == 1 + options_.attention + options_.expert;
  };
  return eventually(all_ready, options_.start_timeout);
}

std::optional<int> Cluster::stop() {
  up_->signal(SIGTERM);
  return up_->wait_exit(milliseconds(options_.stop_timeout_ms) + seconds(10));
}

std::optional<v1::GetStatusResponse> Cluster::status() const {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(1));
  context.set_wait_for_ready(true);  // Only a call that waits makes gRPC connect without delay.
  v1::GetStatusResponse response;
  if (!operator_->GetStatus(&context, {}, &response).ok()) return std::nullopt;
  return response;
}

std::optional<v1::NodeHealth> Cluster::health(const std::string& node) const {
  const auto response = status();
  if (!response.has_value()) return std::nullopt;
  for (const auto& member : response->view().members()) {
    if (member.registration().name() == node) return member.health();
  }
  return std::nullopt;
}

std::string Cluster::leftovers() const {
  // A process that was killed may take a moment to go.
  eventually([&] { return processes().empty(); }, seconds(1));
  std::string left;
  for (const auto& [node, pid] : processes()) left += fmt::format("{} (pid {}) ", node, pid);
  for (const auto& entry : fs::directory_iterator("/dev/shm")) {
    const std::string name = entry.path().filename();
    if (name.starts_with("volley")) left += entry.path().string() + " ";
  }
  for (const auto& entry : fs::directory_iterator(folder())) {
    const fs::path& path = entry.path();
    const bool known = path.extension() == ".out" || path.extension() == ".err" ||
                       path.filename() == "cluster.yaml" || path.filename() == "model";
    if (!known) left += path.string() + " ";
  }
  return left;
}

}  // namespace volley::e2e
