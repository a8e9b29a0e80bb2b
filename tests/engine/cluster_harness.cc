#include "engine/cluster_harness.h"

#include <cstdio>
#include <cstdlib>

#include "volley/base/check.h"
#include "volley/base/clock.h"
#include "volley/base/random.h"
#include "volley/engine/dispatch_rows.h"
#include "volley/protocol/expert_map.h"

namespace volley::engine {
namespace {

constexpr uint32_t kLinksMax = 5;  // The most nodes of a pool in these tests.
constexpr transport::LinkKey kKey{1, 2, 3};

template <class T>
T must(Result<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "the cluster cannot start: %s\n", message_of(result.status()).c_str());
    std::abort();
  }
  return std::move(result).value();
}

std::unique_ptr<transport::Fabric> fabric_for(const HarnessOptions& options,
                                              const transport::NodeIdentity& self,
                                              const protocol::LinkGeometry& geometry,
                                              uint32_t layers, bool listens) {
  const std::string listen = !listens ? "" : options.fabric == "tcp" ? "127.0.0.1:0" : "auto";
  auto fabric = must(transport::make_fabric(
      options.fabric,
      {.self = self,
       .geometry = geometry,
       .links_max = kLinksMax,
       .layers = layers,
       .dtype = static_cast<uint8_t>(options.dtype),
       .dispatch_dtype = static_cast<uint8_t>(dispatch_dtype(options.dtype, options.fp8_dispatch)),
       .key = kKey,
       .listen = listen}));
  return options.decorate ? options.decorate(std::move(fabric)) : std::move(fabric);
}

}  // namespace

void Stream::on_output(const scheduler::SequenceOutput& output) {
  size_t count = 0;
  {
    const std::lock_guard lock(mutex_);
    VOLLEY_CHECK(!done_);
    if (output.token >= 0) {
      tokens.push_back(output.token);
      digests.push_back(output.logits_digest);
      logprobs.push_back(output.logprob);
    }
    count = tokens.size();
    if (output.ended()) {
      finish = output.finish;
      status = output.status;
      ++ends;
    }
  }
  if (on_token && output.token >= 0) on_token(count);
  if (output.ended()) {
    const std::lock_guard lock(mutex_);
    done_ = true;
    ended_.notify_all();
  }
}

bool Stream::wait() {
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, std::chrono::seconds(10), [this] { return done_; });
}

