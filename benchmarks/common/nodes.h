#pragma once

// Attention and expert nodes as the daemons make them, without controller and gRPC: one expert node
// that holds all experts, one attention node, in one process or in two.

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "volley/engine/attention_engine.h"
#include "volley/engine/expert_engine.h"
#include "volley/model/weights.h"
#include "volley/transport/fabric.h"
#include "volley/transport/pulse_thread.h"

namespace volley::benchmarks {

/// What both nodes must agree on, and the limits of the attention node.
struct NodeOptions {
  std::string fabric = "local";
  std::string isa = "auto";
  uint32_t threads = 1;
  std::vector<uint32_t> cores{};       ///< None, or one for each thread: each stays on its own.
  std::shared_ptr<ThreadPool> pool{};  ///< See AttentionEngineOptions.
  uint32_t micro_batches = 1;
  uint32_t step_tokens_max = 256;  ///< Of one micro-batch's step; a slot holds as many rows.
  uint32_t sequences_max = 1;
  uint32_t sequence_tokens_max = 256;
  size_t trace_capacity = 0;
  /// Wraps the node's fabric, for example with the fault decorator.
  std::function<std::unique_ptr<transport::Fabric>(std::unique_ptr<transport::Fabric>)> decorate{};
};

/// An engine on its thread. Stops it on destruction.
template <class Engine>
class RunningNode {
 public:
  RunningNode(std::unique_ptr<Engine> engine, engine::ExpertPeer self);
  RunningNode(RunningNode&&) noexcept = default;
  ~RunningNode();

  Engine& operator*() const { return *engine_; }
  Engine* operator->() const { return engine_.get(); }
  /// How others reach it; the address is "" for a node that does not listen.
  const engine::ExpertPeer& self() const { return self_; }
  /// Ends the engine's thread; what it computed stays to be read.
  void stop();

 private:
  std::unique_ptr<Engine> engine_;
  engine::ExpertPeer self_;
  std::unique_ptr<transport::PulseThread> pulse_;
  std::jthread thread_;
};
using AttentionNode = RunningNode<engine::AttentionEngine>;
using ExpertNode = RunningNode<engine::ExpertEngine>;

/// Both engines on one thread, as `volley up` runs them with the `local` fabric.
class ColocatedNodes {
 public:
  /// Loads the weights on the calling thread. Errors: those of the parts.
  static Result<ColocatedNodes> start(const model::Checkpoint& checkpoint, NodeOptions options);
  ColocatedNodes(ColocatedNodes&&) noexcept = default;
  ~ColocatedNodes();

  engine::AttentionEngine& attention() const { return *attention_; }
  engine::ExpertEngine& expert() const { return *expert_; }
  const engine::ExpertPeer& expert_peer() const { return expert_peer_; }
  void stop();

 private:
  ColocatedNodes() = default;

  std::unique_ptr<engine::AttentionEngine> attention_;
  std::unique_ptr<engine::ExpertEngine> expert_;
  engine::ExpertPeer expert_peer_;
  std::unique_ptr<transport::PulseThread> pulse_;
  std::jthread thread_;
};

/// Loads the weights on the calling thread and starts the engine. Errors: those of the parts.
Result<ExpertNode> start_expert_node(const model::Checkpoint& checkpoint,
                                     const NodeOptions& options);
Result<AttentionNode> start_attention_node(const model::Checkpoint& checkpoint,
                                           const NodeOptions& options);
/// Makes the attention node use `expert` for all experts; returns when it is ready.
/// Errors: kDeadlineExceeded.
Status link_nodes(engine::AttentionEngine& attention, const engine::ExpertPeer& expert,
                  const model::ModelSpec& spec, Nanos deadline);

/// An ExpertPeer as a message between processes. Errors: kInvalidArgument.
std::string peer_to_message(const engine::ExpertPeer& peer);
Result<engine::ExpertPeer> peer_from_message(const std::string& message);

}  // namespace volley::benchmarks
