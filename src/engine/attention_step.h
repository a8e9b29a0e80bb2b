#pragma once

// The arithmetic of an attention node: what a Work item means in the kernels of the CPU backend.
// Owns the KV cache, the activations and the per-micro-batch state that lives from dispatch to
// combine. Knows no peers.

#include <memory>
#include <span>
#include <vector>

#include "attention_stage.h"
#include "kernels/cpu_kernels.h"
#include "matrix.h"
#include "volley/base/thread_pool.h"
#include "volley/model/weights.h"
#include "volley/scheduler/attention_core.h"

namespace volley::engine {

struct AttentionStepOptions {
  kernels::DType dtype = kernels::DType::kBf16;
  bool fp8_dispatch = false;
  /// kPreReduce: answers have the router's weights in them already.
  protocol::Combine combine = protocol::Combine::kExact;
  uint32_t micro_batches = 1;
  uint32_t rows_max = 256;  ///< Token budget of a micro-batch step.
  uint32_t kv_blocks = 0;
};

class AttentionStep final : public AttentionStage {
 public:
  static Result<std::unique_ptr<AttentionStep>> create(const AttentionStepOptions& options,
                                                       const model::ModelSpec& spec,
                                                       model::AttentionWeights weights,
                                                       const kernels::CpuKernels& kernels,
                                                       ThreadPool& pool);

  void begin_work(Nanos) override {}
  void end_work(Nanos) override {}
  void combine(uint32_t micro_batch, uint32_t layer, uint32_t begin, uint32_t end,
               kernels::ConstRows answer_rows) override;
  std::span<const uint32_t> attention(uint32_t micro_batch, uint32_t layer,
                                      const scheduler::StepPlan& plan) override;
  void pack(uint32_t micro_batch, std::span<const uint32_t> rows, std::byte* first_row) override;
  void write_weights(uint32_t micro_batch, uint32_t layer, std::span<const protocol::Entry> entries,
                     std::span<const uint32_t> rows, std::span<float> out) const override;
  std::span<const scheduler::Chunk* const> head(uint32_t micro_batch,
                                                const scheduler::StepPlan& plan,
                                                uint32_t done) override;
  /// Those of chunk `index` of the last head(), [vocab]; valid until the next one.
  std::span<const float> logits(uint32_t index) const {
    return {logits_.row_as<float>(index), spec_.vocab};
  }
  scheduler::BatchScheduler::Sampled sample(uint32_t index, const kernels::SamplingParams& params,
                                            kernels::SampleScratch& scratch) const override;

  size_t weight_bytes() const override { return weights_.bytes(); }
  size_t kv_bytes() const override { return kv_memory_.bytes().size(); }

 private:
  struct MicroBatch {
    Matrix residual;                  // [rows_max][hidden] f32
    Matrix normed;                    // [rows_max][hidden] dtype; what is dispatched
    std::vector<uint32_t> expert;     // [rows_max, top_k]
    std::vector<float> weight;        // [rows_max, top_k]
    std::vector<float> cosine, sine;  // [rows_max, head_dim / 2]
    std::vector<kernels::KvPosition> kv_position;
    std::vector<kernels::AttentionRow> attention_row;
  };

  AttentionStep(const AttentionStepOptions& options, const model::ModelSpec& spec,
                model::AttentionWeights weights, const kernels::CpuKernels& kernels,
                ThreadPool& pool);
  Status allocate();
  void begin(MicroBatch& batch, const scheduler::StepPlan& plan);
  kernels::KvCacheView kv_view(uint32_t layer) const;

  // Rows of logits computed at a time: bounds their memory, and is wide enough that the head's
  // weights are read once for most steps.
  static constexpr uint32_t kHeadRows = 64;

  const AttentionStepOptions options_;
  const model::ModelSpec spec_;
  const model::AttentionWeights weights_;
  const kernels::CpuKernels& kernels_;
  ThreadPool& pool_;

  Mapping kv_memory_;  // [layers][keys, values] of KvCacheView::pool_bytes()
  std::vector<MicroBatch> micro_batches_;
  std::vector<float> inverse_frequency_;
  std::vector<float> ones_;  // [rows_max, top_k], the weights of answers that are sums.

  // Temporaries of one call.
  std::vector<int32_t> tokens_;
  std::vector<uint32_t> positions_;
  Matrix hidden_;         // [rows_max][hidden] dtype
  Matrix qkv_;            // [rows_max][(heads + 2 kv_heads) head_dim] f32
  Matrix query_;          // [rows_max][heads head_dim] dtype
  Matrix attended_;       // likewise
  Matrix router_logits_;  // [rows_max][experts] f32
  Matrix logits_;         // [kHeadRows][vocab] f32
  std::vector<const scheduler::Chunk*> head_chunks_;  // Of the last head().
  std::vector<const void*> row_pointers_;             // combine, pack and head: gathered inputs
  std::vector<void*> out_pointers_;
};

}  // namespace volley::engine
