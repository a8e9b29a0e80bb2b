// Goal: what a search found reaches programs and daemons as it is: the JSON has every plan, and the
// cluster file is one that the daemons accept, with the plan's nodes and experts in it.
// Method: searches over the catalogue's shapes; the JSON is parsed, the file is read by the
// daemons' own strict reader.

#include "volley/planner/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "planner/fakes.h"
#include "volley/config/cluster_config.h"

namespace volley::planner {
namespace {

const std::string kCatalogue = std::string(VOLLEY_SOURCE_DIR) + "/configs";

PlanReport report_of(const std::string& model, const std::vector<std::string>& devices,
                     bool spare = false) {
  PlanReport report;
  report.model = perf::find_model_shape(kCatalogue + "/models", model).value();
  for (const std::string& name : devices) {
    report.planning.devices.push_back(perf::find_device(kCatalogue + "/hardware", name).value());
  }
  report.planning.spare_expert_node = spare;
  report.space.gpus_max = 128;
  const RooflineNodes nodes(report.model);
  auto found = search(report.model, nodes, report.planning, report.space);
  EXPECT_TRUE(found.ok()) << found.status();
  report.result = std::move(found).value();
  report.sensitivity =
      sensitivity(report.model, nodes, report.planning, report.space, report.result.best[0].plan);
  return report;
}

TEST(ClusterFile, TheDaemonsAcceptEveryPlan) {
  for (const char* model :
       {"mixtral-8x7b", "dbrx", "qwen3-235b-a22b", "deepseek-v3", "llama-3-70b"}) {
    const PlanReport report = report_of(model, {"h200", "l40s"});
    for (const Candidate& candidate : report.result.best) {
      const std::string text = cluster_file(
          report, candidate.plan, {.checkpoint = "/models/\"odd\" name\n", .fabric = "tcp"});
      const auto config = config::parse_cluster_config(text, "planned.yaml");
      ASSERT_TRUE(config.ok()) << config.status() << "\n" << text;
      EXPECT_EQ(config->model.path, "/models/\"odd\" name\n");
      const Plan& plan = candidate.plan;
      EXPECT_EQ(config->attention.nodes.size(), plan.attention.nodes);
      EXPECT_EQ(config->transport.micro_batches, plan.micro_batches);
      const bool spread = plan.layout == Layout::kDisaggregated || plan.layout == Layout::kDpEp;
      EXPECT_EQ(config->expert.nodes.size(), spread ? plan.expert.nodes : 1);
      EXPECT_EQ(config->transport.fabric, spread ? "tcp" : "local");
    }
  }
}

TEST(ClusterFile, EveryExpertHasAHolder) {
  const PlanReport report = report_of("qwen3-235b-a22b", {"h200"}, true);
  for (const Candidate& candidate : report.result.best) {
    if (candidate.plan.layout != Layout::kDisaggregated) continue;
    const auto config = config::parse_cluster_config(
        cluster_file(report, candidate.plan, {.checkpoint = "/m"}), "planned.yaml");
    ASSERT_TRUE(config.ok()) << config.status();
    std::set<uint32_t> held;
    size_t copies = 0;
    for (const auto& node : config->expert.nodes) {
      held.insert(node.experts.begin(), node.experts.end());
      copies += node.experts.size();
    }
    EXPECT_EQ(held.size(), 128u);
    EXPECT_EQ(copies, size_t{128} * candidate.plan.replicas);
  }
}

TEST(ReportJson, HasEveryPlanAndChange) {
  const PlanReport report = report_of("dbrx", {"h20", "l40s"});
  const auto json = nlohmann::json::parse(report_json(report));
  EXPECT_EQ(json.at("model"), "dbrx");
  ASSERT_EQ(json.at("plans").size(), report.result.best.size());
  double last = 1e300;
  for (const auto& plan : json.at("plans")) {
    EXPECT_LE(plan.at("value").get<double>(), last);  // Best first.
    last = plan.at("value").get<double>();
    EXPECT_GT(plan.at("layer").at("attention_s").get<double>(), 0);
    EXPECT_GT(plan.at("memory").at("kv").get<double>(), 0);
  }
  ASSERT_EQ(json.at("sensitivity").size(), report.sensitivity.size());
  EXPECT_GE(json.at("sensitivity").size(), 3u);
  EXPECT_GT(json.at("search").at("plans").get<uint64_t>(), 100u);
}

TEST(ParseSlo, UnitsAndMistakes) {
  const auto both = parse_slo("tpot=150ms,p99=0.2s");
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_DOUBLE_EQ(both->tpot_s, 0.150);
  EXPECT_DOUBLE_EQ(both->tpot_p99_s, 0.2);
  EXPECT_DOUBLE_EQ(parse_slo("p99=500us")->tpot_p99_s, 500e-6);
  EXPECT_DOUBLE_EQ(parse_slo("p99=500us")->tpot_s, 0);
  for (const char* text :
       {"", "tpot", "tpot=", "tpot=150", "tpot=150min", "tpot=-1ms", "tpot=0ms", "tpot=nanms",
        "tpot=1e999s", "ttft=1s", "tpot=1ms,", ",tpot=1ms", "tpot=1ms,tpot=2ms", "tpot = 1ms"}) {
    const auto slo = parse_slo(text);
    EXPECT_EQ(slo.status().code(), StatusCode::kInvalidArgument) << text;
  }
  EXPECT_NE(message_of(parse_slo("tpot=1ms,ttft=3s").status()).find("'ttft=3s'"),
            std::string::npos);
}

}  // namespace
}  // namespace volley::planner
