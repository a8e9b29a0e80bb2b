#pragma once

// A model on one thread: the attention node's arithmetic and the expert kernel, with no scheduler
// and no transport between them. Tests use it to see every position's logits and every router's.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention_step.h"
#include "engine/goldens.h"
#include "kernels/cpu_kernels.h"
#include "volley/base/thread_pool.h"
#include "volley/model/weights.h"

namespace volley::engine {

class ModelRunner {
 public:
  /// What one run gave, for the positions that it computed logits of.
  struct Trace {
    Table logits;                      ///< [positions][vocab]
    std::vector<Table> router_logits;  ///< Per layer [positions][experts]
    /// Per layer [positions][top_k], ascending in each row.
    std::vector<std::vector<uint32_t>> experts;
    bool operator==(const Trace&) const = default;
  };
  enum class Emit { kEveryPosition, kLastOfStep };
  /// Stands for the wire: writes what the experts get to `output`, of `input`, the rows that the
  /// router saw; both [rows][hidden] of the model's dtype, in the order of the sequence.
  using Wire = std::function<void(kernels::ConstRows input, kernels::Rows output)>;

  /// Sequences have at most `tokens_max` tokens; `isa` as in select_cpu_kernels(). Reads all
  /// weights, some twice. Aborts on errors. `pre_reduce_nodes`: 0, the answers of all experts are
  /// combined; else the experts lie on so many nodes as default_experts() says, each node sums a
  /// row's answers of its own, by definition and not by the kernel, and the sums are combined.
  ModelRunner(const model::ModelSpec& spec, model::WeightSource& source, kernels::DType dtype,
              const std::string& isa, uint32_t tokens_max, uint32_t pre_reduce_nodes = 0);

  /// In place of a wire that changes nothing.
  void set_wire(Wire wire) { wire_ = std::move(wire); }
  /// The wire of fp8 dispatches.
  void use_fp8_dispatch();

  /// Runs one sequence from its start in steps of `step_tokens` (the last may be shorter), each
  /// using the KV cache of those before. kEveryPosition makes a chunk of every token; kLastOfStep
  /// makes one chunk of every step, which gives the logits of its last position. The router's
  /// logits and choices are of every position in both.
  Trace run(std::span<const int32_t> tokens, uint32_t step_tokens, Emit emit);

 private:
  void step(const scheduler::StepPlan& plan, Trace& trace);
  void experts(uint32_t layer, std::span<const uint32_t> chosen, uint32_t rows);
  /// Puts the nodes' sums in place of the answers of `layer`.
  void pre_reduce(uint32_t layer, std::span<const uint32_t> chosen, uint32_t rows);
  void record_routing(uint32_t layer, std::span<const uint32_t> chosen, uint32_t rows,
                      Trace& trace);

  const model::ModelSpec spec_;
  const kernels::DType dtype_;
  const uint32_t pre_reduce_nodes_;
  const kernels::CpuKernels& kernels_;
  ThreadPool pool_{1};
  model::AttentionWeights router_weights_;  // The step owns its own and shows nothing of it.
  model::ExpertWeights expert_weights_;
  std::unique_ptr<AttentionStep> step_;
  std::vector<uint32_t> blocks_;  // Of the one sequence, in no order.
  Matrix normed_;                 // [tokens_max][hidden] dtype
  Wire wire_;
  Matrix dispatched_;                // What wire_ made of normed_.
  Matrix packed_;                    // [tokens_max] rows of an fp8 dispatch.
  Matrix answer_;                    // [tokens_max * top_k][hidden] dtype
  std::vector<uint32_t> row_index_;  // 0, 1, ..., tokens_max - 1
  std::vector<float> weights_;       // [tokens_max * top_k], the router's; with pre_reduce_nodes_.
  Matrix router_logits_;             // [tokens_max][experts] f32
  Mapping workspace_;
};

}  // namespace volley::engine
