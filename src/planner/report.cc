#include "volley/planner/report.h"

#include <fmt/ranges.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

namespace volley::planner {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint32_t kKvBlockTokens = 16;
constexpr uint32_t kStepTokensMin = 256;     // Room for chunks of prompts beside small batches.
constexpr uint32_t kStepTokensMax = 65'535;  // As config::parse_cluster_config().
constexpr uint32_t kSequencesMax = 65'536;
constexpr uint32_t kSequenceTokensDefault = 8192;
constexpr double kKvBlocksMax = 1u << 30;
constexpr uint32_t kExpertIdMax = 1023;

Json pool_json(const PlanningCase& planning, const Pool& pool) {
  return {{"device", planning.devices[pool.device].name}, {"tp", pool.tp}, {"nodes", pool.nodes}};
}

Json phase_json(const PhaseTime& phase) {
  return {{"total_s", phase.total}, {"wire_s", phase.wire}};
}

Json candidate_json(const PlanningCase& planning, const Candidate& candidate) {
  const auto& [plan, prediction] = candidate;
  const MemoryUse& memory = prediction.memory;
  return {{"kind", kind_of(planning, plan)},
          {"layout", name_of(plan.layout)},
          {"attention", pool_json(planning, plan.attention)},
          {"expert", pool_json(planning, plan.expert)},
          {"stages", plan.stages},
          {"replicas", plan.replicas},
          {"micro_batches", plan.micro_batches},
          {"rows", plan.rows},
          {"batch", plan.batch()},
          {"gpus", plan.gpus()},
          {"value", prediction.value},
          {"tokens_per_s", prediction.tokens_per_s},
          {"tpot_s", prediction.tpot_s},
          {"tpot_p99_s", prediction.tpot_p99_s},
          {"cost", prediction.cost},
          {"watts", prediction.watts},
          {"bound_by", name_of(prediction.bottleneck)},
          {"rows_limited_by", name_of(prediction.row_limit)},
          {"layer",
           {{"attention_s", prediction.times.attention},
            {"expert_s", prediction.times.expert},
            {"dispatch", phase_json(prediction.times.dispatch)},
            {"combine", phase_json(prediction.times.combine)},
            {"attention_stretch", prediction.attention_stretch},
            {"expert_stretch", prediction.expert_stretch}}},
          {"memory",
           {{"attention_weights", memory.attention_weights},
            {"attention_buffers", memory.attention_buffers},
            {"kv", memory.kv},
            {"attention_usable", memory.attention_usable},
            {"expert_weights", memory.expert_weights},
            {"expert_buffers", memory.expert_buffers},
            {"expert_usable", memory.expert_usable}}}};
}

Json candidate_json(const PlanningCase& planning, const std::optional<Candidate>& candidate) {
  return candidate ? candidate_json(planning, *candidate) : Json(nullptr);
}

/// A YAML scalar in double quotes.
std::string quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', true, Json::error_handler_t::replace);
}

/// Text that cannot end the comment it is in.
std::string comment(const std::string& text) {
  std::string line = text;
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  }
  return "# " + line + "\n";
}

}  // namespace

