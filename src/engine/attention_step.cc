#include "attention_step.h"

#include <algorithm>
#include <cmath>

#include "volley/base/check.h"
#include "volley/base/digest.h"
#include "volley/engine/dispatch_rows.h"

namespace volley::engine {

using kernels::dtype_bytes;
using kernels::kKvBlockTokens;

Result<std::unique_ptr<AttentionStep>> AttentionStep::create(const AttentionStepOptions& options,
                                                             const model::ModelSpec& spec,
                                                             model::AttentionWeights weights,
                                                             const kernels::CpuKernels& kernels,
                                                             ThreadPool& pool) {
  std::unique_ptr<AttentionStep> step(
      new AttentionStep(options, spec, std::move(weights), kernels, pool));
  VOLLEY_RETURN_IF_ERROR(step->allocate());
  return step;
}

AttentionStep::AttentionStep(const AttentionStepOptions& options, const model::ModelSpec& spec,
                             model::AttentionWeights weights, const kernels::CpuKernels& kernels,
                             ThreadPool& pool)
    : options_(options),
      spec_(spec),
      weights_(std::move(weights)),
      kernels_(kernels),
      pool_(pool) {}

Status AttentionStep::allocate() {
  const uint32_t rows = options_.rows_max;
  const size_t element = dtype_bytes(options_.dtype);
  const uint32_t head_dim = spec_.layers.front().attention.head_dim;
  const uint32_t kv_heads = spec_.layers.front().attention.kv_heads;
  uint32_t heads_max = 0, experts_max = 0, top_k_max = 0;
  for (uint32_t i = 0; i < spec_.layer_count(); ++i) {
    const model::AttentionSpec& attention = spec_.layers[i].attention;
    heads_max = std::max(heads_max, attention.heads);
    experts_max = std::max(experts_max, spec_.layers[i].moe.experts);
    top_k_max = std::max(top_k_max, spec_.layers[i].moe.top_k);
    if (attention.head_dim != head_dim || attention.kv_heads != kv_heads) {
      return failed_precondition(
          "layer {} has {} KV heads of {}, layer 0 has {} of {}; layers must agree", i,
          attention.kv_heads, attention.head_dim, kv_heads, head_dim);
    }
  }
  const uint32_t query_max = heads_max * head_dim;
  const uint32_t qkv_max = (heads_max + 2 * kv_heads) * head_dim;
  const size_t kv_bytes = size_t{2} * spec_.layer_count() * options_.kv_blocks * kv_heads *
                          head_dim * kKvBlockTokens * element;
  VOLLEY_ASSIGN_OR_RETURN(kv_memory_, Mapping::allocate(kv_bytes));
  std::memset(kv_memory_.bytes().data(), 0, kv_bytes);

  // As the reference implementations do: the exponent and the power in f32 precision, from f64.
  for (uint32_t i = 0; i < head_dim; i += 2) {
    inverse_frequency_.push_back(static_cast<float>(
        1.0 / std::pow(spec_.rope_theta, static_cast<double>(i) / static_cast<double>(head_dim))));
  }

  micro_batches_.resize(options_.micro_batches);
  for (MicroBatch& batch : micro_batches_) {
    VOLLEY_ASSIGN_OR_RETURN(batch.residual,
                            Matrix::create(rows, size_t{spec_.hidden} * sizeof(float)));
    VOLLEY_ASSIGN_OR_RETURN(batch.normed, Matrix::create(rows, spec_.hidden * element));
    batch.expert.resize(size_t{rows} * top_k_max);
    batch.weight.resize(size_t{rows} * top_k_max);
    batch.cosine.resize(size_t{rows} * head_dim / 2);
    batch.sine.resize(size_t{rows} * head_dim / 2);
    batch.kv_position.reserve(rows);
    batch.attention_row.reserve(rows);
  }
  VOLLEY_ASSIGN_OR_RETURN(hidden_, Matrix::create(rows, spec_.hidden * element));
  VOLLEY_ASSIGN_OR_RETURN(qkv_, Matrix::create(rows, size_t{qkv_max} * sizeof(float)));
  VOLLEY_ASSIGN_OR_RETURN(query_, Matrix::create(rows, query_max * element));
  VOLLEY_ASSIGN_OR_RETURN(attended_, Matrix::create(rows, query_max * element));
  VOLLEY_ASSIGN_OR_RETURN(router_logits_,
                          Matrix::create(rows, size_t{experts_max} * sizeof(float)));
  VOLLEY_ASSIGN_OR_RETURN(logits_, Matrix::create(kHeadRows, size_t{spec_.vocab} * sizeof(float)));
  if (options_.combine == protocol::Combine::kPreReduce) {
    ones_.assign(size_t{rows} * top_k_max, 1.0f);
  }
  tokens_.reserve(rows);
  positions_.reserve(rows);
  head_chunks_.reserve(kHeadRows);
  row_pointers_.reserve(std::max(rows, kHeadRows));
  out_pointers_.reserve(std::max(rows, kHeadRows));
  return ok_status();
}

kernels::KvCacheView AttentionStep::kv_view(uint32_t layer) const {
  const model::AttentionSpec& attention = spec_.layers[layer].attention;
  kernels::KvCacheView view{.keys = nullptr,
                            .values = nullptr,
                            .block_count = options_.kv_blocks,
                            .kv_heads = attention.kv_heads,
                            .head_dim = attention.head_dim,
                            .dtype = options_.dtype};
  const size_t pool = view.pool_bytes();
  // Offsets assume equal layers, which allocate() has checked.
  view.keys = kv_memory_.bytes().data() + 2 * layer * pool;
  view.values = view.keys + pool;
  return view;
}

void AttentionStep::begin(MicroBatch& batch, const scheduler::StepPlan& plan) {
  tokens_.clear();
  positions_.clear();
  batch.kv_position.clear();
  batch.attention_row.clear();
  for (const scheduler::Chunk& chunk : plan.chunks) {
    VOLLEY_CHECK(chunk.first_row == tokens_.size());
    for (uint32_t i = 0; i < chunk.row_count; ++i) {
      const uint32_t position = chunk.start_position + i;
      tokens_.push_back(chunk.tokens[i]);
      positions_.push_back(position);
      batch.kv_position.push_back(
          {.block = chunk.blocks[position / kKvBlockTokens], .offset = position % kKvBlockTokens});
      batch.attention_row.push_back({.blocks = chunk.blocks.data(), .position = position});
    }
  }
  VOLLEY_CHECK(tokens_.size() == plan.row_count && plan.row_count <= options_.rows_max);
  kernels::rope_angles(positions_, inverse_frequency_, batch.cosine.data(), batch.sine.data());
  kernels_.embed({.table = weights_.embedding(),
                  .token = tokens_,
                  .output = batch.residual.rows(0, plan.row_count)},
                 pool_);
}

std::span<const uint32_t> AttentionStep::attention(uint32_t micro_batch, uint32_t layer,
                                                   const scheduler::StepPlan& plan) {
  MicroBatch& batch = micro_batches_[micro_batch];
  if (layer == 0) begin(batch, plan);
  const model::AttentionWeights::Layer& weights = weights_.layer(layer);
  const model::LayerSpec& spec = spec_.layers[layer];
  const uint32_t rows = plan.row_count;
  const kernels::DType dtype = options_.dtype;
  const kernels::KvCacheView cache = kv_view(layer);

  kernels_.rms_norm({.input = batch.residual.const_rows(0, rows),
                     .weight = weights.attention_norm.data(),
                     .epsilon = spec_.rms_epsilon,
                     .width = spec_.hidden,
                     .output = hidden_.rows(0, rows),
                     .output_dtype = dtype},
                    pool_);
  kernels_.gemm({.input = hidden_.const_rows(0, rows),
                 .weight = weights.qkv,
                 .output = qkv_.rows(0, rows),
                 .output_dtype = kernels::DType::kF32},
                pool_);
  kernels_.rope_append({.qkv = qkv_.const_rows(0, rows),
                        .cosine = batch.cosine.data(),
                        .sine = batch.sine.data(),
                        .heads = spec.attention.heads,
                        .query = query_.rows(0, rows),
                        .cache = cache,
                        .position = batch.kv_position,
                        .query_norm = weights.query_norm.data(),
                        .key_norm = weights.key_norm.data(),
                        .norm_epsilon = spec_.rms_epsilon},
                       pool_);
  kernels_.attention({.query = query_.const_rows(0, rows),
                      .output = attended_.rows(0, rows),
                      .row = batch.attention_row,
                      .heads = spec.attention.heads,
                      .cache = cache,
                      .scale = 1.0f / std::sqrt(static_cast<float>(spec.attention.head_dim)),
                      .window = spec.attention.window},
                     pool_);
  kernels_.gemm({.input = attended_.const_rows(0, rows),
                 .weight = weights.output,
                 .output = batch.residual.rows(0, rows),
                 .output_dtype = kernels::DType::kF32,
                 .add_to_output = true},
                pool_);
  kernels_.rms_norm({.input = batch.residual.const_rows(0, rows),
                     .weight = weights.ffn_norm.data(),
                     .epsilon = spec_.rms_epsilon,
                     .width = spec_.hidden,
                     .output = batch.normed.rows(0, rows),
                     .output_dtype = dtype},
                    pool_);
  kernels_.gemm({.input = batch.normed.const_rows(0, rows),
                 .weight = weights.router,
                 .output = router_logits_.rows(0, rows),
                 .output_dtype = kernels::DType::kF32},
                pool_);
  kernels_.router({.logits = router_logits_.const_rows(0, rows),
                   .experts = spec.moe.experts,
                   .top_k = spec.moe.top_k,
                   .normalize = spec.moe.normalize_top_k,
                   .expert = batch.expert.data(),
                   .weight = batch.weight.data()},
                  pool_);
  return {batch.expert.data(), size_t{rows} * spec.moe.top_k};
}

void AttentionStep::combine(uint32_t micro_batch, uint32_t layer, uint32_t begin, uint32_t end,
                            kernels::ConstRows answer_rows) {
  MicroBatch& batch = micro_batches_[micro_batch];
  const uint32_t top_k = spec_.layers[layer].moe.top_k;
  const float* const weight =
      options_.combine == protocol::Combine::kPreReduce ? ones_.data() : batch.weight.data();
  kernels_.combine({.residual = batch.residual.rows(begin, end - begin),
                    .expert_row = answer_rows,
                    .weight = weight + size_t{begin} * top_k,
                    .top_k = top_k,
                    .width = spec_.hidden,
                    .dtype = options_.dtype},
                   pool_);
}

void AttentionStep::pack(uint32_t micro_batch, std::span<const uint32_t> rows,
                         std::byte* first_row) {
  const MicroBatch& batch = micro_batches_[micro_batch];
  const size_t row_bytes = dispatch_row_bytes(spec_.hidden, options_.dtype, options_.fp8_dispatch);
  row_pointers_.clear();
  out_pointers_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    row_pointers_.push_back(batch.normed.row(rows[i]));
    out_pointers_.push_back(first_row + i * row_bytes);
  }
  if (!options_.fp8_dispatch) {
    kernels_.pack({.input = row_pointers_, .output = out_pointers_, .row_bytes = row_bytes}, pool_);
    return;
  }
  kernels_.pack_e4m3({.input = row_pointers_,
                      .output = out_pointers_,
                      .width = spec_.hidden,
                      .dtype = options_.dtype,
                      .row_bytes = row_bytes},
                     pool_);
}

