#pragma once

// The arithmetic of an attention node: what a Work item means in kernels. Owns the KV cache, the
// activations and the per-micro-batch state that lives from dispatch to combine. Knows no peers.

#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "kernels/sample/sample.h"
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

/// Thread: the engine thread.
class AttentionStep {
 public:
  static Result<std::unique_ptr<AttentionStep>> create(const AttentionStepOptions& options,
                                                       const model::ModelSpec& spec,
                                                       model::AttentionWeights weights,
                                                       const kernels::CpuKernels& kernels,
                                                       ThreadPool& pool);

  /// Adds the experts' answers for rows [begin, end); `answer_rows` is [(end - begin) * top_k].
  void combine(uint32_t micro_batch, uint32_t layer, uint32_t begin, uint32_t end,
               kernels::ConstRows answer_rows);
  /// Norm, QKV, RoPE, attention, output projection, norm, router (embedding first when layer is 0).
  /// Returns the chosen experts, [rows, top_k], ascending in each row.
  std::span<const uint32_t> attention(uint32_t micro_batch, uint32_t layer,
                                      const scheduler::StepPlan& plan);
  /// Writes rows of the micro-batch into a message, dispatch_row_bytes() apart.
  void pack(uint32_t micro_batch, std::span<const uint32_t> rows, std::byte* first_row);
  /// The router's weights of a message's entries; `rows` are the micro-batch's, as in pack().
  void write_weights(uint32_t micro_batch, uint32_t layer, std::span<const protocol::Entry> entries,
                     std::span<const uint32_t> rows, std::span<float> out) const;
  /// One row of logits, and the chunk whose next token they decide.
  struct HeadRow {
    const scheduler::Chunk* chunk;
    std::span<const float> logits;  ///< [vocab]
  };
  /// Final norm and head of the emitting chunks, a group of chunks at a time: `sample(rows)` is
  /// called for each group, in chunk order, with a span of HeadRow that is valid inside the call.
  template <class Sample>
  void head(uint32_t micro_batch, const scheduler::StepPlan& plan, Sample&& sample) {
    uint32_t done = 0;
    while (const uint32_t count = head_logits(micro_batch, plan, done)) {
      sample(std::span<const HeadRow>(head_rows_));
      done += count;
    }
  }

  size_t weight_bytes() const { return weights_.bytes(); }
  size_t kv_bytes() const { return kv_memory_.bytes().size(); }

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
  /// Logits of up to kHeadRows emitting chunks, skipping the first `done` of them; their number.
  uint32_t head_logits(uint32_t micro_batch, const scheduler::StepPlan& plan, uint32_t done);

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
  Matrix hidden_;                          // [rows_max][hidden] dtype
  Matrix qkv_;                             // [rows_max][(heads + 2 kv_heads) head_dim] f32
  Matrix query_;                           // [rows_max][heads head_dim] dtype
  Matrix attended_;                        // likewise
  Matrix router_logits_;                   // [rows_max][experts] f32
  Matrix logits_;                          // [kHeadRows][vocab] f32
  std::vector<HeadRow> head_rows_;         // Of the last head_logits().
  std::vector<const void*> row_pointers_;  // combine, pack and head: gathered inputs
  std::vector<void*> out_pointers_;
};

}  // namespace volley::engine
