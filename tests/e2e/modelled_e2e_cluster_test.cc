// Goal: real daemons with `compute: modelled` serve and end like others, say loudly what they are,
// make the same tokens on every topology, and never serve together with real ones. Method: clusters
// of real processes, with modelled times of a few microseconds.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "e2e/client.h"
#include "e2e/volley_process.h"

namespace volley::e2e {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

const std::string kModelled =
    "compute: modelled\n"
    "modelled:\n"
    "  expert_skew: 0.5\n"
    "  times:\n"
    "    layer_us: 20\n    layer_row_us: 0.5\n    layer_context_us: 0.01\n"
    "    step_us: 30\n    step_row_us: 0.1\n    step_emit_us: 1\n"
    "    expert_layer_us: 15\n    expert_us: 2\n    expert_row_us: 0.25\n";

std::vector<std::vector<int32_t>> serve(ClusterOptions options) {
  options.more = kModelled;
  Cluster cluster(options);
  if (!cluster.up()) {
    ADD_FAILURE() << "no cluster";
    return {};
  }
  EXPECT_THAT(cluster.supervisor().err(), HasSubstr("computes NOTHING"));
  const auto status = cluster.status();
  EXPECT_TRUE(status.has_value());
  if (!status.has_value()) return {};
  for (const auto& member : status->view().members()) {
    if (member.registration().role() == v1::ROLE_FRONTEND) continue;
    EXPECT_THAT(member.registration().numerics_fingerprint(), StartsWith("modelled"));
  }
  std::vector<std::unique_ptr<Stream>> streams;
  for (uint32_t i = 0; i < 8; ++i) {
    streams.push_back(
        std::make_unique<Stream>(cluster.inference(), seeded_request(i + 1, 1 + 9 * i, 20)));
  }
  std::vector<std::vector<int32_t>> tokens;
  for (auto& stream : streams) {
    EXPECT_TRUE(stream->wait_end());
    EXPECT_TRUE(stream->status.ok()) << stream->status.error_message();
    EXPECT_EQ(stream->tokens.size(), 20u);
    tokens.push_back(stream->tokens);
  }
  EXPECT_EQ(cluster.stop(), 0) << cluster.supervisor().err();
  EXPECT_EQ(cluster.leftovers(), "");
  return tokens;
}

TEST(Modelled, ClustersServeTheSameTokensAndEnd) {
  const auto expected = serve({.fabric = "local"});
  ASSERT_EQ(expected.size(), 8u);
  EXPECT_EQ(serve({.fabric = "tcp", .attention = 2, .expert = 3, .micro_batches = 3}), expected);
  EXPECT_EQ(serve({.attention = 2, .expert = 2, .replicated_experts = true}), expected);
}

TEST(Modelled, ARealNodeDoesNotJoin) {
  Cluster cluster({.more = kModelled});
  cluster.start_node("frontend");
  cluster.start_node("attention-0");
  ASSERT_TRUE(eventually(
      [&] {
        const auto status = cluster.status();
        return status.has_value() && status->view().members_size() == 2;
      },
      seconds(20)));
  std::string text = read_file(cluster.file());
  text.erase(text.find(kModelled));
  const std::string path = "path: model";
  text.replace(text.find(path), path.size(), "path: " + (cluster.folder() / "model").string());
  // Weights from the seed that modelled nodes have: only what they compute with differs.
  const TempDir dir;
  const std::filesystem::path real = dir.path() / "real.yaml";
  write_file(real, text);
  const CommandResult result =
      run_volley({"expert", "--config", real.string(), "--node", "expert-0"}, seconds(20));
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("numerics fingerprint"));
  EXPECT_THAT(result.err, HasSubstr("modelled"));
}

}  // namespace
}  // namespace volley::e2e
