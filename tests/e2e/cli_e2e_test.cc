// Goal: the operator's and the user's tools against a cluster that serves the bundled model.
// Method: the commands as processes, their output and exit codes; health checks and reflection over
// gRPC.

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "e2e/client.h"
#include "e2e/volley_process.h"

namespace volley::e2e {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kPrompt[] = "Everyone is permitted to copy";
constexpr char kLicence[] = " and distribute verbatim copies";

class CliTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster_ = std::make_unique<Cluster>(
        ClusterOptions{.attention = 2, .expert = 2, .micro_batches = 2, .bundled_model = true});
    ASSERT_TRUE(cluster_->up());
  }
  static void TearDownTestSuite() {
    EXPECT_EQ(cluster_->stop(), 0) << cluster_->supervisor().err();
    EXPECT_EQ(cluster_->leftovers(), "");
    cluster_.reset();
  }

  static CommandResult generate(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"generate", "--server", cluster_->api()});
    return run_volley(arguments);
  }

  static std::unique_ptr<Cluster> cluster_;
};

std::unique_ptr<Cluster> CliTest::cluster_;

/// `field` of wire type 2, for messages that this project does not have.
std::string bytes_field(int field, const std::string& value) {
  return std::string{static_cast<char>(field << 3 | 2), static_cast<char>(value.size())} + value;
}

/// Sends one message and returns the first answer.
std::pair<grpc::Status, std::string> raw_call(const std::shared_ptr<grpc::Channel>& channel,
                                              const std::string& method,
                                              const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(30));
  grpc::CompletionQueue queue;
  void* tag = nullptr;
  bool ok = false;
  const auto step = [&] { return queue.Next(&tag, &ok) && ok; };
  const auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  step();
  const grpc::Slice slice(request);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  step();
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  std::string text;
  if (step()) {
    grpc::Slice whole;
    if (answer.DumpToSingleSlice(&whole).ok()) {
      text.assign(reinterpret_cast<const char*>(whole.begin()), whole.size());
    }
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  step();
  return {status, text};
}

TEST_F(CliTest, GreedyPrintsTheLicence) {
  const CommandResult result = generate({"--greedy", "--max-new-tokens", "24", kPrompt});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, StartsWith(kLicence));
  EXPECT_THAT(result.err, HasSubstr("+ 24 tokens, length;"));
  const CommandResult echo =
      generate({"--greedy", "--max-new-tokens", "24", "--quiet", "--echo", kPrompt});
  EXPECT_EQ(echo.out, kPrompt + result.out);
  EXPECT_EQ(echo.err, "");
}

TEST_F(CliTest, IdsAndDigestAreThoseOfTheText) {
  const std::vector<std::string> base = {
      "--temperature", "5", "--seed", "5", "--max-new-tokens", "9", kPrompt, "--ids", "--digest"};
  const CommandResult first = generate(base), second = generate(base);
  EXPECT_EQ(first.exit_code, 0) << first.err;
  std::istringstream ids(first.out);
  size_t count = 0;
  for (int id = 0; ids >> id; ++count) EXPECT_GE(id, 0);
  EXPECT_EQ(count, 9u);
  EXPECT_EQ(first.out, second.out);
  const auto digest = [](const std::string& text) {
    const size_t at = text.find("digest ");
    return at == std::string::npos ? "" : text.substr(at);
  };
  EXPECT_NE(digest(first.err), "");
  EXPECT_EQ(digest(first.err), digest(second.err));
  std::vector<std::string> other = base;
  other[3] = "6";
  EXPECT_NE(digest(generate(other).err), digest(first.err));
}

TEST_F(CliTest, GenerateReportsErrors) {
  const CommandResult refused = generate({"--top-p", "7", kPrompt});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr("sampling.top_p: 7"));
  const CommandResult late =
      generate({"--timeout-ms", "1", "--ignore-eos", "--max-new-tokens", "400", kPrompt});
  EXPECT_EQ(late.exit_code, 1);
  EXPECT_EQ(generate({}).exit_code, 2);
  Port port;
  const std::string nobody = port.address();
  port.release();
  const CommandResult unreachable = run_volley({"generate", "--server", nobody, kPrompt});
  EXPECT_EQ(unreachable.exit_code, 1);
  EXPECT_THAT(unreachable.err, HasSubstr("onnect"));
}

