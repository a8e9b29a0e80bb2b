// Goal: the benchmarks run as commands, write JSON that a program can read, and refuse what is
// wrong. Method: short runs; shapes, signs and finiteness are asserted, never a time.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

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

}  // namespace
}  // namespace volley::e2e
