// A report as text for people and as JSON for programs.

#include "volley/simulation/report.h"

#include <fmt/format.h>

#include <array>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

namespace volley::simulation {
namespace {

using Json = nlohmann::ordered_json;

Json histogram_json(const Histogram& times) {
  return {{"count", times.count()},        {"mean_s", times.mean()},
          {"p50_s", times.quantile(0.50)}, {"p90_s", times.quantile(0.90)},
          {"p99_s", times.quantile(0.99)}, {"max_s", times.max()}};
}

Json cost_json(const CallCost& cost, bool measured) {
  Json json = {{"calls", cost.calls}};
  if (measured) {
    json["seconds"] = cost.seconds;
    json["us_per_call"] = cost.calls > 0 ? cost.seconds / cost.calls * 1e6 : 0;
  }
  return json;
}

double share(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

struct NamedCost {
  const char* name;
  const char* text;
  const CallCost& cost;
};

std::array<NamedCost, 8> named_costs(const ProductionCosts& costs) {
  return {{{"core_next_work", "next work, batching", costs.core_next_work},
           {"core_route", "route and dispatch", costs.core_route},
           {"core_message", "answers", costs.core_message},
           {"core_finish", "ends of steps, outputs", costs.core_finish},
           {"gather_dispatch", "gather: dispatches", costs.gather_dispatch},
           {"gather_decide", "gather: decisions", costs.gather_decide},
           {"gather_answered", "gather: answered", costs.gather_answered},
           {"control", "maps and links", costs.control}}};
}

class Text {
 public:
  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
    out_ += '\n';
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

void times_line(Text& text, const char* name, const Histogram& times) {
  text.line("  {:<24}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}", name, times.mean() * 1e3,
            times.quantile(0.5) * 1e3, times.quantile(0.9) * 1e3, times.quantile(0.99) * 1e3);
}

void share_line(Text& text, const char* name, double part, double whole) {
  text.line("  {:<36}{:>6.1f} %", name, 100 * share(part, whole));
}

}  // namespace

std::string format_report(const Report& report, bool wall) {
  Text text;
  text.line(
      "{:.6g} s counted, {:g} replicas ({} simulated), {:.6g} attention and {:.6g} expert "
      "nodes, {:.6g} GPUs",
      report.counted_s, report.replicas, report.simulated_replicas, report.attention_nodes,
      report.expert_nodes, report.gpus);
  text.line("throughput               {:.1f} tokens/s, {:.1f} per GPU", report.tokens_per_s,
            report.tokens_per_s_per_gpu);
  text.line(
      "requests                 {:g} accepted, {:g} finished, {:g} failed, {:g} rejected, {:g} "
      "in flight at the end",
      report.accepted, report.finished, report.failed, report.rejected, report.in_flight_at_end);
  if (report.failed > 0) {
    text.line("  failed: {:g} as their attention node died, {:g} as an expert had no holder",
              report.failed_attention_died, report.failed_unavailable);
  }
  text.line("steps                    {:.1f} rows, {:.2f} micro-batches, {:g} preemptions",
            report.batch_rows, report.micro_batches, report.preemptions);
  text.line("times, ms                      mean       p50       p90       p99");
  times_line(text, "first token (TTFT)", report.ttft);
  times_line(text, "per token (TPOT)", report.tpot);
  times_line(text, "between two tokens", report.inter_token);
  const double attention = report.attention.total(), expert = report.expert.total();
  text.line("attention nodes");
  share_line(text, "computing", report.attention.computing, attention);
  share_line(text, "waiting: expert node computed it", report.attention.expert_compute, attention);
  share_line(text, "waiting: lay at the expert node", report.attention.expert_queue, attention);
  share_line(text, "waiting: on the network", report.attention.network, attention);
  share_line(text, "nothing to do", report.attention.no_work, attention);
  text.line("expert nodes");
  share_line(text, "computing", report.expert.computing, expert);
  share_line(text, "waiting to merge (gather window)", report.expert.gather_window, expert);
  share_line(text, "waiting: attention node was busy", report.expert.attention, expert);
  share_line(text, "waiting: on the network", report.expert.network, expert);
  share_line(text, "nothing to do", report.expert.no_work, expert);
  text.line("gather                   {:.2f} dispatches per run, {:.1f} % of mergeable runs merged",
            share(report.gather_dispatches, report.gather_runs), 100 * report.merged_share());
  text.line("network                  {:g} messages, {:.4g} GB of dispatches, {:.4g} GB of answers",
            report.messages, report.dispatch_bytes / 1e9, report.answer_bytes / 1e9);
  if (!wall) return text.take();
  text.line(
      "simulation               {:g} events in {:.2f} s of a core ({:.2f} s passed): {:.2f} M/s",
      report.events, report.cpu_s, report.wall_s, share(report.events, report.cpu_s) / 1e6);
  if (report.costs.measured) {
    text.line("production code              calls   seconds   us/call  share");
    for (const NamedCost& each : named_costs(report.costs)) {
      text.line("  {:<22}{:>10.4g}{:>10.3f}{:>10.3f}{:>5.1f} %", each.text, each.cost.calls,
                each.cost.seconds, share(each.cost.seconds, each.cost.calls) * 1e6,
                100 * share(each.cost.seconds, report.cpu_s));
    }
  }
  return text.take();
}

std::string report_json(const Report& report, bool wall) {
  const AttentionTime& attention = report.attention;
  const ExpertTime& expert = report.expert;
  Json json = {
      {"counted_s", report.counted_s},
      {"replicas", report.replicas},
      {"simulated_replicas", report.simulated_replicas},
      {"attention_nodes", report.attention_nodes},
      {"expert_nodes", report.expert_nodes},
      {"gpus", report.gpus},
      {"tokens", report.tokens},
      {"tokens_per_s", report.tokens_per_s},
      {"tokens_per_s_per_gpu", report.tokens_per_s_per_gpu},
      {"prefill_tokens", report.prefill_tokens},
      {"ttft", histogram_json(report.ttft)},
      {"tpot", histogram_json(report.tpot)},
      {"inter_token", histogram_json(report.inter_token)},
      {"requests",
       {{"accepted", report.accepted},
        {"finished", report.finished},
        {"failed", report.failed},
        {"failed_attention_died", report.failed_attention_died},
        {"failed_unavailable", report.failed_unavailable},
        {"rejected", report.rejected},
        {"in_flight_at_end", report.in_flight_at_end},
        {"preemptions", report.preemptions}}},
      {"map_versions", report.map_versions},
      {"batch_rows", report.batch_rows},
      {"micro_batches", report.micro_batches},
      {"attention",
       {{"utilisation", report.attention_utilisation()},
        {"computing_s", attention.computing},
        {"expert_compute_s", attention.expert_compute},
        {"expert_queue_s", attention.expert_queue},
        {"network_s", attention.network},
        {"no_work_s", attention.no_work}}},
      {"expert",
       {{"utilisation", report.expert_utilisation()},
        {"computing_s", expert.computing},
        {"gather_window_s", expert.gather_window},
        {"attention_s", expert.attention},
        {"network_s", expert.network},
        {"no_work_s", expert.no_work}}},
      {"gather",
       {{"runs", report.gather_runs},
        {"dispatches", report.gather_dispatches},
        {"mergeable_runs", report.mergeable_runs},
        {"merged_runs", report.merged_runs},
        {"merged_share", report.merged_share()}}},
      {"network",
       {{"messages", report.messages},
        {"dispatch_bytes", report.dispatch_bytes},
        {"answer_bytes", report.answer_bytes}}},
      {"expert_load", report.expert_load},
      {"events", report.events},
  };
  Json calls = Json::object();
  for (const NamedCost& each : named_costs(report.costs)) {
    calls[each.name] = cost_json(each.cost, wall && report.costs.measured);
  }
  json["production_calls"] = std::move(calls);
  if (wall) {
    json["cpu_s"] = report.cpu_s;
    json["wall_s"] = report.wall_s;
    json["events_per_cpu_s"] = share(report.events, report.cpu_s);
  }
  return json.dump(1) + "\n";
}

}  // namespace volley::simulation
