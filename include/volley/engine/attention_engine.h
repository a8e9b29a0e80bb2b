#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "kernels/sample/sample.h"
#include "volley/base/status.h"
#include "volley/engine/cluster_update.h"
#include "volley/engine/modelled.h"
#include "volley/engine/profile.h"
#include "volley/engine/traffic.h"
#include "volley/model/weights.h"
#include "volley/scheduler/micro_batch_controller.h"
#include "volley/scheduler/sequence.h"
#include "volley/transport/fabric.h"

namespace volley {
class ThreadPool;
}

namespace volley::engine {

class EngineLoop;
class ExpertEngine;

struct AttentionEngineOptions {
  std::string name;
  Incarnation incarnation;
  kernels::DType dtype = kernels::DType::kBf16;  ///< Activations, KV cache and wire.
  /// Dispatches carry rows as E4M3 with a scale each (protocol/wire.h); the router and the residual
  /// see nothing of it. It changes bits, so all nodes of a cluster must have it or none.
  bool fp8_dispatch = false;
  uint32_t threads = 1;
  /// For ThreadPool: none, or one for each thread; the engine thread is pinned to the first.
  std::vector<uint32_t> cores{};
  /// The threads to compute with, instead of `threads` on `cores`: see run_colocated().
  std::shared_ptr<ThreadPool> pool{};
  uint32_t micro_batches = 2;              ///< m of the link geometry: the most that can be active.
  bool adaptive_micro_batches = false;     ///< Choose the active number from measured times.
  bool shares_cores_with_experts = false;  ///< Then one micro-batch is the best adaptive number.
  uint32_t tokens_per_step_max = 256;      ///< Per micro-batch.
  uint32_t sequences_max = 256;
  uint32_t waiting_max = 1024;
  uint32_t sequence_tokens_max = 2048;
  uint32_t kv_blocks = 0;           ///< 0: enough for sequences_max / 4 sequences of full length.
  protocol::LinkGeometry geometry;  ///< Of the fabric's links; see AttentionEngine::geometry().
  Nanos link_timeout = kSecond;
  size_t trace_capacity = 0;  ///< Spans that take_trace() returns at most: the last ones.
  /// Called on the engine thread after status().ready has changed; must not block.
  std::function<void()> on_ready_changed{};
};

/// Receives a sequence's outputs. Called on the engine thread, in order, and must not block; the
/// last call has `ended()`. After that call the engine never touches the sink again.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  virtual void on_output(const scheduler::SequenceOutput& output) = 0;
};

struct GenerationRequest {
  std::vector<int32_t> tokens;
  uint32_t max_new_tokens = 0;
  std::vector<int32_t> stop_tokens;
  kernels::SamplingParams sampling;
  Nanos deadline = 0;  ///< Monotonic; 0: none.
};

/// Measured times of one layer and micro-batch, for batches of about `rows` rows in decode steps.
struct MeasuredTimes {
  double rows = 0;
  Nanos attention = 0;  ///< T_a: on this node, with its share of head, sampling and bookkeeping.
  Nanos expert = 0;     ///< T_e: of the slowest expert node, as their answers say.
  Nanos transfer = 0;   ///< T_c: one way, wake-up included. 0: this size has shown none.
};

struct AttentionStatus {
  bool ready = false;
  std::string reason;  ///< Why not ready.
  uint32_t waiting = 0, running = 0, kv_blocks_free = 0, kv_blocks_total = 0;
  uint32_t links = 0, active_micro_batches = 0;
  uint64_t steps = 0, tokens_generated = 0, prefill_tokens = 0, preemptions = 0;
  scheduler::MicroBatchDecision micro_batches;  ///< describe() says it in words.
  /// By powers of two of rows, ascending; `rows` is 0 where nothing was measured.
  std::array<MeasuredTimes, scheduler::TimeCurve::kBuckets> measured{};
  size_t weight_bytes = 0, kv_bytes = 0, link_bytes = 0;
  Traffic traffic;
  ProfileSnapshot profile;  ///< Of the engine thread, at most some 100 ms old.
};

/// An attention node: KV cache, attention, router, dispatch, combine, head and sampling.
///
/// Threads: run() is the body of the engine thread, which owns the core, the fabric and the
/// kernels' pool. All other methods may be called from any thread; they cross to it through one
/// bounded mailbox.
class AttentionEngine {
 public:
  /// Allocates and touches everything the step path needs. Errors: kInvalidArgument (a limit that
  /// does not fit: names and values), kResourceExhausted (memory).
  static Result<std::unique_ptr<AttentionEngine>> create(const AttentionEngineOptions& options,
                                                         const model::ModelSpec& spec,
                                                         model::AttentionWeights weights,
                                                         const kernels::CpuKernels& kernels,
                                                         std::unique_ptr<transport::Fabric> fabric);
  /// An engine that takes the time of `compute` and makes tokens up: no weights, no KV memory. The
  /// tokens of a request are the same on every topology, and never end a sequence.
  /// `options.threads`, `cores` and
  /// `pool` are not used. Errors: kInvalidArgument.
  static Result<std::unique_ptr<AttentionEngine>> create_modelled(
      const AttentionEngineOptions& options, const model::ModelSpec& spec,
      const ModelledCompute& compute, std::unique_ptr<transport::Fabric> fabric);
  /// The link geometry of a cluster: m micro-batches, `rows_max` token rows a slot. It alone tells
  /// the engines where sums are made: kPreReduce gives fewer bytes and bits that depend on the
  /// placement of the experts.
  static protocol::LinkGeometry geometry(const model::ModelSpec& spec, uint32_t micro_batches,
                                         uint32_t rows_max, kernels::DType dtype,
                                         bool fp8_dispatch = false,
                                         protocol::Combine combine = protocol::Combine::kExact);
  ~AttentionEngine();

  /// Queues a sequence. On OK the sink gets everything, its end included; it must live until then.
  /// Errors: kResourceExhausted (queue full), kUnavailable (no complete expert map, stopping),
  /// kInvalidArgument. May report the latter two through the sink when they are found on the engine
  /// thread.
  Result<SequenceId> submit(GenerationRequest request, OutputSink* sink);
  /// Ends the sequence with kCancelled; everything it holds is free within one step. At most once
  /// per sequence: the mailbox is sized for that.
  void cancel(SequenceId id);
  /// Test hook: preempts a running sequence, which is computed again.
  void preempt(SequenceId id);
  /// The expert pool changed.
  void update_cluster(ClusterUpdate update);
  AttentionStatus status() const;
  /// The spans of the engine thread, oldest first. Only when run() has returned.
  std::vector<SpanRecord> take_trace() const;

  void run();
  /// Refuses new sequences; run() returns when those it has are finished or at `deadline`, which
  /// ends the rest with kUnavailable.
  void stop(Nanos deadline);
  /// Tells the peers that this node lives; silent once run() has not turned for half a minute.
  /// Called a few times per link timeout, by a thread of its own.
  void pulse();

 private:
  friend void run_colocated(AttentionEngine& attention, ExpertEngine& expert);
  EngineLoop& loop();

  struct Impl;
  explicit AttentionEngine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley::engine
