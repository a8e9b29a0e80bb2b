#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "attention_stage.h"
#include "modelled_router.h"
#include "modelled_time.h"
#include "volley/model/model_spec.h"

namespace volley::engine {

struct ModelledAttentionOptions {
  std::string name;
  uint32_t row_bytes = 0;  ///< Of a dispatch.
  uint32_t rows_max = 256;
};

/// Takes the modelled time of a layer when its attention is asked for, and that of a step with its
/// first head. Rows of messages are zeros. A token is a hash of the request's seed, of its position
/// and of the token before it, and never one that ends sequences.
class ModelledAttention final : public AttentionStage {
 public:
  ModelledAttention(const ModelledAttentionOptions& options, const model::ModelSpec& spec,
                    const ModelledCompute& compute);

  void begin_work(Nanos start) override { time_.begin(start); }
  void end_work(Nanos end) override { time_.end(end); }
  void combine(uint32_t, uint32_t, uint32_t, uint32_t, kernels::ConstRows) override {}
  std::span<const uint32_t> attention(uint32_t micro_batch, uint32_t layer,
                                      const scheduler::StepPlan& plan) override;
  void pack(uint32_t micro_batch, std::span<const uint32_t> rows, std::byte* first_row) override;
  void write_weights(uint32_t, uint32_t layer, std::span<const protocol::Entry>,
                     std::span<const uint32_t>, std::span<float> out) const override {
    std::ranges::fill(out, 1.0f / static_cast<float>(spec_.layers[layer].moe.top_k));
  }
  std::span<const scheduler::Chunk* const> head(uint32_t micro_batch,
                                                const scheduler::StepPlan& plan,
                                                uint32_t done) override;
  scheduler::BatchScheduler::Sampled sample(uint32_t index, const kernels::SamplingParams& params,
                                            kernels::SampleScratch& scratch) const override;
  size_t weight_bytes() const override { return 0; }
  size_t kv_bytes() const override { return 0; }

 private:
  int32_t draw(const kernels::SamplingParams& params, const scheduler::Chunk& chunk) const;

  const ModelledAttentionOptions options_;
  const model::ModelSpec spec_;
  const std::shared_ptr<const perf::StageTimes> times_;
  const ModelledRouter router_;
  ModelledTime time_;
  std::vector<uint32_t> chosen_;                      // [rows_max, top_k]
  std::vector<const scheduler::Chunk*> head_chunks_;  // Of the last head().
};

}  // namespace volley::engine
