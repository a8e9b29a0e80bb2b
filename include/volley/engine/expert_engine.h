#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "volley/base/status.h"
#include "volley/engine/modelled.h"
#include "volley/engine/profile.h"
#include "volley/engine/traffic.h"
#include "volley/model/weights.h"
#include "volley/transport/fabric.h"

namespace volley {
class ThreadPool;
}

namespace volley::engine {

class EngineLoop;
class AttentionEngine;

struct ExpertEngineOptions {
  std::string name;
  Incarnation incarnation;
  kernels::DType dtype = kernels::DType::kBf16;
  bool fp8_dispatch = false;  ///< As AttentionEngineOptions.
  uint32_t threads = 1;
  /// For ThreadPool: none, or one for each thread; the engine thread is pinned to the first.
  std::vector<uint32_t> cores{};
  /// The threads to compute with, instead of `threads` on `cores`: see run_colocated().
  std::shared_ptr<ThreadPool> pool{};
  protocol::LinkGeometry geometry;  ///< Of the fabric's links.
  uint32_t links_max = 8;
  Nanos gather_window_max = 2 * kMillisecond;
  Nanos link_timeout = kSecond;
  size_t trace_capacity = 0;  ///< Spans that take_trace() returns at most: the last ones.
};

struct ExpertStatus {
  uint32_t links = 0;
  uint64_t runs = 0, dispatches = 0, mergeable_runs = 0, merged_runs = 0, refusals = 0;
  uint64_t rows = 0;      ///< (token, expert) pairs computed.
  Nanos expert_time = 0;  ///< Measured T_e of one run.
  size_t weight_bytes = 0, link_bytes = 0;
  Traffic traffic;
  ProfileSnapshot profile;  ///< Of the engine thread, at most some 100 ms old.
};

/// An expert node: gathers dispatches of one layer and answers each with a row per (token, expert),
/// or, where the geometry says kPreReduce, with their weighted sum per token.
///
/// Threads: as AttentionEngine.
class ExpertEngine {
 public:
  static Result<std::unique_ptr<ExpertEngine>> create(const ExpertEngineOptions& options,
                                                      const model::ModelSpec& spec,
                                                      model::ExpertWeights weights,
                                                      const kernels::CpuKernels& kernels,
                                                      std::unique_ptr<transport::Fabric> fabric);
  /// An engine that answers after the time of `compute`, with rows of whatever its slots hold; it
  /// serves `experts` without weights. `options.threads`,
  /// `cores` and `pool` are not used.
  /// Errors: kInvalidArgument (an expert or a layer that does not exist).
  static Result<std::unique_ptr<ExpertEngine>> create_modelled(
      const ExpertEngineOptions& options, const model::ModelSpec& spec,
      std::span<const model::ExpertWeights::Key> experts, const ModelledCompute& compute,
      std::unique_ptr<transport::Fabric> fabric);
  ~ExpertEngine();

  ExpertStatus status() const;
  /// The spans of the engine thread, oldest first. Only when run() has returned.
  std::vector<SpanRecord> take_trace() const;
  void run();
  /// run() returns once all attention nodes have closed their links, or none is inside a step and
  /// none has sent anything for a link timeout and at least a second since stop(), or at
  /// `deadline`.
  void stop(Nanos deadline);
  /// Tells the peers that this node lives; silent once run() has not turned for half a minute.
  /// Called a few times per link timeout, by a thread of its own.
  void pulse();

 private:
  friend void run_colocated(AttentionEngine& attention, ExpertEngine& expert);
  EngineLoop& loop();

  struct Impl;
  explicit ExpertEngine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley::engine