ClusterHarness::ClusterHarness(const HarnessOptions& options, const model::Checkpoint& checkpoint) {
  const model::ModelSpec& spec = checkpoint.spec;
  const kernels::CpuKernels& kernels = options.kernels != nullptr
                                           ? *options.kernels
                                           : *must(kernels::select_cpu_kernels(options.isa));
  const protocol::LinkGeometry geometry =
      AttentionEngine::geometry(spec, options.micro_batches, options.slot_rows, options.dtype,
                                options.fp8_dispatch, options.combine);
  const AttentionEngineOptions base{.name = {},
                                    .incarnation = {},
                                    .dtype = options.dtype,
                                    .fp8_dispatch = options.fp8_dispatch,
                                    .threads = options.threads,
                                    .micro_batches = options.micro_batches,
                                    .adaptive_micro_batches = options.adaptive_micro_batches,
                                    .tokens_per_step_max = options.tokens_per_step_max,
                                    .sequences_max = options.sequences_max,
                                    .waiting_max = 1024,
                                    .sequence_tokens_max = options.sequence_tokens_max,
                                    .kv_blocks = options.kv_blocks,
                                    .geometry = geometry,
                                    .link_timeout = options.link_timeout,
                                    .trace_capacity = options.trace_capacity};

  ClusterUpdate update;
  std::vector<protocol::ExpertMap::Holding> holdings;
  const uint32_t experts = spec.layers.front().moe.experts;
  for (uint32_t i = 0; i < options.expert_nodes; ++i) {
    const std::string name = "expert-" + std::to_string(i);
    const Incarnation incarnation{random_u64()};
    auto fabric = fabric_for(options, {name, incarnation}, geometry, spec.layer_count(), true);
    const std::vector<uint32_t> held =
        options.replicated ? protocol::default_experts(experts, 0, 1)
                           : protocol::default_experts(experts, i, options.expert_nodes);
    std::vector<model::ExpertWeights::Key> keys;
    for (uint32_t layer = 0; layer < spec.layer_count(); ++layer) {
      for (const uint32_t expert : held) keys.push_back({.layer = layer, .expert = expert});
    }
    update.experts.push_back({.name = name,
                              .incarnation = incarnation,
                              .fabric_address = fabric->address(),
                              .link_key = kKey});
    holdings.push_back({.node = {.name = name, .incarnation = incarnation}, .experts = held});
    Node<ExpertEngine> node;
    const ExpertEngineOptions node_options{.name = name,
                                           .incarnation = incarnation,
                                           .dtype = options.dtype,
                                           .fp8_dispatch = options.fp8_dispatch,
                                           .threads = options.threads,
                                           .geometry = geometry,
                                           .links_max = kLinksMax,
                                           .link_timeout = options.link_timeout,
                                           .trace_capacity = options.trace_capacity};
    if (options.modelled) {
      node.engine = must(ExpertEngine::create_modelled(node_options, spec, keys, *options.modelled,
                                                       std::move(fabric)));
    } else {
      auto source = must(checkpoint.source());
      node.engine = must(ExpertEngine::create(
          node_options, spec, must(model::ExpertWeights::load(spec, *source, options.dtype, keys)),
          kernels, std::move(fabric)));
    }
    experts_.push_back(std::move(node));
  }
  update.map = std::make_shared<const protocol::ExpertMap>(must(
      protocol::ExpertMap::build({.term = 1, .number = 1}, spec.layer_count(), experts, holdings)));

  for (uint32_t i = 0; i < options.attention_nodes; ++i) {
    AttentionEngineOptions node_options = base;
    node_options.name = "attention-" + std::to_string(i);
    node_options.incarnation = Incarnation{random_u64()};
    auto fabric = fabric_for(options, {node_options.name, node_options.incarnation}, geometry,
                             spec.layer_count(), false);
    Node<AttentionEngine> node;
    if (options.modelled) {
      node.engine = must(AttentionEngine::create_modelled(node_options, spec, *options.modelled,
                                                          std::move(fabric)));
    } else {
      auto source = must(checkpoint.source());
      node.engine = must(AttentionEngine::create(
          node_options, spec, must(model::AttentionWeights::load(spec, *source, options.dtype)),
          kernels, std::move(fabric)));
    }
    attention_.push_back(std::move(node));
  }
  const auto start = [&](auto& node) {
    auto* engine = node.engine.get();
    node.pulse = std::make_unique<transport::PulseThread>([engine] { engine->pulse(); },
                                                          options.link_timeout / 4);
    node.thread = std::jthread([engine] { engine->run(); });
  };
  for (auto& node : experts_) start(node);
  for (auto& node : attention_) {
    start(node);
    node.engine->update_cluster(update);
  }
  wait_ready();
}

void ClusterHarness::wait_ready() {
  const Nanos deadline = monotonic_now() + 10 * kSecond;
  for (auto& node : attention_) {
    // Ready means that every expert has a linked holder; these tests want all links.
    while (!node.engine->status().ready || node.engine->status().links < experts_.size()) {
      VOLLEY_CHECK(monotonic_now() < deadline);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
}

ClusterHarness::~ClusterHarness() {
  stop();
}

void ClusterHarness::stop() {
  const Nanos deadline = monotonic_now() + kSecond;
  for (auto& node : attention_) node.engine->stop(deadline);
  for (auto& node : attention_) {
    if (node.thread.joinable()) node.thread.join();
  }
  for (auto& node : experts_) {
    if (node.engine) node.engine->stop(deadline);
  }
  for (auto& node : experts_) {
    if (node.thread.joinable()) node.thread.join();
  }
}

SequenceId ClusterHarness::submit(uint32_t node, GenerationRequest request, OutputSink& sink) {
  return must(attention_[node].engine->submit(std::move(request), &sink));
}

void ClusterHarness::kill_expert(uint32_t index) {
  Node<ExpertEngine>& node = experts_[index];
  node.engine->stop(0);
  node.thread.join();
  node.pulse.reset();
  node.engine.reset();
}

std::vector<GenerationRequest> random_requests(uint64_t seed, uint32_t count, uint32_t vocab,
                                               uint32_t prompt_max, uint32_t new_tokens) {
  SplitMix64 random(seed);
  std::vector<GenerationRequest> requests(count);
  for (GenerationRequest& request : requests) {
    request.tokens.resize(1 + random.below(prompt_max));
    for (int32_t& token : request.tokens) token = static_cast<int32_t>(random.below(vocab));
    request.max_new_tokens = new_tokens;
    request.sampling.temperature = 1.0f;
    request.sampling.seed = random.next();
  }
  return requests;
}

model::Checkpoint random_moe() {
  return must(
      model::Checkpoint::open_dummy(std::string(VOLLEY_TEST_DATA) + "/models/random-moe", 7));
}

model::Checkpoint random_qwen3_moe() {
  return must(
      model::Checkpoint::open_dummy(std::string(VOLLEY_TEST_DATA) + "/models/random-qwen3-moe", 7));
}

}  // namespace volley::engine
