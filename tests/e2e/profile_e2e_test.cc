// Goal: `volley profile` writes files that the planner and the daemons read, with figures that can
// be. Method: the real command with a tiny model and little time; no figure is compared with a
// time.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "e2e/volley_process.h"
#include "volley/config/stage_times.h"
#include "volley/perf/device.h"

namespace volley::e2e {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const std::string kModel = std::string(VOLLEY_TEST_DATA) + "/models/random-moe";

TEST(Profile, WritesFilesThatAreRead) {
  const TempDir dir;
  const std::string hardware = (dir.path() / "here.yaml").string();
  const std::string times = (dir.path() / "times.yaml").string();
  const CommandResult result =
      run_volley({"profile", "--model", kModel, "--output", hardware, "--times", times, "--seconds",
                  "0.5", "--rows", "1,4,16", "--contexts", "16,64", "--name", "here"},
                 seconds(60));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("attention layer"));
  EXPECT_THAT(result.err, Not(HasSubstr("\r"))) << "a progress bar without a terminal";

  const auto device = perf::load_device(hardware);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->name, "here");
  EXPECT_TRUE(device->cpu);
  EXPECT_GT(device->efficiency.compute.at(16), device->efficiency.compute.at(1) / 2);
  const auto read = config::load_stage_times(times);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_GT(read->layer_us + read->layer_row_us + read->layer_context_us, 0);
  EXPECT_GT(read->step_us + read->step_emit_us, 0);
  EXPECT_GT(read->expert_layer_us + read->expert_us + read->expert_row_us, 0);
}

TEST(Profile, MistakesAreNamed) {
  const auto message = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "profile");
    const CommandResult result = run_volley(arguments, seconds(20));
    EXPECT_EQ(result.exit_code, 2);
    return result.err;
  };
  EXPECT_THAT(message({"--model", "/nowhere"}), HasSubstr("/nowhere"));
  EXPECT_THAT(message({"--model", kModel, "--cores", "x"}), HasSubstr("--cores"));
  EXPECT_THAT(message({"--model", kModel, "--isa", "mmx"}), HasSubstr("mmx"));
  EXPECT_THAT(message({"--model", kModel, "--rows", "4,1"}), HasSubstr("ascend"));
  EXPECT_THAT(message({"--model", kModel, "--output", "/nowhere/x.yaml"}),
              HasSubstr("/nowhere/x.yaml"));
}

}  // namespace
}  // namespace volley::e2e
