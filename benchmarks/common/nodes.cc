#include "common/nodes.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "volley/base/clock.h"
#include "volley/base/thread_pool.h"
#include "volley/cache/block_allocator.h"
#include "volley/engine/colocated.h"
#include "volley/protocol/expert_map.h"

namespace volley::benchmarks {
namespace {

// Long enough that a busy machine never loses a link: failures are not what is measured.
constexpr Nanos kLinkTimeout = 10 * kSecond;
constexpr Nanos kStopTimeout = 10 * kSecond;
// The two ends belong to one program; the key guards nothing here.
constexpr transport::LinkKey kKey{1, 2, 3};
constexpr kernels::DType kDType = kernels::DType::kBf16;

Result<std::unique_ptr<transport::Fabric>> make_fabric(const NodeOptions& options,
                                                       const model::ModelSpec& spec,
                                                       const transport::NodeIdentity& self,
                                                       bool listens) {
  const std::string listen = !listens ? "" : options.fabric == "tcp" ? "127.0.0.1:0" : "auto";
  VOLLEY_ASSIGN_OR_RETURN(
      auto fabric,
      transport::make_fabric(options.fabric,
                             {.self = self,
                              .geometry = engine::AttentionEngine::geometry(
                                  spec, options.micro_batches, options.step_tokens_max, kDType),
                              .links_max = 1,
                              .layers = spec.layer_count(),
                              .dtype = static_cast<uint8_t>(kDType),
                              .key = kKey,
                              .listen = listen}));
  return options.decorate ? options.decorate(std::move(fabric)) : std::move(fabric);
}

}  // namespace

template <class Engine>
RunningNode<Engine>::RunningNode(std::unique_ptr<Engine> engine, engine::ExpertPeer self)
    : engine_(std::move(engine)), self_(std::move(self)) {
  Engine* running = engine_.get();
  pulse_ =
      std::make_unique<transport::PulseThread>([running] { running->pulse(); }, kLinkTimeout / 4);
  thread_ = std::jthread([running] { running->run(); });
}

template <class Engine>
RunningNode<Engine>::~RunningNode() {
  stop();
}

template <class Engine>
void RunningNode<Engine>::stop() {
  if (!thread_.joinable()) return;
  engine_->stop(monotonic_now() + kStopTimeout);
  thread_.join();
}

template class RunningNode<engine::AttentionEngine>;
template class RunningNode<engine::ExpertEngine>;

namespace {

struct MadeExpert {
  std::unique_ptr<engine::ExpertEngine> engine;
  engine::ExpertPeer self;
};

Result<MadeExpert> make_expert_engine(const model::Checkpoint& checkpoint,
                                      const NodeOptions& options) {
  const model::ModelSpec& spec = checkpoint.spec;
  engine::ExpertPeer self{.name = "expert-0",
                          .incarnation = Incarnation{random_u64()},
                          .fabric_address = {},
                          .link_key = kKey};
  VOLLEY_ASSIGN_OR_RETURN(const auto* kernels, kernels::select_cpu_kernels(options.isa));
  VOLLEY_ASSIGN_OR_RETURN(auto fabric,
                          make_fabric(options, spec, {self.name, self.incarnation}, true));
  self.fabric_address = fabric->address();
  std::vector<model::ExpertWeights::Key> keys;
  for (uint32_t layer = 0; layer < spec.layer_count(); ++layer) {
    for (uint32_t expert = 0; expert < spec.layers[layer].moe.experts; ++expert) {
      keys.push_back({.layer = layer, .expert = expert});
    }
  }
  VOLLEY_ASSIGN_OR_RETURN(const auto source, checkpoint.source());
  VOLLEY_ASSIGN_OR_RETURN(auto weights, model::ExpertWeights::load(spec, *source, kDType, keys));
  VOLLEY_ASSIGN_OR_RETURN(auto engine,
                          engine::ExpertEngine::create(
                              {.name = self.name,
                               .incarnation = self.incarnation,
                               .dtype = kDType,
                               .threads = options.threads,
                               .cores = options.cores,
                               .pool = options.pool,
                               .geometry = engine::AttentionEngine::geometry(
                                   spec, options.micro_batches, options.step_tokens_max, kDType),
                               .links_max = 1,
                               .link_timeout = kLinkTimeout,
                               .trace_capacity = options.trace_capacity},
                              spec, std::move(weights), *kernels, std::move(fabric)));
  return MadeExpert{std::move(engine), std::move(self)};
}

Result<std::unique_ptr<engine::AttentionEngine>> make_attention_engine(
    const model::Checkpoint& checkpoint, const NodeOptions& options) {
  const model::ModelSpec& spec = checkpoint.spec;
  const transport::NodeIdentity self{.name = "attention-0",
                                     .incarnation = Incarnation{random_u64()}};
  VOLLEY_ASSIGN_OR_RETURN(const auto* kernels, kernels::select_cpu_kernels(options.isa));
  VOLLEY_ASSIGN_OR_RETURN(auto fabric, make_fabric(options, spec, self, false));
  VOLLEY_ASSIGN_OR_RETURN(const auto source, checkpoint.source());
  VOLLEY_ASSIGN_OR_RETURN(auto weights, model::AttentionWeights::load(spec, *source, kDType));
  // Blocks for every sequence at its full length: nothing is ever preempted.
  const uint32_t blocks = options.sequences_max *
                          cache::blocks_for(options.sequence_tokens_max, kernels::kKvBlockTokens);
  return engine::AttentionEngine::create(
      {.name = self.name,
       .incarnation = self.incarnation,
       .dtype = kDType,
       .threads = options.threads,
       .cores = options.cores,
       .pool = options.pool,
       .micro_batches = options.micro_batches,
       .tokens_per_step_max = options.step_tokens_max,
       .sequences_max = options.sequences_max,
       .waiting_max = options.sequences_max,
       .sequence_tokens_max = options.sequence_tokens_max,
       .kv_blocks = blocks,
       .geometry = engine::AttentionEngine::geometry(spec, options.micro_batches,
                                                     options.step_tokens_max, kDType),
       .link_timeout = kLinkTimeout,
       .trace_capacity = options.trace_capacity},
      spec, std::move(weights), *kernels, std::move(fabric));
}

}  // namespace

Result<ExpertNode> start_expert_node(const model::Checkpoint& checkpoint,
                                     const NodeOptions& options) {
  VOLLEY_ASSIGN_OR_RETURN(MadeExpert made, make_expert_engine(checkpoint, options));
  return ExpertNode(std::move(made.engine), std::move(made.self));
}

Result<AttentionNode> start_attention_node(const model::Checkpoint& checkpoint,
                                           const NodeOptions& options) {
  VOLLEY_ASSIGN_OR_RETURN(auto engine, make_attention_engine(checkpoint, options));
  return AttentionNode(std::move(engine), {});
}

Result<ColocatedNodes> ColocatedNodes::start(const model::Checkpoint& checkpoint,
                                             NodeOptions options) {
  options.pool = std::make_shared<ThreadPool>(options.threads, options.cores);
  VOLLEY_ASSIGN_OR_RETURN(MadeExpert made, make_expert_engine(checkpoint, options));
  VOLLEY_ASSIGN_OR_RETURN(auto attention, make_attention_engine(checkpoint, options));
  ColocatedNodes nodes;
  nodes.attention_ = std::move(attention);
  nodes.expert_ = std::move(made.engine);
  nodes.expert_peer_ = std::move(made.self);
  engine::AttentionEngine* const attention_engine = nodes.attention_.get();
  engine::ExpertEngine* const expert_engine = nodes.expert_.get();
  nodes.pulse_ = std::make_unique<transport::PulseThread>(
      [attention_engine, expert_engine] {
        attention_engine->pulse();
        expert_engine->pulse();
      },
      kLinkTimeout / 4);
  nodes.thread_ = std::jthread([attention_engine, expert_engine] {
    engine::run_colocated(*attention_engine, *expert_engine);
  });
  return nodes;
}

ColocatedNodes::~ColocatedNodes() {
  stop();
}

void ColocatedNodes::stop() {
  if (!thread_.joinable()) return;
  attention_->stop(monotonic_now() + kStopTimeout);
  expert_->stop(monotonic_now() + kStopTimeout);
  thread_.join();
}

Status link_nodes(engine::AttentionEngine& attention, const engine::ExpertPeer& expert,
                  const model::ModelSpec& spec, Nanos deadline) {
  const uint32_t experts = spec.layers.front().moe.experts;
  const std::vector<protocol::ExpertMap::Holding> holdings{
      {.node = {.name = expert.name, .incarnation = expert.incarnation},
       .experts = protocol::default_experts(experts, 0, 1)}};
  VOLLEY_ASSIGN_OR_RETURN(
      auto map,
      protocol::ExpertMap::build({.term = 1, .number = 1}, spec.layer_count(), experts, holdings));
  attention.update_cluster(
      {.experts = {expert}, .map = std::make_shared<const protocol::ExpertMap>(std::move(map))});
  while (!attention.status().ready) {
    if (monotonic_now() >= deadline) {
      return make_status(StatusCode::kDeadlineExceeded, "the attention node is not ready: {}",
                         attention.status().reason);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return ok_status();
}

std::string peer_to_message(const engine::ExpertPeer& peer) {
  return nlohmann::json{{"name", peer.name},
                        {"incarnation", peer.incarnation.value},
                        {"address", peer.fabric_address}}
      .dump();
}

Result<engine::ExpertPeer> peer_from_message(const std::string& message) {
  const nlohmann::json parsed = nlohmann::json::parse(message, nullptr, false);
  if (!parsed.is_object() || !parsed.contains("name") || !parsed.contains("incarnation") ||
      !parsed.contains("address")) {
    return invalid_argument("not an expert peer: {}", message);
  }
  return engine::ExpertPeer{.name = parsed["name"].get<std::string>(),
                            .incarnation = Incarnation{parsed["incarnation"].get<uint64_t>()},
                            .fabric_address = parsed["address"].get<std::string>(),
                            .link_key = kKey};
}

}  // namespace volley::benchmarks
