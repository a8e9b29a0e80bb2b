// Goal: an operator gets a plan and a simulation from the command line, wherever the command is
// called, and every mistake is named with exit code 2. Method: the real binary with the catalogue
// of the tree; what it writes is parsed by what reads it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "e2e/volley_process.h"
#include "volley/config/cluster_config.h"
#include "volley/config/text_file.h"

namespace volley::e2e {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr auto kPatience = seconds(60);
const std::string kConfigs = std::string(VOLLEY_SOURCE_DIR) + "/configs";

std::string message_of_mistake(const std::vector<std::string>& arguments) {
  const CommandResult result = run_volley(arguments, kPatience);
  EXPECT_EQ(result.exit_code, 2) << result.out;
  EXPECT_EQ(result.out, "");
  return result.err;
}

TEST(Plan, PrintsAndWritesWhatItFound) {
  const TempDir dir;
  const std::string json_file = (dir.path() / "plan.json").string();
  const std::string cluster_file = (dir.path() / "cluster.yaml").string();
  const CommandResult result =
      run_volley({"plan", "--model", "dbrx", "--hardware", "H20,l40s", "--slo", "tpot=150ms",
                  "--input", "571", "--output", "159", "--objective", "cost", "--json", json_file,
                  "--cluster", cluster_file, "--checkpoint", "/models/dbrx"},
                 kPatience);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, Not(HasSubstr("\r"))) << "a progress bar without a terminal";
  for (const char* part : {"Winner: disaggregated, attention on H20, experts on L40S", "bound by",
                           "Sensitivity", "plans/s"}) {
    EXPECT_THAT(result.out, HasSubstr(part));
  }
  const auto text = config::read_text_file(json_file, 1 << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto json = nlohmann::json::parse(*text);
  EXPECT_EQ(json.at("plans").at(0).at("layout"), "disaggregated");
  const auto cluster = config::load_cluster_config(cluster_file);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  EXPECT_EQ(cluster->model.path, "/models/dbrx");
  EXPECT_EQ(cluster->expert.nodes.size(), 16u);
}

TEST(Plan, SaysNotToDisaggregateWhereThatIsCheaper) {
  const CommandResult result =
      run_volley({"plan", "--model", "qwen3-235b-a22b", "--hardware", "h100", "--slo", "tpot=50ms"},
                 kPatience);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("Winner: colocated"));
}

TEST(Plan, NamesMistakes) {
  EXPECT_THAT(message_of_mistake({"plan"}), HasSubstr("--model"));
  EXPECT_THAT(message_of_mistake({"plan", "--model", "dbrx"}), HasSubstr("--hardware"));
  const auto with = [](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"plan", "--model", "dbrx", "--hardware", "a800"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return message_of_mistake(arguments);
  };
  EXPECT_THAT(with({"--slo", "tpot=fast"}), HasSubstr("tpot=fast"));
  EXPECT_THAT(with({"--input", "-3"}), HasSubstr("-3"));
  EXPECT_THAT(with({"--input", "nan"}), HasSubstr("nan"));
  EXPECT_THAT(with({"--gpus-max", "0"}), HasSubstr("GPU"));
  EXPECT_THAT(with({"--attention-tp", "0"}), HasSubstr("0"));
  EXPECT_THAT(with({"--micro-batches-max", "1000000"}), HasSubstr("1000000"));
  EXPECT_THAT(with({"--json", "/nowhere/plan.json"}), HasSubstr("/nowhere/plan.json"));
  EXPECT_THAT(with({"--catalogue", "/nowhere"}), HasSubstr("/nowhere"));
  EXPECT_THAT(message_of_mistake({"plan", "--model", "dbrx", "--hardware", "a801"}),
              HasSubstr("a800"));  // What there is.
  EXPECT_THAT(message_of_mistake({"plan", "--model", "dbrx", "--hardware", "a800,A800"}),
              HasSubstr("twice"));
  EXPECT_THAT(message_of_mistake({"plan", "--model", "nobody", "--hardware", "a800"}),
              HasSubstr("mixtral-8x22b"));
}

TEST(Plan, SaysWhatIsInTheWayWhenNothingFits) {
  const CommandResult result = run_volley(
      {"plan", "--model", "deepseek-v3", "--hardware", "l20", "--gpus-max", "4"}, kPatience);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("memory"));
}

TEST(Simulate, PlaysAnExample) {
  const TempDir dir;
  const std::string json_file = (dir.path() / "report.json").string();
  const CommandResult result =
      run_volley({"simulate", kConfigs + "/simulations/pingpong.yaml", "--duration", "1.5",
                  "--warm-up", "0.5", "--json", json_file},
                 kPatience);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("tokens"));
  const auto text = config::read_text_file(json_file, 1 << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_GT(nlohmann::json::parse(*text).at("tokens_per_s").get<double>(), 0);
}

TEST(Simulate, NamesMistakes) {
  EXPECT_THAT(message_of_mistake({"simulate", "/nowhere.yaml"}), HasSubstr("/nowhere.yaml"));
  const std::string file = kConfigs + "/simulations/pingpong.yaml";
  EXPECT_THAT(message_of_mistake({"simulate", file, "--change", "at noon kill expert-0"}),
              HasSubstr("at noon"));
  EXPECT_THAT(message_of_mistake({"simulate", file, "--json", "/nowhere/x.json"}),
              HasSubstr("/nowhere/x.json"));
}

}  // namespace
}  // namespace volley::e2e