std::string report_json(const PlanReport& report) {
  const PlanningCase& planning = report.planning;
  Json json = {{"model", report.model.name},
               {"input_tokens", planning.workload.input_tokens},
               {"output_tokens", planning.workload.output_tokens},
               {"context_cv", planning.workload.context_cv},
               {"expert_skew", planning.workload.expert_skew},
               {"slo", {{"tpot_s", planning.slo.tpot_s}, {"tpot_p99_s", planning.slo.tpot_p99_s}}},
               {"objective", fmt::format("tokens/s per {}", name_of(planning.objective))},
               {"gpus_max", report.space.gpus_max},
               {"spare_expert_node", planning.spare_expert_node},
               {"pre_reduce", planning.pre_reduce}};
  json["plans"] = Json::array();
  for (const Candidate& candidate : report.result.best) {
    json["plans"].push_back(candidate_json(planning, candidate));
  }
  json["rejected"] = Json::array();
  for (const Rejection& rejection : report.result.rejected) {
    json["rejected"].push_back({{"kind", rejection.kind}, {"reason", rejection.reason}});
  }
  json["sensitivity"] = Json::array();
  for (const Sensitivity& change : report.sensitivity) {
    json["sensitivity"].push_back({{"change", change.change},
                                   {"same_plan", candidate_json(planning, change.same_plan)},
                                   {"best_plan", candidate_json(planning, change.best_plan)}});
  }
  const SearchCounts& counts = report.result.counts;
  json["search"] = {{"plans", counts.plans},
                    {"priced", counts.priced},
                    {"evaluations", counts.evaluations},
                    {"seconds", counts.seconds}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string cluster_file(const PlanReport& report, const Plan& plan,
                         const ClusterFileOptions& options) {
  const PlanningCase& planning = report.planning;
  const bool group =
      plan.layout == Layout::kTp || plan.layout == Layout::kEp || plan.layout == Layout::kTpEp;
  const auto device = [&](const Pool& pool) {
    return fmt::format("{} x {}", pool.tp, planning.devices[pool.device].name);
  };
  std::string text = comment(fmt::format("Planned for {}: {}, {} GPUs.", report.model.name,
                                         kind_of(planning, plan), plan.gpus()));
  if (group) {
    text += comment(fmt::format(
        "Attention and experts on the same {}{}: one process.", device(plan.attention),
        plan.stages > 1 ? fmt::format(", {} pipeline stages", plan.stages) : std::string()));
  } else {
    text += comment(fmt::format("An attention node is {}, an expert node {}{}.",
                                device(plan.attention), device(plan.expert),
                                plan.layout == Layout::kDpEp ? " of the same devices" : ""));
  }
  text +=
      comment("Set the addresses, cores and threads of your machines before the daemons start.");

  const double sequences = static_cast<double>(plan.micro_batches) * plan.rows;
  const double tokens = planning.workload.input_tokens + planning.workload.output_tokens;
  const double blocks = std::max(sequences * std::ceil((tokens + 1) / kKvBlockTokens),
                                 1.0 * kSequenceTokensDefault / kKvBlockTokens);
  const uint32_t rows = std::min(plan.rows, kStepTokensMax);
  text += fmt::format("cluster: {}\nmodel:\n  path: {}\ntransport:\n", quoted(options.cluster),
                      quoted(options.checkpoint));
  text +=
      fmt::format("  fabric: {}\n  micro_batches: {}\n  slot_rows: {}\n  links_max: {}\n",
                  group ? "local" : options.fabric, plan.micro_batches, rows, plan.attention.nodes);
  text += fmt::format(
      "attention:\n  tokens_per_step: {}\n  sequences_max: {}\n  kv_blocks: {}\n  nodes:\n",
      std::max(rows, kStepTokensMin), std::min<double>(sequences, kSequencesMax),
      std::min(blocks, kKvBlocksMax));
  for (uint32_t i = 0; i < plan.attention.nodes; ++i) {
    text += fmt::format("    - name: attention-{}\n", i);
  }
  text += "expert:\n  nodes:\n";
  const uint32_t experts = std::max(report.model.experts(), 1u);
  const uint32_t nodes = group ? 1 : plan.expert.nodes;
  Placement placement;
  if (!group && experts > 1 && experts <= kExpertIdMax + 1) {
    const auto popularity =
        expert_popularity(experts, report.model.top_k(), planning.workload.expert_skew);
    placement = place_experts(popularity, report.model.top_k(), nodes, plan.replicas);
  }
  for (uint32_t i = 0; i < nodes; ++i) {
    text += fmt::format("    - name: expert-{}\n", i);
    if (i < placement.experts.size()) {
      text += fmt::format("      experts: [{}]\n", fmt::join(placement.experts[i], ", "));
    }
  }
  return text;
}

Result<Slo> parse_slo(const std::string& text) {
  Slo slo{.tpot_s = 0, .tpot_p99_s = 0};
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    begin = end + 1;
    const size_t equals = part.find('=');
    const std::string key = part.substr(0, equals);
    const auto bad = [&] {
      return invalid_argument(
          "SLO '{}': expected tpot=TIME or p99=TIME, with a TIME like 150ms, 0.15s or 150000us",
          part);
    };
    if (equals == std::string::npos || (key != "tpot" && key != "p99")) return bad();
    const char* const last = part.data() + part.size();
    double value = 0;
    const auto [unit, error] = std::from_chars(part.data() + equals + 1, last, value);
    const std::string unit_name(unit, last);
    const double scale = unit_name == "us"   ? 1e-6
                         : unit_name == "ms" ? 1e-3
                         : unit_name == "s"  ? 1
                                             : 0;
    if (error != std::errc() || scale == 0 || !std::isfinite(value) || value <= 0) return bad();
    double& limit = key == "tpot" ? slo.tpot_s : slo.tpot_p99_s;
    if (limit > 0) return invalid_argument("SLO '{}': {} is given twice", text, key);
    limit = value * scale;
  }
  return slo;
}

}  // namespace volley::planner
