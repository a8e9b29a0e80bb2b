// Decode and prefill throughput of the real engines without gRPC: colocated, or one attention and
// one expert process, beside what the machine's limits allow. docs/benchmarks-end-to-end.md says
// what the numbers mean.

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/children.h"
#include "common/nodes.h"
#include "common/report.h"
#include "common/streams.h"
#include "model_cost.h"
#include "volley/base/clock.h"
#include "volley/base/cores.h"
#include "volley/bench/limits.h"
#include "volley/bench/machine.h"
#include "volley/protocol/wire.h"

namespace volley::benchmarks {
namespace {

using nlohmann::json;

struct Options {
  std::string model;
  std::string mode = "colocated";
  std::string fabric = "shm";
  std::string isa = "auto";
  std::vector<uint32_t> attention_cores = {0}, expert_cores = {1};
  std::vector<uint32_t> cores;  // Of both nodes, colocated.
  uint32_t threads = 1;
  uint32_t micro_batches = 0;
  std::vector<uint32_t> streams = {1, 2, 4, 8, 16, 32, 64};
  uint32_t prompt = 128;
  uint32_t new_tokens = 64;
  uint32_t step_tokens = 512;
  uint32_t repeat = 1;
  double limits_seconds = 1;
  Nanos timeout = 600 * kSecond;
  std::string json_path;

