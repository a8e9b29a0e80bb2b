// Goal: the benchmarks run as commands, write JSON that a program can read, and refuse what is
// wrong. Method: short runs; shapes, signs and finiteness are asserted, never a time.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "e2e/volley_process.h"

namespace volley::e2e {
namespace {

using ::testing::HasSubstr;

class BenchTest : public ::testing::Test {
 protected:
  ~BenchTest() override { std::filesystem::remove(json_); }

  nlohmann::json read_json() const {
    std::ifstream file(json_);
    return nlohmann::json::parse(file, nullptr, false);
  }

  const std::string json_ =
      std::filesystem::temp_directory_path() / ("volley_bench_" + std::to_string(::getpid()));
};

void expect_positive(const nlohmann::json& object, const char* key) {
  ASSERT_TRUE(object.contains(key) && object[key].is_number()) << key << " in " << object;
  EXPECT_GT(object[key].get<double>(), 0) << key;
  EXPECT_TRUE(std::isfinite(object[key].get<double>())) << key;
}

TEST_F(BenchTest, KernelsWritesTableAndJson) {
  const CommandResult result =
      run_volley({"bench", "kernels", "--filter", "^(gemm/output.*rows=(1|4)|rms_norm.*rows=1)$",
                  "--min-time-ms", "1", "--repetitions", "2", "--json", json_});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("memory read, GB/s"));
  EXPECT_THAT(result.out, HasSubstr("output 1024x1024"));
  const nlohmann::json json = read_json();
  ASSERT_TRUE(json.is_object());
  ASSERT_EQ(json["results"].size(), 3u);
  EXPECT_EQ(json["results"][1]["shape"], "output 1024x1024");
  EXPECT_EQ(json["results"][1]["rows"], 4);
  for (const nlohmann::json& one : json["results"]) {
    for (const char* key : {"best_seconds", "median_seconds", "limit_seconds", "gbps"}) {
      expect_positive(one, key);
    }
  }
  expect_positive(json["limits"][0]["used"], "memory_gbps");
}

TEST_F(BenchTest, KernelsRefusesWrongArguments) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"--filter", "nothing has this name"},
        {"--isa", "mmx"},
        {"--threads", "0"},
        {"--threads", "1,x"},
        {"--min-time-ms", "0"},
        {"--json", "/no/such/folder/file"}}) {
    std::vector<std::string> command = {"bench", "kernels"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const CommandResult result = run_volley(command);
    EXPECT_EQ(result.exit_code, 2) << arguments[1];
    EXPECT_EQ(result.out, "") << arguments[1];
  }
  EXPECT_EQ(run_volley({"bench"}).exit_code, 2);
  EXPECT_THAT(run_volley({"bench", "kernels", "--list"}).out, HasSubstr("gemm/qkv 1536x1024"));
}

TEST_F(BenchTest, M2nMeasuresEveryFabric) {
  for (const std::string fabric : {"shm", "tcp", "local"}) {
    const CommandResult result =
        run_volley({"bench", "m2n", "--fabric", fabric, "--m", "2", "--n", "2", "--bytes",
                    "2KB,64KB", "--iterations", "20", "--warmup", "2", "--json", json_});
    EXPECT_EQ(result.exit_code, 0) << fabric << ": " << result.err;
    EXPECT_THAT(result.out, HasSubstr(fabric + ", round-trip"));
    const nlohmann::json json = read_json();
    ASSERT_TRUE(json.is_object());
    EXPECT_EQ(json["system"], fabric);
    ASSERT_EQ(json["results"].size(), 2u);
    EXPECT_EQ(json["results"][1]["bytes"], 65'536);
    for (const nlohmann::json& one : json["results"]) {
      for (const char* key : {"median_seconds", "p99_seconds", "p999_seconds", "dispatch_gbps",
                              "answer_gbps", "bound_seconds"}) {
        expect_positive(one, key);
      }
    }
  }
}

TEST_F(BenchTest, M2nRefusesWrongArguments) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--fabric", "pigeon"},
                                                    {"--m", "33"},
                                                    {"--n", "0"},
                                                    {"--bytes", "3000"},
                                                    {"--bytes", "32MB"},
                                                    {"--pin", "100000"},
                                                    {"--json", "/no/such/folder/file"}}) {
    std::vector<std::string> command = {"bench", "m2n"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    EXPECT_EQ(run_volley(command).exit_code, 2) << arguments[1];
  }
}

/// The children of a process, as the kernel lists them.
std::vector<pid_t> children_of(pid_t pid) {
  const std::string text = std::to_string(pid);
  std::ifstream file("/proc/" + text + "/task/" + text + "/children");
  std::vector<pid_t> children;
  for (pid_t child = 0; file >> child;) children.push_back(child);
  return children;
}

bool exists(pid_t pid) {
  return std::filesystem::exists("/proc/" + std::to_string(pid));
}

class EndlessM2n : public BenchTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(eventually([&] { return children_of(bench_.pid()).size() == 4; }, seconds(10)))
        << bench_.err();
    children_ = children_of(bench_.pid());
  }
  bool none_left() {
    return eventually([&] { return std::none_of(children_.begin(), children_.end(), exists); },
                      seconds(30));
  }

  TempDir folder_;
  Process bench_{
      {"bench", "m2n", "--m", "2", "--n", "2", "--bytes", "2KB", "--iterations", "10000000"},
      folder_.path(),
      "bench"};
  std::vector<pid_t> children_;
};

TEST_F(EndlessM2n, AChildThatDiesEndsTheRunWithItsName) {
  ::kill(children_.front(), SIGKILL);
  EXPECT_EQ(bench_.wait_exit(seconds(10)), 1);
  EXPECT_THAT(bench_.err(), HasSubstr("receiver-0: killed by signal 9"));
  EXPECT_EQ(bench_.out(), "");
  EXPECT_TRUE(none_left());
}

TEST_F(EndlessM2n, AKilledCommandLeavesNoChild) {
  bench_.signal(SIGKILL);
  EXPECT_EQ(bench_.wait_exit(seconds(10)), -SIGKILL);
  EXPECT_TRUE(none_left());
}

}  // namespace
}  // namespace volley::e2e
