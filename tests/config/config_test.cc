// Goal: the cluster file is read strictly, and every mistake is named with file, line, key and what
// is allowed. Method: one good file, then a table of edits of it with the message each must give.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "volley/config/cluster_config.h"

namespace volley::config {
namespace {

const char* const kGood = R"(cluster: demo
model:
  path: models/tiny
transport:
  fabric: tcp
  micro_batches: 3
attention:
  tokens_per_step: 64
  nodes:
    - name: attention-0
    - name: attention-1
      threads: 2
expert:
  nodes:
    - name: expert-0
      experts: [0, 2]
    - name: expert-1
)";

TEST(ClusterConfig, ReadsAGoodFile) {
  const auto config = parse_cluster_config(kGood, "/etc/volley/cluster.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->cluster, "demo");
  EXPECT_EQ(config->model.path, "/etc/volley/models/tiny");
  EXPECT_FALSE(config->model.dummy_weights);
  EXPECT_EQ(config->transport.fabric, "tcp");
  EXPECT_EQ(config->transport.micro_batches, 3u);
  EXPECT_FALSE(config->transport.adaptive_micro_batches);
  EXPECT_EQ(config->transport.slot_rows, 64u);
  ASSERT_EQ(config->attention.nodes.size(), 2u);
  EXPECT_EQ(config->attention.nodes[1].threads, 2u);
  ASSERT_EQ(config->expert.nodes.size(), 2u);
  EXPECT_EQ(config->expert.nodes[0].experts, (std::vector<uint32_t>{0, 2}));
  EXPECT_TRUE(config->expert.nodes[1].experts.empty());
}

TEST(ClusterConfig, MicroBatchesMayBeAuto) {
  std::string text = kGood;
  text.replace(text.find("micro_batches: 3"), 16, "micro_batches: auto");
  const auto config = parse_cluster_config(text, "c.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->transport.adaptive_micro_batches);
  EXPECT_EQ(config->transport.micro_batches, 4u);
}

TEST(ClusterConfig, DispatchesMayBeFp8) {
  EXPECT_FALSE(parse_cluster_config(kGood, "c.yaml")->transport.fp8_dispatch);
  for (const bool fp8 : {false, true}) {
    std::string text = kGood;
    text.replace(text.find("micro_batches: 3"), 16,
                 fp8 ? "dispatch_dtype: fp8_e4m3" : "dispatch_dtype: model");
    const auto config = parse_cluster_config(text, "c.yaml");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->transport.fp8_dispatch, fp8);
  }
}

TEST(ClusterConfig, ExpertNodesMaySum) {
  EXPECT_FALSE(parse_cluster_config(kGood, "c.yaml")->transport.pre_reduce);
  for (const bool sums : {false, true}) {
    std::string text = kGood;
    text.replace(text.find("micro_batches: 3"), 16,
                 sums ? "combine: pre_reduce" : "combine: exact");
    const auto config = parse_cluster_config(text, "c.yaml");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->transport.pre_reduce, sums);
  }
  std::string text = kGood;
  text.replace(text.find("micro_batches: 3"), 16, "combine: fast");
  EXPECT_NE(message_of(parse_cluster_config(text, "c.yaml").status()).find("pre_reduce"),
            std::string::npos);
}

TEST(ClusterConfig, CoresAreAListOrText) {
  struct Case {
    const char* text;
    uint32_t threads;
    std::vector<uint32_t> cores;
  };
  for (const Case& c : {Case{"      cores: [2, 0]", 2, {2, 0}},
                        Case{"      cores: 0-2,8", 4, {0, 1, 2, 8}}, Case{"      cores: 3", 1, {3}},
                        Case{"      cores: \"0-3\"\n      threads: 2", 2, {0, 1, 2, 3}}}) {
    std::string text = kGood;
    text.replace(text.find("      threads: 2"), 16, c.text);
    const auto config = parse_cluster_config(text, "c.yaml");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->attention.nodes[1].threads, c.threads) << c.text;
    EXPECT_EQ(config->attention.nodes[1].cores, c.cores) << c.text;
    EXPECT_TRUE(config->attention.nodes[0].cores.empty());
  }
}

const char* const kTimes =
    "{layer_us: 12.5, layer_row_us: 0.25, layer_context_us: 1e-3, step_us: 4, step_row_us: 5, "
    "step_emit_us: 6, expert_layer_us: 7, expert_us: 8, expert_row_us: 9}";
const StageTimesConfig kReadTimes{.layer_us = 12.5,
                                  .layer_row_us = 0.25,
                                  .layer_context_us = 1e-3,
                                  .step_us = 4,
                                  .step_row_us = 5,
                                  .step_emit_us = 6,
                                  .expert_layer_us = 7,
                                  .expert_us = 8,
                                  .expert_row_us = 9};