  bool colocated() const { return mode == "colocated"; }
  /// Streams that start first decode while the last one still waits for its prefill; how long
  /// depends on the machine too.
  uint32_t slack(uint32_t count) const { return 64 + 2 * count * prompt / step_tokens; }
};

/// Of one number of streams, one value per repetition.
struct Measured {
  std::vector<double> decode_tokens_per_s;
  std::vector<double> prefill_tokens_per_s;
};

NodeOptions node_options(const Options& options, uint32_t threads,
                         const std::vector<uint32_t>& cores) {
  const uint32_t streams = std::ranges::max(options.streams);
  return {.fabric = options.colocated() ? "local" : options.fabric,
          .isa = options.isa,
          .threads = threads,
          .cores = cores,
          .micro_batches = options.micro_batches,
          .step_tokens_max = std::max(options.step_tokens, streams),
          .sequences_max = streams,
          .sequence_tokens_max = options.prompt + 1 + options.new_tokens + options.slack(streams),
          .trace_capacity = 0};
}

/// Seconds that the node's thread spent on each kind of work.
json profile_json(const engine::ProfileSnapshot& profile) {
  json seconds;
  for (size_t kind = 0; kind < engine::kSpanKinds; ++kind) {
    const auto span = static_cast<engine::Span>(kind);
    if (profile[span].count == 0) continue;
    seconds[std::string(engine::span_name(span))] = static_cast<double>(profile[span].time) / 1e9;
  }
  return seconds;
}

double per_second(uint64_t tokens, Nanos time) {
  return static_cast<double>(tokens) * 1e9 / static_cast<double>(time);
}

Status run_once(engine::AttentionEngine& node, uint32_t vocab, const Options& options,
                uint32_t streams, uint64_t seed, json& result, Nanos deadline) {
  {
    Streams prefill(node, vocab,
                    {.streams = streams, .prompt_tokens = options.prompt, .seed = seed});
    VOLLEY_RETURN_IF_ERROR(prefill.wait(deadline));
    result["prefill"].push_back(
        per_second(uint64_t{streams} * options.prompt, prefill.round_over() - prefill.submitted()));
  }
  Streams decode(node, vocab,
                 {.streams = streams,
                  .prompt_tokens = options.prompt,
                  .decode_tokens = options.new_tokens - 1,
                  .slack_tokens = options.slack(streams),
                  .seed = seed});
  VOLLEY_RETURN_IF_ERROR(decode.wait(deadline));
  const Nanos begin = decode.all_started(), end = decode.round_over();
  result["decode"].push_back(per_second(decode.tokens_between(begin, end), end - begin));
  return ok_status();
}

/// All rounds.
Result<json> run_load(engine::AttentionEngine& node, uint32_t vocab, const Options& options,
                      Nanos deadline) {
  json results = json::array();
  for (size_t i = 0; i < options.streams.size(); ++i) {
    results.push_back({{"prefill", json::array()}, {"decode", json::array()}});
  }
  // A round that nobody counts: the first one touches what the later ones find in place.
  json ignored = results.front();
  VOLLEY_RETURN_IF_ERROR(
      run_once(node, vocab, options, options.streams.front(), 1, ignored, deadline));
  for (uint32_t round = 0; round < options.repeat; ++round) {
    for (size_t i = 0; i < options.streams.size(); ++i) {
      VOLLEY_RETURN_IF_ERROR(
          run_once(node, vocab, options, options.streams[i], round + 1, results[i], deadline));
    }
  }
  return results;
}

/// The results and the attention node's profile, which is complete once the node has stopped.
std::string load_message(const json& results, const engine::AttentionEngine& node) {
  return json{{"results", results}, {"profile", profile_json(node.status().profile)}}.dump();
}

Status run_colocated_child(Channel& channel, const model::Checkpoint& checkpoint,
                           const Options& options, Nanos deadline) {
  const NodeOptions nodes = node_options(options, options.threads, options.cores);
  VOLLEY_ASSIGN_OR_RETURN(ColocatedNodes node, ColocatedNodes::start(checkpoint, nodes));
  VOLLEY_RETURN_IF_ERROR(
      link_nodes(node.attention(), node.expert_peer(), checkpoint.spec, deadline));
  VOLLEY_ASSIGN_OR_RETURN(const json results,
                          run_load(node.attention(), checkpoint.spec.vocab, options, deadline));
  node.stop();
  VOLLEY_RETURN_IF_ERROR(channel.send(load_message(results, node.attention()), deadline));
  return channel.send(profile_json(node.expert().status().profile).dump(), deadline);
}

Status run_expert_child(Channel& channel, const model::Checkpoint& checkpoint,
                        const Options& options, Nanos deadline) {
  VOLLEY_ASSIGN_OR_RETURN(
      ExpertNode node,
      start_expert_node(checkpoint,
                        node_options(options, static_cast<uint32_t>(options.expert_cores.size()),
                                     options.expert_cores)));
  VOLLEY_RETURN_IF_ERROR(channel.send(peer_to_message(node.self()), deadline));
  VOLLEY_RETURN_IF_ERROR(channel.receive(deadline).status());  // The attention node is done.
  node.stop();
  return channel.send(profile_json(node->status().profile).dump(), deadline);
}

Status run_attention_child(Channel& channel, const model::Checkpoint& checkpoint,
                           const Options& options, Nanos deadline) {
  VOLLEY_ASSIGN_OR_RETURN(
      AttentionNode node,
      start_attention_node(
          checkpoint, node_options(options, static_cast<uint32_t>(options.attention_cores.size()),
                                   options.attention_cores)));
  VOLLEY_ASSIGN_OR_RETURN(const std::string message, channel.receive(deadline));
  VOLLEY_ASSIGN_OR_RETURN(const engine::ExpertPeer peer, peer_from_message(message));
  VOLLEY_RETURN_IF_ERROR(link_nodes(*node, peer, checkpoint.spec, deadline));
  VOLLEY_ASSIGN_OR_RETURN(const json results,
                          run_load(*node, checkpoint.spec.vocab, options, deadline));
  node.stop();
  return channel.send(load_message(results, *node), deadline);
}

/// The instruction set whose peak is the limit: with "auto" the best that the processor has.
std::string peak_isa(const std::string& isa, const bench::Limits& limits) {
  if (isa != "auto") return isa;
  for (const char* each : {"avx512_bf16", "avx512", "avx2"}) {
    if (bench::peak_gflops(limits, each) > 0) return each;
  }
  return "reference";
}

struct Messages {
  std::string load, expert_profile;
};

Result<Messages> run_processes(const model::Checkpoint& checkpoint, const Options& options) {
  const Nanos deadline = monotonic_now() + options.timeout;
  Children children;
  Messages messages;
  if (options.colocated()) {
    VOLLEY_ASSIGN_OR_RETURN(
        const size_t both,
        children.start({.name = "colocated node", .cores = {}}, [&](Channel& channel) {
          return run_colocated_child(channel, checkpoint, options, deadline);
        }));
    VOLLEY_ASSIGN_OR_RETURN(messages.load, children.receive(both, deadline));
    VOLLEY_ASSIGN_OR_RETURN(messages.expert_profile, children.receive(both, deadline));
  } else {
    VOLLEY_ASSIGN_OR_RETURN(const size_t expert,
                            children.start({.name = "expert node", .cores = options.expert_cores},
                                           [&](Channel& channel) {
                                             return run_expert_child(channel, checkpoint, options,
                                                                     deadline);
                                           }));
    VOLLEY_ASSIGN_OR_RETURN(
        const size_t attention,
        children.start({.name = "attention node", .cores = options.attention_cores},
                       [&](Channel& channel) {
                         return run_attention_child(channel, checkpoint, options, deadline);
                       }));
    VOLLEY_ASSIGN_OR_RETURN(const std::string peer, children.receive(expert, deadline));
    VOLLEY_RETURN_IF_ERROR(children.send(attention, peer, deadline));
    VOLLEY_ASSIGN_OR_RETURN(messages.load, children.receive(attention, deadline));
    VOLLEY_RETURN_IF_ERROR(children.send(expert, "stop", deadline));
    VOLLEY_ASSIGN_OR_RETURN(messages.expert_profile, children.receive(expert, deadline));
  }
  VOLLEY_RETURN_IF_ERROR(children.finish(deadline));
  return messages;
}

/// The line of one number of streams.
json row_of(const model::ModelSpec& spec, const Options& options, uint32_t streams,
            const json& measured, const bench::Limits& limits) {
  const std::vector<double> decode = measured.at("decode"), prefill = measured.at("prefill");
  const double context = options.prompt + options.new_tokens / 2.0;
  const StepCost cost = decode_step_cost(spec, streams, context);
  const double memory_s = cost.bytes / (limits.memory_gbps * 1e9);
  const double peak = bench::peak_gflops(limits, peak_isa(options.isa, limits)) * 1e9;
  const double compute_s = cost.flops / peak;
  const double bound = streams / std::max(memory_s, compute_s);
  const uint64_t prompt_tokens = uint64_t{streams} * options.prompt;
  const double prefill_best = std::ranges::max(prefill);
  const double prefill_flops_per_s = prefill_flops(spec, prompt_tokens, streams) /
                                     static_cast<double>(prompt_tokens) * prefill_best;
  return {{"streams", streams},
          {"decode_tokens_per_s", std::ranges::max(decode)},
          {"bound_tokens_per_s", bound},
          {"bound_by", memory_s > compute_s ? "memory" : "compute"},
          {"decode_share", std::ranges::max(decode) / bound},
          {"step_bytes", cost.bytes},
          {"step_flops", cost.flops},
          {"prefill_tokens_per_s", prefill_best},
          {"prefill_gflops", prefill_flops_per_s / 1e9},
          {"prefill_share", prefill_flops_per_s / peak},
          {"decode_all", decode},
          {"prefill_all", prefill}};
}

std::string table_of(const json& report) {
  const json& limits = report.at("limits");
  std::string out = fmt::format(
      "{}, {}, {} thread{}, {} micro-batch{}, prompt {}, {} new tokens\n"
      "limits in this run: {:.1f} GB/s read, {:.0f} GFLOP/s ({}) with {} thread{}\n\n"
      "| streams | decode tok/s | bound tok/s | bound by | share | prefill tok/s | prefill GFLOP/s "
      "| share of peak |\n|---:|---:|---:|---|---:|---:|---:|---:|\n",
      report.at("model").get<std::string>(), report.at("mode").get<std::string>(),
      report.at("threads").get<uint32_t>(), report.at("threads") == 1 ? "" : "s",
      report.at("micro_batches").get<uint32_t>(), report.at("micro_batches") == 1 ? "" : "es",
      report.at("prompt_tokens").get<uint32_t>(), report.at("new_tokens").get<uint32_t>(),
      limits.at("memory_gbps").get<double>(), limits.at("peak_gflops").get<double>(),
      limits.at("peak_of").get<std::string>(), limits.at("threads").get<uint32_t>(),
      limits.at("threads") == 1 ? "" : "s");
  for (const json& row : report.at("rows")) {
    out += fmt::format(
        "| {} | {:.1f} | {:.1f} | {} | {:.0f} % | {:.0f} | {:.0f} | {:.0f} % |\n",
        row.at("streams").get<uint32_t>(), row.at("decode_tokens_per_s").get<double>(),
        row.at("bound_tokens_per_s").get<double>(), row.at("bound_by").get<std::string>(),
        100 * row.at("decode_share").get<double>(), row.at("prefill_tokens_per_s").get<double>(),
        row.at("prefill_gflops").get<double>(), 100 * row.at("prefill_share").get<double>());
  }
  return out;
}

/// How many threads can compute at the same time: what the run is held against.
uint32_t threads_at_once(const Options& options) {
  if (!options.colocated()) {
    return static_cast<uint32_t>(options.attention_cores.size() + options.expert_cores.size());
  }
  return options.threads;
}

Status run(const Options& options, const json& description) {
  VOLLEY_ASSIGN_OR_RETURN(const model::Checkpoint checkpoint,
                          model::Checkpoint::open_dummy(options.model, 1));
  VOLLEY_RETURN_IF_ERROR(check_writable(options.json_path));
  for (const auto* cores : {&options.cores, &options.attention_cores, &options.expert_cores}) {
    if (options.colocated() == (cores == &options.cores))
      VOLLEY_RETURN_IF_ERROR(check_cores(*cores));
  }
  // No more than there are: hardware threads of one core share its limits.
  VOLLEY_ASSIGN_OR_RETURN(const bench::Machine machine, bench::inspect_machine());
  const uint32_t threads =
      std::min(threads_at_once(options), static_cast<uint32_t>(machine.cores.size()));
  VOLLEY_ASSIGN_OR_RETURN(const bench::Limits before,
                          bench::measure_limits(threads, options.limits_seconds));
  VOLLEY_ASSIGN_OR_RETURN(const Messages messages, run_processes(checkpoint, options));
  // Again: the machine may have been less busy with other things by now.
  VOLLEY_ASSIGN_OR_RETURN(const bench::Limits after,
                          bench::measure_limits(threads, options.limits_seconds));
  const bench::Limits limits = bench::larger_of(before, after);

  const json load = json::parse(messages.load);
  json report{{"benchmark", "throughput"},
              {"run", description},
              {"model", options.model},
              {"mode", options.mode},
              {"fabric", options.colocated() ? "local" : options.fabric},
              {"isa", options.isa},
              {"threads", threads},
              {"micro_batches", options.micro_batches},
              {"prompt_tokens", options.prompt},
              {"new_tokens", options.new_tokens},
              {"repeat", options.repeat},
              {"limits",
               {{"threads", threads},
                {"memory_gbps", limits.memory_gbps},
                {"peak_gflops", bench::peak_gflops(limits, peak_isa(options.isa, limits))},
                {"peak_of", peak_isa(options.isa, limits)}}},
              {"rows", json::array()},
              {"attention_profile_s", load.at("profile")},
              {"expert_profile_s", json::parse(messages.expert_profile)}};
  for (size_t i = 0; i < options.streams.size(); ++i) {
    report["rows"].push_back(
        row_of(checkpoint.spec, options, options.streams[i], load.at("results").at(i), limits));
  }
  std::fputs(table_of(report).c_str(), stdout);
  if (options.json_path.empty()) return ok_status();
  return write_text_file(options.json_path, report.dump(2) + "\n");
}

}  // namespace
}  // namespace volley::benchmarks

