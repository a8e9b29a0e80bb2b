#include "volley/simulation/options.h"

#include <algorithm>
#include <cmath>

#include "volley/cache/block_allocator.h"
#include "volley/protocol/wire.h"

namespace volley::simulation {
namespace {

// Tokens of one request, prompt included: bounds the memory of a mistyped length.
constexpr double kTokensMax = 4'000'000;
constexpr uint64_t kBlocksMax = uint64_t{1} << 31;

Status check_length(const char* name, const LengthOptions& length) {
  const bool uniform = length.kind == LengthOptions::Kind::kUniform;
  const bool lognormal = length.kind == LengthOptions::Kind::kLognormal;
  if (!(length.a >= 1 && length.a <= kTokensMax)) {
    return invalid_argument("{}: {} tokens; it must be in [1, {}]", name, length.a, kTokensMax);
  }
  if (uniform && !(length.b >= length.a && length.b <= kTokensMax)) {
    return invalid_argument("{}: {} to {} tokens; the second must be in [{}, {}]", name, length.a,
                            length.b, length.a, kTokensMax);
  }
  if (lognormal && !(length.b >= 0 && length.b <= 5)) {
    return invalid_argument("{}: sigma is {}; it must be in [0, 5]", name, length.b);
  }
  if (lognormal && !(length.max >= length.a && length.max <= kTokensMax)) {
    return invalid_argument("{}: at most {} tokens; it must be in [{}, {}]", name, length.max,
                            length.a, kTokensMax);
  }
  return ok_status();
}

Status check_range(const char* name, double value, double min, double max) {
  if (value >= min && value <= max) return ok_status();
  return invalid_argument("{} is {}; it must be in [{}, {}]", name, value, min, max);
}

/// What memory is taken by: bounds that of a mistyped size.
Status check_sizes(const ClusterOptions& cluster) {
  const uint64_t slot_rows = cluster.slot_rows > 0 ? cluster.slot_rows : cluster.tokens_per_step;
  const auto check = [](const char* what, uint64_t value, uint64_t max) {
    return value <= max ? ok_status() : invalid_argument("{}: {}, at most {}", what, value, max);
  };
  VOLLEY_RETURN_IF_ERROR(check("fragments of a step, tokens_per_step / slot_rows",
                               (cluster.tokens_per_step + slot_rows - 1) / slot_rows, 0xffff));
  VOLLEY_RETURN_IF_ERROR(check("pairs of a step, tokens_per_step x top_k",
                               uint64_t{cluster.tokens_per_step} * cluster.top_k, 1 << 22));
  VOLLEY_RETURN_IF_ERROR(
      check("experts of all layers", uint64_t{cluster.experts} * cluster.layers, 10'000'000));
  return check("links, attention_nodes x expert_nodes",
               uint64_t{cluster.attention_nodes} * cluster.expert_nodes, 1'000'000);
}

Status check_blocks(const SimulationOptions& options) {
  const ClusterOptions& cluster = options.cluster;
  const uint64_t blocks = cache::blocks_for(options.longest_sequence(), cluster.block_tokens);
  if (cluster.kv_blocks > 0 && cluster.kv_blocks < blocks) {
    return invalid_argument("kv_blocks is {}; the longest request needs {}", cluster.kv_blocks,
                            blocks);
  }
  if (cluster.kv_blocks == 0 && blocks * cluster.sequences > kBlocksMax) {
    return invalid_argument("{} sequences of {} blocks would have {} blocks; set kv_blocks",
                            cluster.sequences, blocks, blocks * cluster.sequences);
  }
  return ok_status();
}

Status check_cluster(const ClusterOptions& cluster) {
  VOLLEY_RETURN_IF_ERROR(check_range("attention_nodes", cluster.attention_nodes, 1, 100'000));
  VOLLEY_RETURN_IF_ERROR(check_range("expert_nodes", cluster.expert_nodes, 1, 100'000));
  VOLLEY_RETURN_IF_ERROR(check_range("layers", cluster.layers, 1, 10'000));
  VOLLEY_RETURN_IF_ERROR(check_range("experts", cluster.experts, 1, 100'000));
  VOLLEY_RETURN_IF_ERROR(check_range("top_k", cluster.top_k, 1, cluster.experts));
  VOLLEY_RETURN_IF_ERROR(
      check_range("micro_batches", cluster.micro_batches, 1, protocol::kMicroBatchesMax));
  VOLLEY_RETURN_IF_ERROR(check_range("tokens_per_step", cluster.tokens_per_step, 1, 1 << 20));
  VOLLEY_RETURN_IF_ERROR(check_range("slot_rows", cluster.slot_rows, 0, cluster.tokens_per_step));
  VOLLEY_RETURN_IF_ERROR(check_range("sequences", cluster.sequences, 1, 1 << 20));
  VOLLEY_RETURN_IF_ERROR(check_range("waiting", cluster.waiting, 1, 1 << 22));
  VOLLEY_RETURN_IF_ERROR(check_range("block_tokens", cluster.block_tokens, 1, 1 << 16));
  VOLLEY_RETURN_IF_ERROR(check_range("row_bytes", cluster.row_bytes, 1, 1 << 20));
  VOLLEY_RETURN_IF_ERROR(check_range("answer_row_bytes", cluster.answer_row_bytes, 1, 1 << 20));
  VOLLEY_RETURN_IF_ERROR(check_range("gather_window_s", cluster.gather_window_s, 0, 10));
  VOLLEY_RETURN_IF_ERROR(check_range("gather_rows", cluster.gather_rows, 1, 1 << 30));
  VOLLEY_RETURN_IF_ERROR(check_sizes(cluster));
  if (cluster.held.empty()) {
    if (cluster.expert_nodes > cluster.experts) {
      return invalid_argument(
          "{} expert nodes for {} experts: say which experts each holds, so that some are held "
          "more than once",
          cluster.expert_nodes, cluster.experts);
    }
    return ok_status();
  }
  if (cluster.held.size() != cluster.expert_nodes) {
    return invalid_argument("experts are listed for {} nodes; there are {} expert nodes",
                            cluster.held.size(), cluster.expert_nodes);
  }
  for (size_t node = 0; node < cluster.held.size(); ++node) {
    if (cluster.held[node].empty()) return invalid_argument("expert-{} holds no expert", node);
    std::vector<bool> seen(cluster.experts);
    for (const uint32_t expert : cluster.held[node]) {
      if (expert >= cluster.experts) {
        return invalid_argument("expert-{} holds expert {}; the model has {}", node, expert,
                                cluster.experts);
      }
      if (seen[expert]) return invalid_argument("expert-{} holds expert {} twice", node, expert);
      seen[expert] = true;
    }
  }
  return ok_status();
}

Status check_workload(const WorkloadOptions& load) {
  VOLLEY_RETURN_IF_ERROR(check_length("input", load.input));
  VOLLEY_RETURN_IF_ERROR(check_length("output", load.output));
  VOLLEY_RETURN_IF_ERROR(check_range("spread_s", load.spread_s, 0, 1e6));
  VOLLEY_RETURN_IF_ERROR(check_range("retry_s", load.retry_s, 1e-3, 1e6));
  switch (load.arrivals) {
    case WorkloadOptions::Arrivals::kClosed:
      return check_range("streams", load.streams, 1, 16'000'000);
    case WorkloadOptions::Arrivals::kPoisson:
    case WorkloadOptions::Arrivals::kConstant:
      return check_range("rate", load.rate, 1e-6, 1e9);
    case WorkloadOptions::Arrivals::kListed:
      break;
  }
  if (load.requests.empty()) return invalid_argument("there are no requests");
  double last = 0;
  for (size_t i = 0; i < load.requests.size(); ++i) {
    const RequestRecord& each = load.requests[i];
    if (!(each.arrival_s >= last && each.arrival_s < 1e9)) {
      return invalid_argument("request {} arrives at {} s, after one at {} s", i, each.arrival_s,
                              last);
    }
    last = each.arrival_s;
    if (each.input < 1 || each.output < 1 || each.input > kTokensMax || each.output > kTokensMax) {
      return invalid_argument("request {} has {} tokens and {} new ones; each must be in [1, {}]",
                              i, each.input, each.output, kTokensMax);
    }
  }
  return ok_status();
}

}  // namespace

uint32_t SimulationOptions::longest_sequence() const {
  uint32_t input = workload.input.longest(), output = workload.output.longest();
  for (const RequestRecord& each : workload.requests) {
    input = std::max(input, each.input);
    output = std::max(output, each.output);
  }
  return std::max(2u, (workload.prefilled ? 1 : input) + output);
}

Status SimulationOptions::validate() const {
  VOLLEY_RETURN_IF_ERROR(check_cluster(cluster));
  VOLLEY_RETURN_IF_ERROR(check_workload(workload));
  VOLLEY_RETURN_IF_ERROR(check_blocks(*this));
  VOLLEY_RETURN_IF_ERROR(check_range("network latency_s", network.latency_s, 0, 10));
  VOLLEY_RETURN_IF_ERROR(check_range("network bytes_per_s", network.bytes_per_s, 1, 1e15));
  VOLLEY_RETURN_IF_ERROR(check_range("expert_bytes_per_s", expert_bytes_per_s, 0, 1e15));
  for (const double each : {overheads.attention_turn, overheads.attention_message,
                            overheads.expert_turn, overheads.expert_message}) {
    VOLLEY_RETURN_IF_ERROR(check_range("an overhead in seconds", each, 0, 1));
  }
  VOLLEY_RETURN_IF_ERROR(check_range("zipf", router.zipf, 0, 10));
  VOLLEY_RETURN_IF_ERROR(check_range("drift_s", router.drift_s, 0, 1e6));
  VOLLEY_RETURN_IF_ERROR(check_range("drift_share", router.drift_share, 0, 1));
  VOLLEY_RETURN_IF_ERROR(check_range("detection_s", detection_s, 0, 1e4));
  VOLLEY_RETURN_IF_ERROR(check_range("control_s", control_s, 0, 1e4));
  VOLLEY_RETURN_IF_ERROR(check_range("drain_s", drain_s, 0, 1e4));
  VOLLEY_RETURN_IF_ERROR(check_range("replicas", replicas, 1, 1'000'000));
  VOLLEY_RETURN_IF_ERROR(check_range("simulated", simulated, 0, replicas));
  VOLLEY_RETURN_IF_ERROR(check_range("duration_s", duration_s, 1e-6, 1e6));
  if (!(warm_up_s >= 0 && warm_up_s < duration_s)) {
    return invalid_argument("warm_up_s is {}; it must be in [0, {})", warm_up_s, duration_s);
  }
  VOLLEY_RETURN_IF_ERROR(check_range("trace from_s", trace.from_s, 0, duration_s));
  VOLLEY_RETURN_IF_ERROR(check_range("trace length_s", trace.length_s, 0, duration_s));
  VOLLEY_RETURN_IF_ERROR(check_range("trace spans", trace.spans_max, 1, 10'000'000));
  for (const ChangeOptions& change : changes) {
    VOLLEY_RETURN_IF_ERROR(check_range("a change's time in seconds", change.at_s, 0, 1e6));
    if (change.replica >= replicas) {
      return invalid_argument("a change names replica {}; there are {}", change.replica, replicas);
    }
  }
  return ok_status();
}

}  // namespace volley::simulation
