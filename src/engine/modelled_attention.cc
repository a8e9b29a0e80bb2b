#include "modelled_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "volley/base/check.h"
#include "volley/base/digest.h"
#include "volley/base/random.h"

namespace volley::engine {
namespace {

// Tries to draw a token that ends no sequence. A model has a handful of those among thousands.
constexpr uint32_t kDraws = 16;

/// Positions that rows [start, start + rows) of a sequence see, each itself included.
double context_tokens(uint64_t start, uint64_t rows, uint32_t window) {
  const auto below = [](uint64_t count) {  // 1 + ... + count
    return static_cast<double>(count) * static_cast<double>(count + 1) / 2;
  };
  const uint64_t end = start + rows;
  if (window == 0 || end <= window) return below(end) - below(start);
  const uint64_t full = std::min(end - window, rows);  // Rows that see the whole window.
  const uint64_t rest = end - full;
  return static_cast<double>(full) * window + (rest > start ? below(rest) - below(start) : 0);
}

perf::StepLoad load_of(const scheduler::StepPlan& plan, uint32_t window) {
  perf::StepLoad load{.rows = static_cast<double>(plan.row_count)};
  for (const scheduler::Chunk& chunk : plan.chunks) {
    load.context_tokens += context_tokens(chunk.start_position, chunk.row_count, window);
    if (chunk.emits) ++load.emitting_rows;
  }
  return load;
}

}  // namespace

ModelledAttention::ModelledAttention(const ModelledAttentionOptions& options,
                                     const model::ModelSpec& spec, const ModelledCompute& compute)
    : options_(options),
      spec_(spec),
      times_(compute.times),
      router_(compute.seed, compute.expert_skew, spec.layer_count(),
              spec.layers.front().moe.experts, spec.layers.front().moe.top_k),
      time_(options.name, compute.clock),
      chosen_(size_t{options.rows_max} * spec.layers.front().moe.top_k) {
  head_chunks_.reserve(options.rows_max);
}

std::span<const uint32_t> ModelledAttention::attention(uint32_t, uint32_t layer,
                                                       const scheduler::StepPlan& plan) {
  VOLLEY_CHECK(plan.row_count <= options_.rows_max);
  const uint32_t top_k = spec_.layers[layer].moe.top_k;
  uint32_t* chosen = chosen_.data();
  for (const scheduler::Chunk& chunk : plan.chunks) {
    for (uint32_t i = 0; i < chunk.row_count; ++i, chosen += top_k) {
      router_.choose(layer, chunk.start_position + i, chunk.tokens[i], chosen);
    }
  }
  time_.take(times_->attention_layer(load_of(plan, spec_.layers[layer].attention.window)));
  return {chosen_.data(), chosen};
}

void ModelledAttention::pack(uint32_t, std::span<const uint32_t> rows, std::byte* first_row) {
  std::memset(first_row, 0, rows.size() * options_.row_bytes);
}

std::span<const scheduler::Chunk* const> ModelledAttention::head(uint32_t,
                                                                 const scheduler::StepPlan& plan,
                                                                 uint32_t done) {
  head_chunks_.clear();
  if (done > 0) return {};
  for (const scheduler::Chunk& chunk : plan.chunks) {
    if (chunk.emits) head_chunks_.push_back(&chunk);
  }
  time_.take(times_->attention_step(load_of(plan, spec_.layers.back().attention.window)));
  return head_chunks_;
}

int32_t ModelledAttention::draw(const kernels::SamplingParams& params,
                                const scheduler::Chunk& chunk) const {
  const uint64_t position = next_position(chunk);
  const auto before = static_cast<uint32_t>(chunk.tokens.back());
  int32_t token = 0;
  for (uint32_t i = 0; i < kDraws; ++i) {
    const auto word = philox4x32(
        {static_cast<uint32_t>(position), before, i, 0},
        {static_cast<uint32_t>(params.seed), static_cast<uint32_t>(params.seed >> 32)})[0];
    token = static_cast<int32_t>(word % spec_.vocab);
    if (std::ranges::find(spec_.eos_tokens, token) == spec_.eos_tokens.end()) break;
  }
  return token;
}

scheduler::BatchScheduler::Sampled ModelledAttention::sample(uint32_t index,
                                                             const kernels::SamplingParams& params,
                                                             kernels::SampleScratch&) const {
  const scheduler::Chunk& chunk = *head_chunks_[index];
  const int32_t token = draw(params, chunk);
  return {.token = token,
          .logprob = -std::log(static_cast<float>(spec_.vocab)),
          .logits_digest = digest64(std::as_bytes(std::span(&token, 1)), next_position(chunk))};
}

}  // namespace volley::engine
