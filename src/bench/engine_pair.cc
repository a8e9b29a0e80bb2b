#include "engine_pair.h"

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "volley/base/clock.h"
#include "volley/base/random.h"
#include "volley/cache/block_allocator.h"
#include "volley/protocol/expert_map.h"

namespace volley::bench {
namespace {

// Long enough that a busy machine never loses a link.
constexpr Nanos kLinkTimeout = 10 * kSecond;
constexpr Nanos kReadyTimeout = 10 * kSecond;
constexpr uint32_t kSequenceTokensMax = 256;
// The two ends belong to one program; the key guards nothing here.
constexpr transport::LinkKey kKey{1, 2, 3};

/// Counts the ends of sequences.
class EndCounter final : public engine::OutputSink {
 public:
  void on_output(const scheduler::SequenceOutput& output) override {
    if (!output.ended()) return;
    const std::lock_guard lock(mutex_);
    if (status_.ok()) status_ = output.status;
    ++ended_;
    changed_.notify_all();
  }
  Status wait(uint32_t count, Nanos deadline) {
    std::unique_lock lock(mutex_);
    while (ended_ < count) {
      const Nanos left = deadline - monotonic_now();
      if (left <= 0) return Status(StatusCode::kDeadlineExceeded, "the engines hang");
      changed_.wait_for(lock, std::chrono::nanoseconds(left));
    }
    return status_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint32_t ended_ = 0;
  Status status_;
};

}  // namespace

Result<std::unique_ptr<EnginePair>> EnginePair::start(const model::Checkpoint& checkpoint,
                                                      const EnginePairOptions& options) {
  const model::ModelSpec& spec = checkpoint.spec;
  const uint32_t experts = spec.layers.front().moe.experts;
  const protocol::LinkGeometry geometry =
      engine::AttentionEngine::geometry(spec, 1, options.rows_max, options.dtype);
  VOLLEY_ASSIGN_OR_RETURN(const auto* kernels, kernels::select_cpu_kernels(options.isa));
  const auto make_fabric = [&](const transport::NodeIdentity& self, bool listens) {
    const std::string listen = !listens ? "" : options.fabric == "tcp" ? "127.0.0.1:0" : "auto";
    const auto dtype = static_cast<uint8_t>(options.dtype);
    return transport::make_fabric(options.fabric, {.self = self,
                                                   .geometry = geometry,
                                                   .links_max = 1,
                                                   .layers = spec.layer_count(),
                                                   .dtype = dtype,
                                                   .dispatch_dtype = dtype,
                                                   .key = kKey,
                                                   .listen = listen});
  };
  std::unique_ptr<EnginePair> pair(new EnginePair());
  pair->vocab_ = spec.vocab;

  engine::ExpertPeer peer{.name = "expert-0",
                          .incarnation = Incarnation{random_u64()},
                          .fabric_address = {},
                          .link_key = kKey};
  VOLLEY_ASSIGN_OR_RETURN(auto expert_fabric, make_fabric({peer.name, peer.incarnation}, true));
  peer.fabric_address = expert_fabric->address();
  std::vector<model::ExpertWeights::Key> keys;
  for (uint32_t layer = 0; layer < spec.layer_count(); ++layer) {
    for (uint32_t expert = 0; expert < experts; ++expert) {
      keys.push_back({.layer = layer, .expert = expert});
    }
  }
  VOLLEY_ASSIGN_OR_RETURN(const auto source, checkpoint.source());
  VOLLEY_ASSIGN_OR_RETURN(auto expert_weights,
                          model::ExpertWeights::load(spec, *source, options.dtype, keys));
  VOLLEY_ASSIGN_OR_RETURN(pair->expert_,
                          engine::ExpertEngine::create({.name = peer.name,
                                                        .incarnation = peer.incarnation,
                                                        .dtype = options.dtype,
                                                        .threads = options.threads,
                                                        .cores = options.expert_cores,
                                                        .geometry = geometry,
                                                        .links_max = 1,
                                                        .link_timeout = kLinkTimeout},
                                                       spec, std::move(expert_weights), *kernels,
                                                       std::move(expert_fabric)));

  const transport::NodeIdentity self{.name = "attention-0",
                                     .incarnation = Incarnation{random_u64()}};
  VOLLEY_ASSIGN_OR_RETURN(auto fabric, make_fabric(self, false));
  VOLLEY_ASSIGN_OR_RETURN(auto weights,
                          model::AttentionWeights::load(spec, *source, options.dtype));
  const uint32_t tokens = std::min(kSequenceTokensMax, spec.max_positions);
  VOLLEY_ASSIGN_OR_RETURN(
      pair->attention_,
      engine::AttentionEngine::create(
          {.name = self.name,
           .incarnation = self.incarnation,
           .dtype = options.dtype,
           .threads = options.threads,
           .cores = options.attention_cores,
           .micro_batches = 1,
           .tokens_per_step_max = options.rows_max,
           .sequences_max = options.rows_max,
           .waiting_max = options.rows_max,
           .sequence_tokens_max = tokens,
           .kv_blocks = options.rows_max * cache::blocks_for(tokens, kernels::kKvBlockTokens),
           .geometry = geometry,
           .link_timeout = kLinkTimeout},
          spec, std::move(weights), *kernels, std::move(fabric)));

  pair->pulse_ = std::make_unique<transport::PulseThread>(
      [p = pair.get()] {
        p->attention_->pulse();
        p->expert_->pulse();
      },
      kLinkTimeout / 4);
  pair->expert_thread_ = std::jthread([engine = pair->expert_.get()] { engine->run(); });
  pair->attention_thread_ = std::jthread([engine = pair->attention_.get()] { engine->run(); });
  const std::vector<protocol::ExpertMap::Holding> holdings{
      {.node = {.name = peer.name, .incarnation = peer.incarnation},
       .experts = protocol::default_experts(experts, 0, 1)}};
  VOLLEY_ASSIGN_OR_RETURN(
      auto map,
      protocol::ExpertMap::build({.term = 1, .number = 1}, spec.layer_count(), experts, holdings));
  pair->attention_->update_cluster(
      {.experts = {peer}, .map = std::make_shared<const protocol::ExpertMap>(std::move(map))});
  const Nanos deadline = monotonic_now() + kReadyTimeout;
  while (!pair->attention_->status().ready) {
    if (monotonic_now() > deadline) {
      return Status(StatusCode::kDeadlineExceeded, "the engines have not linked");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return pair;
}

EnginePair::~EnginePair() {
  if (attention_thread_.joinable()) {
    attention_->stop(monotonic_now() + kSecond);
    attention_thread_.join();
  }
  if (expert_thread_.joinable()) {
    expert_->stop(monotonic_now() + kSecond);
    expert_thread_.join();
  }
}

Status EnginePair::decode(uint32_t rows, uint32_t tokens, Nanos deadline) {
  EndCounter ends;
  SplitMix64 random(rows);
  std::vector<SequenceId> sequences;
  Status status;
  for (uint32_t i = 0; i < rows && status.ok(); ++i) {
    engine::GenerationRequest request;
    request.tokens.resize(kPromptTokens);
    for (int32_t& token : request.tokens) token = static_cast<int32_t>(random.below(vocab_));
    request.max_new_tokens = tokens;
    request.sampling.seed = i;
    const Result<SequenceId> id = attention_->submit(std::move(request), &ends);
    if (id.ok()) {
      sequences.push_back(*id);
    } else {
      status = id.status();
    }
  }
  const auto count = static_cast<uint32_t>(sequences.size());
  if (status.ok()) status = ends.wait(count, deadline);
  if (status.ok()) return status;
  // The sink must outlive its sequences: the engine ends all of them when it stops.
  attention_->stop(monotonic_now());
  attention_thread_.join();
  return status;
}

}  // namespace volley::bench