TEST_F(CliTest, StatusShowsEveryNode) {
  const CommandResult table = run_volley({"status", "--controller", cluster_->controller()});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  const CommandResult json =
      run_volley({"status", "--controller", cluster_->controller(), "--json"});
  EXPECT_EQ(json.exit_code, 0) << json.err;
  const auto parsed = nlohmann::json::parse(json.out, nullptr, false);
  ASSERT_TRUE(parsed.is_object()) << json.out;
  EXPECT_TRUE(parsed["view"]["serving"].get<bool>());
  EXPECT_EQ(parsed["view"]["members"].size(), 5u);
  for (const std::string node :
       {"frontend-0", "attention-0", "attention-1", "expert-0", "expert-1"}) {
    EXPECT_THAT(table.out, HasSubstr(node));
    EXPECT_THAT(json.out, HasSubstr("\"" + node + "\""));
    EXPECT_THAT(cluster_->supervisor().out(), HasSubstr(node));  // The table of `volley up`.
  }
  EXPECT_THAT(table.out, HasSubstr("serving\n"));
  EXPECT_EQ(run_volley({"status", "--controller", cluster_->api()}).exit_code, 1);
}

TEST_F(CliTest, HealthChecks) {
  for (const std::string service : {"", "volley.v1.Inference", "liveness"}) {
    const auto [status, answer] = raw_call(cluster_->channel(), "/grpc.health.v1.Health/Check",
                                           service.empty() ? "" : bytes_field(1, service));
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(answer, std::string({1 << 3, 1})) << service;  // status: SERVING
  }
  EXPECT_EQ(raw_call(cluster_->channel(), "/grpc.health.v1.Health/Check", bytes_field(1, "zebra"))
                .first.error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(CliTest, ReflectionListsTheServices) {
  constexpr int kListServices = 7;
  const auto [status, answer] = raw_call(
      cluster_->channel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
      bytes_field(kListServices, "*"));
  EXPECT_TRUE(status.ok()) << status.error_message();
  for (const std::string service : {"volley.v1.Inference", "grpc.health.v1.Health"}) {
    EXPECT_THAT(answer, HasSubstr(service));
  }
}

TEST(Cli, HelpAndVersion) {
  const CommandResult help = run_volley({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const std::string command :
       {"frontend", "attention", "expert", "up", "generate", "status"}) {
    EXPECT_THAT(help.out, HasSubstr("  " + command + " "));
    EXPECT_EQ(run_volley({command, "--help"}).exit_code, 0);
  }
  const CommandResult version = run_volley({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, ::testing::MatchesRegex("volley [0-9]+\\.[0-9]+\\.[0-9]+\n"));
  EXPECT_EQ(run_volley({}).exit_code, 2);
  EXPECT_EQ(run_volley({"fly"}).exit_code, 2);
  EXPECT_EQ(run_volley({"frontend"}).exit_code, 2);
}

/// Whether the text is whole UTF-8: no stray, missing, overlong or surrogate bytes.
bool is_utf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t at) -> uint32_t {
      return at < text.size() ? static_cast<uint8_t>(text[at]) : 0;
    };
    const uint32_t head = byte(i);
    const size_t length = head < 0x80            ? 1
                          : head >> 5 == 0b110   ? 2
                          : head >> 4 == 0b1110  ? 3
                          : head >> 3 == 0b11110 ? 4
                                                 : 0;
    if (length == 0) return false;
    uint32_t point = length == 1 ? head : head & (0x7Fu >> length);
    for (size_t k = 1; k < length; ++k) {
      if (byte(i + k) >> 6 != 0b10) return false;
      point = point << 6 | (byte(i + k) & 0x3F);
    }
    constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (point < kSmallest[length] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) {
      return false;
    }
    i += length;
  }
  return true;
}

// At temperature 5 tokens that are parts of characters come in any order.
TEST_F(CliTest, StreamedTextIsNeverSplitInsideACharacter) {
  size_t beyond_ascii = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    v1::GenerateRequest request = seeded_request(seed, 6, 150);
    request.mutable_sampling()->set_temperature(5);
    request.set_keep_special_tokens(true);
    Stream stream(cluster_->inference(), request);
    ASSERT_TRUE(stream.wait_end());
    ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
    std::string whole;
    for (const std::string& text : stream.texts) {
      EXPECT_TRUE(is_utf8(text)) << ::testing::PrintToString(text);
      whole += text;
      for (const char c : text) beyond_ascii += static_cast<uint8_t>(c) >= 0x80 ? 1 : 0;
    }
    // What was streamed is what the ids mean.
    grpc::ClientContext context;
    v1::DetokenizeRequest ids;
    ids.mutable_token_ids()->Add(stream.tokens.begin(), stream.tokens.end());
    ids.set_keep_special_tokens(true);
    v1::DetokenizeResponse response;
    ASSERT_TRUE(cluster_->inference().Detokenize(&context, ids, &response).ok());
    EXPECT_EQ(whole, response.text());
  }
  EXPECT_GT(beyond_ascii, 0u);
}

}  // namespace
}  // namespace volley::e2e
