// Goal: a command that cannot do what it was told says why, with the file, the key or the value,
// ends at once with a code other than 0, and leaves nothing. Method: real processes with one thing
// wrong each.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "e2e/volley_process.h"

namespace volley::e2e {
namespace {

using ::testing::HasSubstr;

namespace fs = std::filesystem;

constexpr int kFailure = 1, kUsage = 2;
const fs::path kModel = fs::path(VOLLEY_SOURCE_DIR) / "configs/models/licence-mixtral";

class ConfigTest : public ::testing::Test {
 protected:
  /// Writes a good cluster file with one text replaced.
  std::string config(const std::string& from = "", const std::string& to = "") {
    std::string text =
        "cluster: bad\n"
        "model:\n  path: " +
        kModel.string() +
        "\n"
        "controller:\n  listen: " +
        controller_.address() +
        "\n"
        "frontend:\n  listen: " +
        api_.address() +
        "\n"
        "attention:\n  tokens_per_step: 32\n  sequence_tokens: 256\n  nodes:\n    - name: a\n"
        "expert:\n  nodes:\n    - name: e\n";
    if (!from.empty()) {
      EXPECT_NE(text.find(from), std::string::npos);
      text.replace(text.find(from), from.size(), to);
    }
    const fs::path file = dir_.path() / "cluster.yaml";
    write_file(file, text);
    return file.string();
  }
  void free_ports() {
    controller_.release();
    api_.release();
  }
  /// A copy of the bundled model.
  fs::path copy_of_model() {
    const fs::path copy = dir_.path() / "model";
    fs::copy(kModel, copy);
    return copy;
  }

  TempDir dir_;
  Port controller_, api_;
};

TEST_F(ConfigTest, UnknownKey) {
  const std::string file = config("tokens_per_step", "colour");
  for (const auto& arguments : {std::vector<std::string>{"up", file},
                                {"frontend", "--config", file},
                                {"attention", "--config", file, "--node", "a"},
                                {"expert", "--config", file, "--node", "e"}}) {
    const CommandResult result = run_volley(arguments);
    EXPECT_EQ(result.exit_code, kUsage);
    EXPECT_THAT(result.err, HasSubstr(file + ":9: attention.colour"));
  }
}

TEST_F(ConfigTest, BadValue) {
  const std::string file = config("tokens_per_step: 32", "tokens_per_step: many");
  const CommandResult result = run_volley({"up", file});
  EXPECT_EQ(result.exit_code, kUsage);
  EXPECT_THAT(result.err, HasSubstr(file + ":9: attention.tokens_per_step"));
  EXPECT_THAT(result.err, HasSubstr("many"));
}

TEST_F(ConfigTest, NoSuchFile) {
  const CommandResult result = run_volley({"up", (dir_.path() / "none.yaml").string()});
  EXPECT_EQ(result.exit_code, kUsage);
  EXPECT_THAT(result.err, HasSubstr((dir_.path() / "none.yaml").string()));
}

TEST_F(ConfigTest, NodeThatTheFileDoesNotList) {
  for (const std::string role : {"attention", "expert"}) {
    const CommandResult result = run_volley({role, "--config", config(), "--node", "zebra"});
    EXPECT_EQ(result.exit_code, kUsage);
    EXPECT_THAT(result.err, HasSubstr(role + ".nodes"));
    EXPECT_THAT(result.err, HasSubstr("zebra"));
  }
}

TEST_F(ConfigTest, ModelFolderIsMissing) {
  const std::string file = config(kModel.string(), "nowhere");
  for (const auto& arguments : {std::vector<std::string>{"frontend", "--config", file},
                                {"attention", "--config", file, "--node", "a"},
                                {"expert", "--config", file, "--node", "e"}}) {
    const CommandResult result = run_volley(arguments);
    EXPECT_EQ(result.exit_code, kUsage);
    EXPECT_THAT(result.err, HasSubstr((dir_.path() / "nowhere").string()));
  }
}

TEST_F(ConfigTest, Fp8DispatchesThatWouldBeLarger) {
  const fs::path model = copy_of_model() / "config.json";
  std::string text = read_file(model);
  const std::string hidden = "\"hidden_size\": 128";
  ASSERT_NE(text.find(hidden), std::string::npos);
  text.replace(text.find(hidden), hidden.size(), "\"hidden_size\": 14");
  write_file(model, text);
  const std::string file =
      config(kModel.string(), "model\n  weights: dummy\ntransport:\n  dispatch_dtype: fp8_e4m3");
  for (const auto& arguments :
       {std::vector<std::string>{"attention", "--config", file, "--node", "a"},
        {"expert", "--config", file, "--node", "e"}}) {
    const CommandResult result = run_volley(arguments);
    EXPECT_EQ(result.exit_code, kUsage);
    EXPECT_THAT(result.err, HasSubstr(file + ": transport.dispatch_dtype: a row of 14 elements has "
                                             "32 bytes in fp8_e4m3, in bf16 only 28"));
  }
}

TEST_F(ConfigTest, TruncatedWeights) {
  const fs::path weights = copy_of_model() / "model.safetensors";
  fs::resize_file(weights, fs::file_size(weights) - 1000);
  const std::string file = config(kModel.string(), "model");
  for (const auto& arguments :
       {std::vector<std::string>{"attention", "--config", file, "--node", "a"},
        {"expert", "--config", file, "--node", "e"}}) {
    const CommandResult result = run_volley(arguments);
    EXPECT_THAT(result.exit_code, ::testing::AnyOf(kFailure, kUsage));
    EXPECT_THAT(result.err, HasSubstr(weights.string()));
  }
}

TEST_F(ConfigTest, BrokenTokenizer) {
  const fs::path tokenizer = copy_of_model() / "tokenizer.json";
  write_file(tokenizer, "{\"model\": 7}");
  const CommandResult result =
      run_volley({"frontend", "--config", config(kModel.string(), "model")});
  EXPECT_THAT(result.exit_code, ::testing::AnyOf(kFailure, kUsage));
  EXPECT_THAT(result.err, HasSubstr(tokenizer.string()));
}

TEST_F(ConfigTest, PortInUse) {
  const std::string file = config();
  controller_.release();  // The API's stays taken.
  const CommandResult result = run_volley({"frontend", "--config", file});
  EXPECT_EQ(result.exit_code, kFailure);
  EXPECT_THAT(result.err, HasSubstr("cannot listen on " + api_.address()));
}

TEST_F(ConfigTest, UpWithAModelThatCannotBeLoadedLeavesNothing) {
  const fs::path weights = copy_of_model() / "model.safetensors";
  fs::resize_file(weights, fs::file_size(weights) / 2);
  const std::string good = config(kModel.string(), "model");
  const std::string fabric_local = good + ".local.yaml";
  write_file(fabric_local, read_file(good) + "transport:\n  fabric: local\n");
  free_ports();
  for (const std::string& file : {good, fabric_local}) {
    Process process({"up", file}, dir_.path(), "up");
    const auto code = process.wait_exit(seconds(15));
    ASSERT_TRUE(code.has_value());
    EXPECT_THAT(*code, ::testing::AnyOf(kFailure, kUsage));
    EXPECT_THAT(process.err(), HasSubstr(weights.string()));
    EXPECT_TRUE(processes_with(file).empty());
  }
}

}  // namespace
}  // namespace volley::e2e