TEST(ClusterConfig, ComputeMayBeModelled) {
  EXPECT_FALSE(parse_cluster_config(kGood, "c.yaml")->modelled_compute);
  const auto config = parse_cluster_config(std::string(kGood) +
                                               "compute: modelled\nmodelled:\n  seed: 3\n"
                                               "  expert_skew: 1.25\n  times: " +
                                               kTimes + "\n",
                                           "c.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->modelled_compute);
  EXPECT_EQ(config->modelled.times, kReadTimes);
  EXPECT_EQ(config->modelled.seed, 3u);
  EXPECT_EQ(config->modelled.expert_skew, 1.25);
}

TEST(ClusterConfig, ModelledTimesMayBeAFileBesideIt) {
  const std::filesystem::path folder = testing::TempDir();
  std::ofstream(folder / "times.yaml") << format_stage_times(kReadTimes, "a test: \"quoted\"");
  std::string text = kGood;
  text += "compute: modelled\nmodelled: {times: times.yaml}\n";
  const auto config = parse_cluster_config(text, (folder / "c.yaml").string());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->modelled.times, kReadTimes);

  EXPECT_EQ(message_of(parse_cluster_config(text, "/nowhere/c.yaml").status()),
            "/nowhere/c.yaml:19: modelled.times: /nowhere/times.yaml: cannot be opened");
}

TEST(StageTimes, MistakesAreNamed) {
  const std::string good = format_stage_times(kReadTimes, "here");
  ASSERT_EQ(*parse_stage_times(good, "t.yaml"), kReadTimes);
  const auto message = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return message_of(parse_stage_times(text, "t.yaml").status());
  };
  EXPECT_EQ(message("step_us: 4\n", ""), "t.yaml:1: step_us: the key is missing");
  EXPECT_EQ(message("expert_us: 8", "expert_us: -8"),
            "t.yaml:9: expert_us: '-8' is not a number in [0, 1000000000]");
  EXPECT_EQ(message("expert_us: 8", "expert_us: nan"),
            "t.yaml:9: expert_us: 'nan' is not a number in [0, 1000000000]");
  EXPECT_THAT(message("expert_us: 8", "expert_us: 8\nexpert_ms: 1"),
              testing::StartsWith("t.yaml:10: expert_ms: unknown key; known here: about, "));
}

struct Mistake {
  const char* from;
  const char* to;
  const char* message;
};

class ClusterConfigMistake : public testing::TestWithParam<Mistake> {};

