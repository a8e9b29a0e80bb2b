// Goal: simulation files are read strictly, and every mistake is named with file, line and key.
// Method: the examples in configs/simulations, one good text, and a table of edits of it with the
// message each must give.

#include "volley/simulation/simulation_file.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace volley::simulation {
namespace {

const std::string kCatalogue = VOLLEY_SOURCE_DIR "/configs";

const char* const kGood = R"(cluster:
  attention_nodes: 2
  expert_nodes: 2
  micro_batches: auto
  held:
    - experts: [0, 1]
    - experts: [2, 3]
model: {layers: 4, experts: 4, top_k: 2, row_bytes: 4096, answer_row_bytes: 8192}
times:
  linear: {layer_us: 100, expert_layer_us: 50, expert_row_us: 0.5}
network: {latency_us: 28, attention_bytes_per_s: 25e9, expert_bytes_per_s: 12.5e9}
overheads: {attention_turn_us: 2}
workload:
  arrivals: poisson
  requests_per_s: 5.5
  input: {from: 10, to: 20}
  output: {median: 30, sigma: 0.5, max: 90}
router: {zipf: 1.1, drift_s: 2}
changes:
  - {at_s: 1, kill: expert-1}
  - {at_s: 2.5, add: attention-2, replica: 1}
run: {duration_s: 3, replicas: 4, simulated: 2, seed: 7}
trace: {from_s: 1, length_s: 0.01}
)";

TEST(SimulationFile, ReadsAGoodOne) {
  const auto read = parse_simulation(kGood, "s.yaml", kCatalogue);
  ASSERT_TRUE(read.ok()) << read.status();
  const SimulationOptions& options = read->options;
  EXPECT_EQ(options.cluster.attention_nodes, 2u);
  EXPECT_TRUE(options.cluster.adaptive_micro_batches);
  EXPECT_EQ(options.cluster.micro_batches, 4u);
  EXPECT_EQ(options.cluster.held[1], (std::vector<uint32_t>{2, 3}));
  EXPECT_EQ(options.cluster.answer_row_bytes, 8192u);
  EXPECT_DOUBLE_EQ(options.network.latency_s, 28e-6);
  EXPECT_DOUBLE_EQ(options.expert_bytes_per_s, 12.5e9);
  EXPECT_DOUBLE_EQ(options.overheads.attention_turn, 2e-6);
  EXPECT_EQ(options.workload.arrivals, WorkloadOptions::Arrivals::kPoisson);
  EXPECT_EQ(options.workload.input.longest(), 20u);
  EXPECT_EQ(options.workload.output.longest(), 90u);
  ASSERT_EQ(options.changes.size(), 2u);
  EXPECT_EQ(options.changes[0].kind, ChangeOptions::Kind::kKill);
  EXPECT_TRUE(options.changes[0].expert);
  EXPECT_EQ(options.changes[1].replica, 1u);
  EXPECT_FALSE(options.changes[1].expert);
  EXPECT_EQ(options.seed, 7u);
  EXPECT_NEAR(read->times->attention_layer({}), 100e-6, 1e-12);
  const double rows[] = {4};
  EXPECT_NEAR(read->times->expert_layer(rows), 52e-6, 1e-12);
}

