#pragma once

// What an attention node computes, as its engine sees it: by kernels (attention_step.h), or as time
// that passes (modelled_attention.h).

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/common/types.h"
#include "kernels/sample/sample.h"
#include "volley/protocol/wire.h"
#include "volley/scheduler/attention_core.h"

namespace volley::engine {

/// Thread: the engine thread, but for sample().
class AttentionStage {
 public:
  virtual ~AttentionStage() = default;

  /// Around the calls for one Work item, with the times of the engine's profile: what lies between
  /// is the node's computation, with the engine's own share.
  virtual void begin_work(Nanos start) = 0;
  virtual void end_work(Nanos end) = 0;

  /// Adds the experts' answers for rows [begin, end); `answer_rows` is [(end - begin) * top_k].
  virtual void combine(uint32_t micro_batch, uint32_t layer, uint32_t begin, uint32_t end,
                       kernels::ConstRows answer_rows) = 0;
  /// Norm, QKV, RoPE, attention, output projection, norm, router (embedding first when layer is 0).
  /// Returns the chosen experts, [rows, top_k], ascending in each row.
  virtual std::span<const uint32_t> attention(uint32_t micro_batch, uint32_t layer,
                                              const scheduler::StepPlan& plan) = 0;
  /// Writes rows of the micro-batch into a message, dispatch_row_bytes() apart.
  virtual void pack(uint32_t micro_batch, std::span<const uint32_t> rows, std::byte* first_row) = 0;
  /// The router's weights of a message's entries, for expert nodes that sum up; `rows` are the
  /// micro-batch's, as in pack().
  virtual void write_weights(uint32_t micro_batch, uint32_t layer,
                             std::span<const protocol::Entry> entries,
                             std::span<const uint32_t> rows, std::span<float> out) const = 0;
  /// Final norm and head of some emitting chunks, in order, after the first `done` of the step's.
  /// Returns those chunks, none when all are done; valid until the next call.
  virtual std::span<const scheduler::Chunk* const> head(uint32_t micro_batch,
                                                        const scheduler::StepPlan& plan,
                                                        uint32_t done) = 0;
  /// Draws the next token of chunk `index` of the last head(). Several threads may call it, each
  /// with a scratch of its own.
  virtual scheduler::BatchScheduler::Sampled sample(uint32_t index,
                                                    const kernels::SamplingParams& params,
                                                    kernels::SampleScratch& scratch) const = 0;

  virtual size_t weight_bytes() const = 0;
  virtual size_t kv_bytes() const = 0;
};

/// Where the token stands that an emitting chunk decides: after its last row.
inline uint64_t next_position(const scheduler::Chunk& chunk) {
  return uint64_t{chunk.start_position} + chunk.row_count;
}

}  // namespace volley::engine