int main(int argc, char** argv) {
  using namespace volley;
  benchmarks::Options options;
  uint32_t timeout_s = 600;
  CLI::App app{"Decode and prefill throughput of the engines, without gRPC."};
  const CLI::Range positive(1u, 1u << 20);
  app.add_option("model", options.model, "Folder with a config.json; weights are dummies.")
      ->required();
  app.add_option("--mode", options.mode,
                 "colocated: one process with both nodes; 1a1e: a process each.")
      ->check(CLI::IsMember({"colocated", "1a1e"}));
  app.add_option("--threads", options.threads, "colocated: of both nodes together.")
      ->check(positive);
  app.add_option("--cores", options.cores,
                 "colocated: the cores of both nodes' threads, in order; by default any.")
      ->delimiter(',');
  app.add_option("--fabric", options.fabric, "Of 1a1e.")->check(CLI::IsMember({"shm", "tcp"}));
  app.add_option("--attention-cores", options.attention_cores, "1a1e: a thread on each.")
      ->delimiter(',');
  app.add_option("--expert-cores", options.expert_cores, "1a1e: a thread on each.")->delimiter(',');
  app.add_option("--micro-batches", options.micro_batches, "By default 1 colocated, 2 in 1a1e.")
      ->check(CLI::Range(1u, protocol::kMicroBatchesMax));
  app.add_option("--streams", options.streams)->delimiter(',')->check(positive);
  app.add_option("--prompt", options.prompt, "Tokens of each prompt.")->check(positive);
  app.add_option("--new", options.new_tokens, "Tokens of each stream.")
      ->check(CLI::Range(2u, 1u << 20));
  app.add_option("--step-tokens", options.step_tokens, "Prompt tokens in one step at most.")
      ->check(positive);
  app.add_option("--isa", options.isa);
  app.add_option("--repeat", options.repeat, "The best repetition counts.")->check(positive);
  app.add_option("--limits-seconds", options.limits_seconds, "Time to measure each limit.")
      ->check(CLI::Range(0.001, 60.0));
  app.add_option("--timeout", timeout_s, "Seconds for all runs.")->check(positive);
  app.add_option("--json", options.json_path);
  CLI11_PARSE(app, argc, argv);
  if (!options.cores.empty() && options.cores.size() != options.threads) {
    std::fprintf(stderr, "throughput: --cores names %zu cores for %u threads\n",
                 options.cores.size(), options.threads);
    return 1;
  }
  if (options.micro_batches == 0) options.micro_batches = options.colocated() ? 1 : 2;
  options.timeout = timeout_s * kSecond;
  spdlog::set_level(spdlog::level::err);
  const Status status = benchmarks::run(options, benchmarks::run_description(argc, argv));
  if (!status.ok()) {
    std::fprintf(stderr, "throughput: %s\n", message_of(status).c_str());
    return 1;
  }
  return 0;
}
