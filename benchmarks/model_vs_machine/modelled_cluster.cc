#include "modelled_cluster.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>

#include "common/nodes.h"
#include "common/streams.h"
#include "volley/base/clock.h"
#include "volley/cache/block_allocator.h"
#include "volley/protocol/expert_map.h"

namespace volley::benchmarks {
namespace {

constexpr Nanos kLinkTimeout = 10 * kSecond;
constexpr transport::LinkKey kKey{1, 2, 3};
constexpr kernels::DType kDType = kernels::DType::kBf16;
// While some prompts still wait, the first sequences decode.
constexpr uint32_t kSlackTokens = 64;

}  // namespace

Result<ModelledRun> run_modelled_cluster(const model::Checkpoint& checkpoint,
                                         const ModelledClusterOptions& options) {
  const model::ModelSpec& spec = checkpoint.spec;
  const uint32_t experts = spec.layers.front().moe.experts;
  const uint32_t step_tokens = std::max(options.rows, 64u);
  const protocol::LinkGeometry geometry =
      engine::AttentionEngine::geometry(spec, options.micro_batches, step_tokens, kDType);
  const auto make_fabric = [&](const transport::NodeIdentity& self, bool listens) {
    const std::string listen = !listens ? "" : options.fabric == "tcp" ? "127.0.0.1:0" : "auto";
    return transport::make_fabric(
        options.fabric, {.self = self,
                         .geometry = geometry,
                         .links_max = std::max(options.attention_nodes, options.expert_nodes),
                         .layers = spec.layer_count(),
                         .dtype = static_cast<uint8_t>(kDType),
                         .dispatch_dtype = static_cast<uint8_t>(kDType),
                         .key = kKey,
                         .listen = listen});
  };

  engine::ClusterUpdate update;
  std::vector<protocol::ExpertMap::Holding> holdings;
  std::vector<ExpertNode> expert_nodes;
  for (uint32_t i = 0; i < options.expert_nodes; ++i) {
    engine::ExpertPeer peer{.name = fmt::format("expert-{}", i),
                            .incarnation = Incarnation{random_u64()},
                            .fabric_address = {},
                            .link_key = kKey};
    VOLLEY_ASSIGN_OR_RETURN(auto fabric, make_fabric({peer.name, peer.incarnation}, true));
    peer.fabric_address = fabric->address();
    const std::vector<uint32_t> held = protocol::default_experts(experts, i, options.expert_nodes);
    std::vector<model::ExpertWeights::Key> keys;
    for (uint32_t layer = 0; layer < spec.layer_count(); ++layer) {
      for (const uint32_t expert : held) keys.push_back({.layer = layer, .expert = expert});
    }
    VOLLEY_ASSIGN_OR_RETURN(auto engine, engine::ExpertEngine::create_modelled(
                                             {.name = peer.name,
                                              .incarnation = peer.incarnation,
                                              .dtype = kDType,
                                              .geometry = geometry,
                                              .links_max = options.attention_nodes,
                                              .link_timeout = kLinkTimeout},
                                             spec, keys, options.compute, std::move(fabric)));
    holdings.push_back(
        {.node = {.name = peer.name, .incarnation = peer.incarnation}, .experts = held});
    update.experts.push_back(peer);
    expert_nodes.emplace_back(std::move(engine), peer);
  }
  VOLLEY_ASSIGN_OR_RETURN(
      auto map,
      protocol::ExpertMap::build({.term = 1, .number = 1}, spec.layer_count(), experts, holdings));
  update.map = std::make_shared<const protocol::ExpertMap>(std::move(map));

  const uint32_t sequences = options.micro_batches * options.rows;
  const uint32_t tokens = options.prompt_tokens + 1 + options.steps + kSlackTokens;
  std::vector<AttentionNode> attention_nodes;
  for (uint32_t i = 0; i < options.attention_nodes; ++i) {
    const transport::NodeIdentity self{.name = fmt::format("attention-{}", i),
                                       .incarnation = Incarnation{random_u64()}};
    VOLLEY_ASSIGN_OR_RETURN(auto fabric, make_fabric(self, false));
    VOLLEY_ASSIGN_OR_RETURN(
        auto engine,
        engine::AttentionEngine::create_modelled(
            {.name = self.name,
             .incarnation = self.incarnation,
             .dtype = kDType,
             .micro_batches = options.micro_batches,
             .tokens_per_step_max = step_tokens,
             .sequences_max = sequences,
             .waiting_max = sequences,
             .sequence_tokens_max = tokens,
             .kv_blocks = sequences * cache::blocks_for(tokens, kernels::kKvBlockTokens),
             .geometry = geometry,
             .link_timeout = kLinkTimeout},
            spec, options.compute, std::move(fabric)));
    attention_nodes.emplace_back(std::move(engine), engine::ExpertPeer{});
  }
  const Nanos deadline = monotonic_now() + options.timeout;
  for (AttentionNode& node : attention_nodes) {
    node->update_cluster(update);
    while (!node->status().ready || node->status().links < options.expert_nodes) {
      if (monotonic_now() > deadline) {
        return Status(StatusCode::kDeadlineExceeded, "the nodes have not linked");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  std::vector<std::unique_ptr<Streams>> streams;
  for (uint32_t i = 0; i < options.attention_nodes; ++i) {
    streams.push_back(
        std::make_unique<Streams>(*attention_nodes[i], spec.vocab,
                                  StreamOptions{.streams = sequences,
                                                .prompt_tokens = options.prompt_tokens,
                                                .decode_tokens = options.steps,
                                                .slack_tokens = kSlackTokens,
                                                .seed = i + 1}));
  }
  Nanos begin = 0, end = std::numeric_limits<Nanos>::max();
  for (const auto& one : streams) {
    VOLLEY_RETURN_IF_ERROR(one->wait(deadline));
    begin = std::max(begin, one->all_started());
    end = std::min(end, one->round_over());
  }
  if (begin >= end) return internal_error("the nodes' rounds do not overlap");
  uint64_t generated = 0;
  for (const auto& one : streams) generated += one->tokens_between(begin, end);
  streams.clear();
  for (AttentionNode& node : attention_nodes) node.stop();
  uint64_t steps = 0, runs = 0;
  for (AttentionNode& node : attention_nodes) steps += node->status().steps;
  for (ExpertNode& node : expert_nodes) {
    node.stop();
    runs += node->status().runs;
  }
  return ModelledRun{
      .tokens_per_s = static_cast<double>(generated) * 1e9 / static_cast<double>(end - begin),
      .runs_per_step = static_cast<double>(runs) / options.expert_nodes /
                       static_cast<double>(steps * spec.layer_count())};
}

}  // namespace volley::benchmarks