TEST_P(ClusterConfigMistake, IsNamed) {
  std::string text = kGood;
  const size_t at = text.find(GetParam().from);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, std::string(GetParam().from).size(), GetParam().to);
  const auto config = parse_cluster_config(text, "c.yaml");
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(message_of(config.status()), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Table, ClusterConfigMistake,
    testing::Values(
        Mistake{
            "  fabric: tcp", "  fabirc: tcp",
            "c.yaml:5: transport.fabirc: unknown key; known here: combine, dispatch_dtype, fabric, "
            "gather_window_us, link_timeout_ms, links_max, micro_batches, rdma, slot_rows"},
        Mistake{"  fabric: tcp", "  fabric: tcp\n  fabric: shm",
                "c.yaml:6: transport.fabric: the key appears twice"},
        Mistake{"fabric: tcp", "fabric: udp",
                "c.yaml:5: transport.fabric: 'udp' is not one of local, shm, tcp, rdma"},
        Mistake{"  fabric: tcp", "  fabric: tcp\n  rdma: {queue_pairs: 2}",
                "c.yaml:6: transport.rdma: has no meaning with fabric 'tcp'"},
        Mistake{"  fabric: tcp", "  fabric: rdma\n  rdma: {ports: []}",
                "c.yaml:6: transport.rdma.ports: lists 0 ports, allowed: 1 to 8"},
        Mistake{"  fabric: tcp", "  fabric: rdma\n  rdma: {retries: 7}",
                "c.yaml:6: transport.rdma.retries: '7' is not an integer in [0, 6]"},
        Mistake{"micro_batches: 3", "micro_batches: 0",
                "c.yaml:6: transport.micro_batches: '0' is not an integer in [1, 16]"},
        Mistake{"micro_batches: 3", "micro_batches: 010",
                "c.yaml:6: transport.micro_batches: '010' is not an integer in [1, 16]"},
        Mistake{"micro_batches: 3", "micro_batches: -1",
                "c.yaml:6: transport.micro_batches: '-1' is not an integer in [1, 16]"},
        Mistake{"micro_batches: 3", "micro_batches: 99999999999999999999",
                "c.yaml:6: transport.micro_batches: '99999999999999999999' is not an integer in "
                "[1, 16]"},
        Mistake{"micro_batches: 3", "micro_batches: [3]",
                "c.yaml:6: transport.micro_batches: must be a single value"},
        Mistake{"name: attention-1", "name: attention-0",
                "c.yaml:11: attention.nodes[1].name: 'attention-0' is the name of another node"},
        Mistake{"name: attention-1", "name: 'a b'",
                "c.yaml:11: attention.nodes[1].name: 'a b' is not a name: 1 to 63 letters, digits, "
                "'-', "
                "'_' or '.'"},
        Mistake{"experts: [0, 2]", "experts: [0, x]",
                "c.yaml:16: expert.nodes[0].experts: 'x' is not an integer in [0, 1023]"},
        Mistake{"experts: [0, 2]", "experts: []",
                "c.yaml:16: expert.nodes[0].experts: needs at least one expert"},
        Mistake{
            "      threads: 2", "      threads: 3\n      cores: [0, 1]",
            "c.yaml:12: attention.nodes[1].threads: 3 threads are more than the 2 cores listed"},
        Mistake{"      threads: 2", "      cores: [0, 1, 0]",
                "c.yaml:12: attention.nodes[1].cores: core 0 is listed twice"},
        Mistake{"      threads: 2", "      cores: []",
                "c.yaml:12: attention.nodes[1].cores: needs at least one core"},
        Mistake{"      threads: 2", "      cores: [8192]",
                "c.yaml:12: attention.nodes[1].cores: '8192' is not an integer in [0, 8191]"},
        Mistake{"      threads: 2", "      cores: 3-1",
                "c.yaml:12: attention.nodes[1].cores: '3-1' is not a list of cores below 8192, "
                "like 0-3,8"},
        Mistake{"      threads: 2", "      cores: 0-1999",
                "c.yaml:12: attention.nodes[1].cores: lists 2000 cores; a node has 1024 threads at "
                "most"},
        Mistake{"      threads: 2", "      listen: nowhere",
                "c.yaml:12: attention.nodes[1].listen: 'nowhere' is not HOST:PORT with a port in "
                "[0, 65535]"},
        Mistake{
            "      experts: [0, 2]", "      data_listen: 0.0.0.0:7100",
            "c.yaml:16: expert.nodes[0].data_listen: '0.0.0.0:7100' names no host that peers could "
            "connect to"},
        Mistake{"attention:\n", "controller:\n  listen: 127.0.0.1:0\nattention:\n",
                "c.yaml:8: controller.listen: '127.0.0.1:0' is not HOST:PORT with a port in [1, "
                "65535]"},
        Mistake{"micro_batches: 3", "links_max: 1",
                "c.yaml: transport.links_max: 1 links are too few for 2 attention nodes"},
        Mistake{"tokens_per_step: 64", "waiting_max: 0",
                "c.yaml:8: attention.waiting_max: '0' is not an integer in [1, 1000000]"},
        Mistake{
            "      threads: 2", "      listen: 'local host:70'",
            "c.yaml:12: attention.nodes[1].listen: 'local host:70' is not HOST:PORT with a port in "
            "[0, 65535]"},
        Mistake{"  path: models/tiny", "  weights: dummy",
                "c.yaml:3: model.path: the key is missing"},
        Mistake{"cluster: demo\n", "cluster: demo\ncompute: modelled\n",
                "c.yaml:1: modelled: the key is missing"},
        Mistake{"cluster: demo\n", "cluster: demo\nmodelled: {times: {}}\n",
                "c.yaml:2: modelled.times.layer_us: the key is missing"},
        Mistake{"cluster: demo\n",
                "cluster: demo\nmodelled: {times: {layer_us: 1, layer_row_us: 0, "
                "layer_context_us: 0, step_us: 0, step_row_us: 0, step_emit_us: 0, "
                "expert_layer_us: 0, expert_us: 0, expert_row_us: 0}}\n",
                "c.yaml:2: modelled: has no meaning without compute: modelled"},
        Mistake{"cluster: demo\n", "cluster: demo\ncompute: imagined\n",
                "c.yaml:2: compute: 'imagined' is not one of real, modelled"},
        Mistake{"cluster: demo\n", "", "c.yaml:1: cluster: the key is missing"},
        Mistake{"cluster: demo", "cluster: demo\n  : - {", "c.yaml:2: illegal map value"}));

TEST(ClusterConfig, TheDefaultNameOfTheFrontendIsTaken) {
  std::string text = kGood;
  text.replace(text.find("attention-1"), 11, "frontend-0");
  EXPECT_EQ(message_of(parse_cluster_config(text, "c.yaml").status()),
            "c.yaml:11: attention.nodes[1].name: 'frontend-0' is the name of another node");
  EXPECT_TRUE(parse_cluster_config(text + "frontend:\n  name: edge\n", "c.yaml").ok());
}

TEST(ClusterConfig, AnEmptyDocumentHasAFirstLine) {
  EXPECT_EQ(message_of(parse_cluster_config("", "c.yaml").status()),
            "c.yaml:1: the document: must be a mapping of keys to values");
}

TEST(ClusterConfig, ADocumentThatIsNoMappingIsRefused) {
  for (const char* text : {"", "[]", "word", "- a\n- b"}) {
    EXPECT_EQ(parse_cluster_config(text, "c.yaml").status().code(), StatusCode::kInvalidArgument)
        << text;
  }
}

}  // namespace
}  // namespace volley::config