TEST(SimulationFile, NamesEveryMistake) {
  struct Case {
    const char* from;
    const char* to;
    const char* message;
  };
  const Case cases[] = {
      {"attention_nodes: 2", "attention_nodes: 0",
       "s.yaml:2: cluster.attention_nodes: '0' is not an integer in [1, 100000]"},
      {"  attention_nodes: 2\n", "", "cluster.attention_nodes: the key is missing"},
      {"micro_batches: auto", "micro_batches: many", "s.yaml:4: cluster.micro_batches: 'many'"},
      {"layers: 4, ", "", "model.layers: the key is missing"},
      {"top_k: 2", "top_k: 5", "s.yaml: top_k is 5; it must be in [1, 4]"},
      {"[2, 3]", "[2, 4]", "s.yaml: expert-1 holds expert 4; the model has 4"},
      {"layer_us: 100,", "layer_us: fast,", "s.yaml:10: times.linear.layer_us: 'fast'"},
      {"layer_us: 100,", "layer_us: -1,", "s.yaml:10: times.linear.layer_us: '-1'"},
      {"  linear: {layer_us: 100, expert_layer_us: 50, expert_row_us: 0.5}", "  {}",
       "one of file, linear and roofline must be given"},
      {"arrivals: poisson", "arrivals: sometimes",
       "s.yaml:14: workload.arrivals: 'sometimes' is not one of closed, poisson, constant, file"},
      {"requests_per_s: 5.5", "streams: 5", "workload.requests_per_s: the key is missing"},
      {"{from: 10, to: 20}", "{from: 20, to: 10}", "s.yaml: input: 20 to 10 tokens"},
      {"{from: 10, to: 20}", "{to: 20}", "must have fixed, from and to, or median"},
      {"kill: expert-1", "kill: frontend-1", "'frontend-1' is no node"},
      {"kill: expert-1", "", "must have one of kill, add and remove"},
      {"replica: 1", "replica: 4", "a change names replica 4; there are 4"},
      {"simulated: 2", "simulated: 5", "s.yaml: simulated is 5; it must be in [0, 4]"},
      {"zipf: 1.1", "zipf: 1.1, hot: 2", "router.hot: unknown key"},
      {"duration_s: 3", "duration_s: .nan", "run.duration_s: '.nan'"},
      {"times:\n", "times: [\n", "s.yaml:"},
  };
  for (const Case& each : cases) {
    std::string text = kGood;
    const size_t at = text.find(each.from);
    ASSERT_NE(at, std::string::npos) << each.from;
    text.replace(at, std::string(each.from).size(), each.to);
    const auto read = parse_simulation(text, "s.yaml", kCatalogue);
    ASSERT_FALSE(read.ok()) << each.to;
    EXPECT_EQ(read.status().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(message_of(read.status()).find(each.message), std::string::npos)
        << message_of(read.status()) << "\nshould have: " << each.message;
  }
}

TEST(SimulationFile, RefusesGarbage) {
  for (const char* text : {"", "- a", "a", "{", "cluster: 3", "\t", "cluster: {}\ncluster: {}"}) {
    const auto read = parse_simulation(text, "s.yaml", kCatalogue);
    EXPECT_FALSE(read.ok()) << text;
  }
}

TEST(SimulationFile, TheExamplesAreGood) {
  uint32_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kCatalogue + "/simulations")) {
    if (entry.path().extension() != ".yaml") continue;
    const auto read = load_simulation(entry.path().string(), kCatalogue);
    EXPECT_TRUE(read.ok()) << read.status();
    ++count;
  }
  EXPECT_GE(count, 3u);
}

TEST(SimulationFile, LooksUpModelsAndDevices) {
  const auto read = load_simulation(kCatalogue + "/simulations/dbrx-a800.yaml", kCatalogue);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->options.cluster.layers, 40u);
  EXPECT_EQ(read->options.cluster.experts, 16u);
  EXPECT_EQ(read->options.cluster.row_bytes, 12'288u);
  EXPECT_EQ(read->options.cluster.attention_gpus, 2u);
  EXPECT_GT(read->times->attention_layer({.rows = 128, .context_tokens = 128 * 650.0}), 50e-6);
  EXPECT_EQ(load_simulation(kCatalogue + "/simulations/none.yaml", kCatalogue).status().code(),
            StatusCode::kNotFound);
}

TEST(SimulationFile, ReadsRequests) {
  const auto read = parse_requests(
      "{\"arrival_s\": 0, \"input\": 5, \"output\": 6}\n\n{\"arrival_s\": 1.5, \"input\": 7, "
      "\"output\": 8}",
      "r.jsonl");
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), 2u);
  EXPECT_DOUBLE_EQ((*read)[1].arrival_s, 1.5);
  EXPECT_EQ((*read)[1].output, 8u);
  const auto message = [](const std::string& text) {
    return message_of(parse_requests(text, "r.jsonl").status());
  };
  EXPECT_NE(message("").find("r.jsonl: no request"), std::string::npos);
  EXPECT_NE(message("{\"arrival_s\": 0, \"input\": 0, \"output\": 6}").find("r.jsonl:1"),
            std::string::npos);
  EXPECT_NE(
      message("{\"arrival_s\": 1, \"input\": 1, \"output\": 6}\n{\"arrival_s\": 0, \"input\": "
              "1, \"output\": 6}")
          .find("r.jsonl:2: arrival_s: 0 is before the line above, 1"),
      std::string::npos);
  EXPECT_NE(
      message("{\"arrival_s\": 1, \"input\": 1, \"output\": 6, \"x\": 1}").find("unknown field"),
      std::string::npos);
  EXPECT_NE(message("nonsense").find("r.jsonl:1"), std::string::npos);
}

TEST(SimulationFile, ReadsChangesOfTheCommandLine) {
  const auto change = parse_change("10.5 remove attention-3");
  ASSERT_TRUE(change.ok()) << change.status();
  EXPECT_DOUBLE_EQ(change->at_s, 10.5);
  EXPECT_EQ(change->kind, ChangeOptions::Kind::kRemove);
  EXPECT_FALSE(change->expert);
  EXPECT_EQ(change->node, 3u);
  for (const char* text : {"", "10 kill", "x kill expert-1", "-1 kill expert-1", "1 stop expert-1",
                           "1 kill expert-", "1 kill expert-1 now", "1 kill node-1"}) {
    EXPECT_EQ(parse_change(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace volley::simulation