void AttentionStep::write_weights(uint32_t micro_batch, uint32_t layer,
                                  std::span<const protocol::Entry> entries,
                                  std::span<const uint32_t> rows, std::span<float> out) const {
  const MicroBatch& batch = micro_batches_[micro_batch];
  const uint32_t top_k = spec_.layers[layer].moe.top_k;
  VOLLEY_CHECK(out.size() == entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    const size_t first = size_t{rows[entries[i].row]} * top_k;
    size_t j = first;
    while (batch.expert[j] != entries[i].expert) {
      ++j;
      VOLLEY_CHECK(j < first + top_k);
    }
    out[i] = batch.weight[j];
  }
}

std::span<const scheduler::Chunk* const> AttentionStep::head(uint32_t micro_batch,
                                                             const scheduler::StepPlan& plan,
                                                             uint32_t done) {
  MicroBatch& batch = micro_batches_[micro_batch];
  head_chunks_.clear();
  row_pointers_.clear();
  uint32_t seen = 0;
  for (const scheduler::Chunk& chunk : plan.chunks) {
    if (head_chunks_.size() == kHeadRows) break;
    if (!chunk.emits || seen++ < done) continue;
    head_chunks_.push_back(&chunk);
    row_pointers_.push_back(batch.residual.row(chunk.first_row + chunk.row_count - 1));
  }
  const auto count = static_cast<uint32_t>(head_chunks_.size());
  // rows_max may be below kHeadRows, but a step has at most one emitting chunk per row.
  if (count == 0) return {};
  kernels_.rms_norm({.input = row_pointers_,
                     .weight = weights_.final_norm().data(),
                     .epsilon = spec_.rms_epsilon,
                     .width = spec_.hidden,
                     .output = hidden_.rows(0, count),
                     .output_dtype = options_.dtype},
                    pool_);
  kernels_.gemm({.input = hidden_.const_rows(0, count),
                 .weight = weights_.head(),
                 .output = logits_.rows(0, count),
                 .output_dtype = kernels::DType::kF32},
                pool_);
  return head_chunks_;
}

scheduler::BatchScheduler::Sampled AttentionStep::sample(uint32_t index,
                                                         const kernels::SamplingParams& params,
                                                         kernels::SampleScratch& scratch) const {
  const std::span<const float> row = logits(index);
  const kernels::SampledToken token =
      kernels_.sample_token(row, params, next_position(*head_chunks_[index]), scratch);
  return {.token = token.token,
          .logprob = token.logprob,
          .logits_digest = digest64(std::as_bytes(row))};
}

}  // namespace volley::engine
