// Goal: the end-to-end benchmarks run, report every field as a finite number, and leave nothing
// behind; a node that dies ends the run with an error that names it.
// Method: the programs as processes with tiny models. No time is checked: a busy machine must pass.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace volley {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::chrono::seconds kTimeout{90};

std::string read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

class BenchmarksTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "volley-benchmarks-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  fs::path file(const std::string& name) const { return folder_ / name; }

  /// Starts a program, with its output in the files "out" and "err".
  void start(const std::string& program, std::vector<std::string> words) {
    words.insert(words.begin(), program);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const std::string out = file("out"), err = file("err");
    pid_ = ::fork();
    ASSERT_GE(pid_, 0);
    if (pid_ != 0) return;
    if (std::freopen(out.c_str(), "w", stdout) != nullptr &&
        std::freopen(err.c_str(), "w", stderr) != nullptr) {
      ::execv(program.c_str(), argv.data());
    }
    ::_exit(127);
  }

  /// The exit code; minus the signal that ended it; -1000 when it had to be killed.
  int wait_exit() {
    const auto deadline = std::chrono::steady_clock::now() + kTimeout;
    int status = 0;
    while (::waitpid(pid_, &status, WNOHANG) != pid_) {
      if (std::chrono::steady_clock::now() > deadline) return -1000;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  std::vector<pid_t> children() const {
    std::istringstream stream(
        read_file("/proc/" + std::to_string(pid_) + "/task/" + std::to_string(pid_) + "/children"));
    return {std::istream_iterator<pid_t>(stream), {}};
  }

  json report() const { return json::parse(read_file(file("report.json")), nullptr, false); }

  pid_t pid_ = -1;
  fs::path folder_;
};

void expect_positive(const json& object, const std::vector<std::string>& fields) {
  for (const std::string& field : fields) {
    ASSERT_TRUE(object.contains(field)) << field << " in " << object.dump();
    ASSERT_TRUE(object[field].is_number()) << field << " in " << object.dump();
    EXPECT_TRUE(std::isfinite(object[field].get<double>())) << field;
    EXPECT_GT(object[field].get<double>(), 0) << field;
  }
}

/// The first and the last of the cores that this process may use, which may be one.
std::vector<std::string> core_arguments(const std::string& first, const std::string& last) {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return {first, std::to_string(cores.front()), last, std::to_string(cores.back())};
}

std::vector<std::string> pingpong_arguments(const std::string& steps) {
  std::vector<std::string> words{"--layers", "2", "--hidden", "64",  "--heads",  "4",
                                 "--rows",   "4", "--steps",  steps, "--window", "2",
                                 "--repeat", "1", "--ffn",    "64",  "--prompt", "4"};
  for (const std::string& word : core_arguments("--attention-core", "--expert-core")) {
    words.push_back(word);
  }
  return words;
}

TEST_F(BenchmarksTest, PingPongReportsEverySetting) {
  std::vector<std::string> words = pingpong_arguments("12");
  for (const auto& [option, name] :
       {std::pair{"--json", "report.json"}, std::pair{"--svg", "timeline.svg"},
        std::pair{"--markdown", "table.md"}}) {
    words.insert(words.end(), {option, file(name).string()});
  }
  words.insert(words.end(), {"--m", "1,2"});
  start(VOLLEY_PINGPONG, words);
  ASSERT_EQ(wait_exit(), 0) << read_file(file("err"));

  const json result = report();
  ASSERT_TRUE(result.is_object()) << read_file(file("report.json"));
  ASSERT_EQ(result.at("settings").size(), 4u);  // m = 1 and 2, without and with delay.
  for (const json& setting : result.at("settings")) {
    expect_positive(setting,
                    {"micro_batches", "steps_per_s", "tokens_per_s", "attention_us", "expert_us",
                     "transfer_us", "head_us", "predicted_steps_per_s", "measured_over_predicted",
                     "measured_over_foretold", "attention_busy", "expert_busy"});
  }
  ASSERT_EQ(result.at("gains").size(), 2u);
  for (const json& gain : result.at("gains")) expect_positive(gain, {"measured", "predicted"});
  // The emulated wire delays what passes it.
  const json& delayed = result.at("settings").at(2);
  EXPECT_GT(delayed.at("wire_delay_us").get<double>(), 0);
  EXPECT_GE(delayed.at("transfer_us").get<double>(), delayed.at("wire_delay_us").get<double>());

  EXPECT_THAT(read_file(file("table.md")), HasSubstr("| 0 | 2 |"));
  const std::string picture = read_file(file("timeline.svg"));
  EXPECT_THAT(picture, HasSubstr("micro-batch 1"));
  EXPECT_THAT(picture, HasSubstr("</svg>"));
  EXPECT_THAT(picture, Not(HasSubstr("nan")));
}

TEST_F(BenchmarksTest, PingPongNamesTheNodeThatDied) {
  std::vector<std::string> words = pingpong_arguments("3000");
  words.insert(words.end(), {"--m", "2"});
  start(VOLLEY_PINGPONG, words);
  const auto deadline = std::chrono::steady_clock::now() + kTimeout;
  std::vector<pid_t> nodes;
  while (nodes.size() < 2 && std::chrono::steady_clock::now() < deadline) {
    nodes = children();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ASSERT_EQ(nodes.size(), 2u);
  ASSERT_EQ(::kill(nodes.back(), SIGKILL), 0);
  EXPECT_EQ(wait_exit(), 1);
  EXPECT_THAT(read_file(file("err")), HasSubstr("node was killed by signal 9"));
  for (const pid_t node : nodes) EXPECT_EQ(::kill(node, 0), -1) << node << " was left behind";
}

TEST_F(BenchmarksTest, ModelVsMachineReportsEveryRun) {
  std::vector<std::string> words{
      "--models",        std::string(VOLLEY_TEST_DATA) + "/models/random-moe",
      "--rows",          "4",
      "--steps",         "12",
      "--repeat",        "1",
      "--json",          file("report.json").string(),
      "--fabrics",       "shm",
      "--clusters",      "2x3",
      "--window-rounds", "2",
      "--micro-batches", "1,2"};
  for (const std::string& word : core_arguments("--attention-core", "--expert-core")) {
    words.push_back(word);
  }
  start(VOLLEY_MODEL_VS_MACHINE, words);
  ASSERT_EQ(wait_exit(), 0) << read_file(file("err"));
  const json result = report();
  ASSERT_TRUE(result.is_object()) << read_file(file("report.json"));
  ASSERT_EQ(result.at("lines").size(), 4u);  // m = 1 and 2, real and modelled.
  for (const json& line : result.at("lines")) {
    expect_positive(line, {"rows", "micro_batches", "tokens_per_s", "tpot_s"});
    for (const char* predictor : {"closed form", "simulation"}) {
      expect_positive(line.at("predicted").at(predictor), {"tokens_per_s", "tpot_s"});
    }
  }
  EXPECT_EQ(result.at("lines").at(0).at("cluster"), "1x1");
  EXPECT_EQ(result.at("lines").at(3).at("cluster"), "2x3");
  EXPECT_THAT(read_file(file("out")), HasSubstr("modelled, m > 1, simulation: median error"));
}

void expect_throughput(const json& result, size_t rows) {
  ASSERT_TRUE(result.is_object());
  expect_positive(result.at("limits"), {"memory_gbps", "peak_gflops"});
  ASSERT_EQ(result.at("rows").size(), rows);
  for (const json& row : result.at("rows")) {
    expect_positive(
        row, {"streams", "decode_tokens_per_s", "bound_tokens_per_s", "decode_share", "step_bytes",
              "step_flops", "prefill_tokens_per_s", "prefill_gflops", "prefill_share"});
  }
  expect_positive(result.at("attention_profile_s"), {"attention", "head"});
  expect_positive(result.at("expert_profile_s"), {"ffn"});
}

class ThroughputTest : public BenchmarksTest {
 protected:
  void run(std::vector<std::string> words) {
    words.insert(words.end(), {"--prompt", "8", "--new", "4", "--limits-seconds", "0.001", "--json",
                               file("report.json").string()});
    start(VOLLEY_THROUGHPUT, words);
    ASSERT_EQ(wait_exit(), 0) << read_file(file("err"));
  }
  const std::string model_ = std::string(VOLLEY_TEST_DATA) + "/models/random-moe";
};

TEST_F(ThroughputTest, Colocated) {
  run({model_, "--streams", "1,3"});
  expect_throughput(report(), 2);
}

TEST_F(ThroughputTest, OneAttentionAndOneExpertProcess) {
  cpu_set_t set;
  CPU_ZERO(&set);
  ASSERT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  if (CPU_COUNT(&set) < 2) GTEST_SKIP() << "the limits of two cores need two";
  std::vector<std::string> words{model_, "--streams", "2", "--mode", "1a1e"};
  for (const std::string& word : core_arguments("--attention-cores", "--expert-cores")) {
    words.push_back(word);
  }
  run(words);
  expect_throughput(report(), 1);
}

TEST_F(ThroughputTest, SaysWhatIsWrongWithTheModel) {
  start(VOLLEY_THROUGHPUT, {file("missing").string()});
  EXPECT_EQ(wait_exit(), 1);
  EXPECT_THAT(read_file(file("err")), HasSubstr("missing"));
}

}  // namespace
}  // namespace volley
