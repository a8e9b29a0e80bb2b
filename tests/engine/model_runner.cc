#include "model_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/must.h"
#include "kernels/common/elements.h"
#include "volley/base/check.h"

namespace volley::engine {
namespace {

using kernels::dtype_bytes;
using kernels::kKvBlockTokens;

std::vector<model::ExpertWeights::Key> all_experts(const model::ModelSpec& spec) {
  std::vector<model::ExpertWeights::Key> keys;
  for (uint32_t layer = 0; layer < spec.layer_count(); ++layer) {
    for (uint32_t expert = 0; expert < spec.layers[layer].moe.experts; ++expert) {
      keys.push_back({.layer = layer, .expert = expert});
    }
  }
  return keys;
}

}  // namespace

ModelRunner::ModelRunner(const model::ModelSpec& spec, model::WeightSource& source,
                         kernels::DType dtype, const std::string& isa, uint32_t tokens_max,
                         uint32_t pre_reduce_nodes)
    : spec_(spec),
      dtype_(dtype),
      pre_reduce_nodes_(pre_reduce_nodes),
      kernels_(*must(kernels::select_cpu_kernels(isa))),
      router_weights_(must(model::AttentionWeights::load(spec, source, dtype))),
      expert_weights_(must(model::ExpertWeights::load(spec, source, dtype, all_experts(spec)))) {
  const uint32_t block_count = (tokens_max + kKvBlockTokens - 1) / kKvBlockTokens;
  // Backwards, and from the second: a table that is ignored gives other results.
  for (uint32_t i = 0; i < block_count; ++i) blocks_.push_back(block_count - i);
  step_ = must(AttentionStep::create(
      {.dtype = dtype,
       .combine = pre_reduce_nodes == 0 ? protocol::Combine::kExact : protocol::Combine::kPreReduce,
       .micro_batches = 1,
       .rows_max = tokens_max,
       .kv_blocks = block_count + 1},
      spec_, must(model::AttentionWeights::load(spec, source, dtype)), kernels_, pool_));
  uint32_t top_k = 0, experts = 0, ffn = 0;
  for (const model::LayerSpec& layer : spec_.layers) {
    top_k = std::max(top_k, layer.moe.top_k);
    experts = std::max(experts, layer.moe.experts);
    ffn = std::max(ffn, layer.moe.ffn);
  }
  row_index_.resize(tokens_max);
  std::iota(row_index_.begin(), row_index_.end(), 0u);
  const size_t row_bytes = spec_.hidden * dtype_bytes(dtype);
  normed_ = must(Matrix::create(tokens_max, row_bytes));
  dispatched_ = must(Matrix::create(tokens_max, row_bytes));
  packed_ = must(Matrix::create(tokens_max, protocol::e4m3_row_bytes(spec_.hidden)));
  answer_ = must(Matrix::create(tokens_max * top_k, row_bytes));
  weights_.resize(size_t{tokens_max} * top_k);
  router_logits_ = must(Matrix::create(tokens_max, experts * sizeof(float)));
  workspace_ = must(Mapping::allocate(
      kernels::grouped_ffn_workspace_bytes(size_t{tokens_max} * top_k, ffn, dtype)));
}

void ModelRunner::use_fp8_dispatch() {
  wire_ = [this](kernels::ConstRows input, kernels::Rows output) {
    const auto rows = static_cast<uint32_t>(input.size());
    const size_t row_bytes = protocol::e4m3_row_bytes(spec_.hidden);
    kernels_.pack_e4m3({.input = input,
                        .output = packed_.rows(0, rows),
                        .width = spec_.hidden,
                        .dtype = dtype_,
                        .row_bytes = row_bytes},
                       pool_);
    kernels_.unpack_e4m3({.input = packed_.const_rows(0, rows),
                          .output = output,
                          .width = spec_.hidden,
                          .dtype = dtype_,
                          .row_bytes = row_bytes},
                         pool_);
  };
}

ModelRunner::Trace ModelRunner::run(std::span<const int32_t> tokens, uint32_t step_tokens,
                                    Emit emit) {
  Trace trace;
  trace.logits.cols = spec_.vocab;
  for (const model::LayerSpec& layer : spec_.layers) {
    trace.router_logits.push_back({.cols = layer.moe.experts, .values = {}});
    trace.experts.emplace_back();
  }
  for (uint32_t begin = 0; begin < tokens.size(); begin += step_tokens) {
    const auto rows = std::min(step_tokens, static_cast<uint32_t>(tokens.size()) - begin);
    const uint32_t chunk_rows = emit == Emit::kEveryPosition ? 1 : rows;
    scheduler::StepPlan plan{.chunks = {}, .row_count = rows};
    for (uint32_t row = 0; row < rows; row += chunk_rows) {
      plan.chunks.push_back({.sequence = SequenceId{1},
                             .first_row = row,
                             .row_count = chunk_rows,
                             .start_position = begin + row,
                             .emits = true,
                             .tokens = tokens.subspan(begin + row, chunk_rows),
                             .blocks = blocks_});
    }
    step(plan, trace);
  }
  return trace;
}

void ModelRunner::step(const scheduler::StepPlan& plan, Trace& trace) {
  for (uint32_t layer = 0; layer < spec_.layer_count(); ++layer) {
    const std::span<const uint32_t> chosen = step_->attention(0, layer, plan);
    for (uint32_t row = 0; row < plan.row_count; ++row) {
      step_->pack(0, {&row, 1}, static_cast<std::byte*>(normed_.row(row)));
    }
    record_routing(layer, chosen, plan.row_count, trace);
    if (wire_) wire_(normed_.const_rows(0, plan.row_count), dispatched_.rows(0, plan.row_count));
    experts(layer, chosen, plan.row_count);
    if (pre_reduce_nodes_ > 0) pre_reduce(layer, chosen, plan.row_count);
    const uint32_t top_k = spec_.layers[layer].moe.top_k;
    step_->combine(0, layer, 0, plan.row_count, answer_.const_rows(0, plan.row_count * top_k));
  }
  uint32_t done = 0;
  while (true) {
    const auto chunks = static_cast<uint32_t>(step_->head(0, plan, done).size());
    if (chunks == 0) break;
    for (uint32_t i = 0; i < chunks; ++i) {
      const std::span<const float> logits = step_->logits(i);
      trace.logits.values.insert(trace.logits.values.end(), logits.begin(), logits.end());
    }
    done += chunks;
  }
}

void ModelRunner::record_routing(uint32_t layer, std::span<const uint32_t> chosen, uint32_t rows,
                                 Trace& trace) {
  // The product that the step makes, on the rows that it dispatches.
  kernels_.gemm({.input = normed_.const_rows(0, rows),
                 .weight = router_weights_.layer(layer).router,
                 .output = router_logits_.rows(0, rows),
                 .output_dtype = kernels::DType::kF32},
                pool_);
  Table& logits = trace.router_logits[layer];
  for (uint32_t row = 0; row < rows; ++row) {
    const float* values = router_logits_.row_as<float>(row);
    logits.values.insert(logits.values.end(), values, values + logits.cols);
  }
  trace.experts[layer].insert(trace.experts[layer].end(), chosen.begin(), chosen.end());
}

void ModelRunner::pre_reduce(uint32_t layer, std::span<const uint32_t> chosen, uint32_t rows) {
  const uint32_t top_k = spec_.layers[layer].moe.top_k;
  for (uint32_t row = 0; row < rows; ++row) {
    const size_t begin = size_t{row} * top_k;
    for (uint32_t j = 0; j < top_k; ++j) {
      const protocol::Entry entry{.row = row, .expert = chosen[begin + j]};
      step_->write_weights(0, layer, {&entry, 1}, row_index_, {&weights_[begin + j], 1});
    }
    for (uint32_t i = 0; i < spec_.hidden; ++i) {
      std::vector<float> sums(pre_reduce_nodes_, 0.0f);
      std::vector<size_t> place(pre_reduce_nodes_, SIZE_MAX);
      for (size_t j = begin; j < begin + top_k; ++j) {
        const uint32_t node = chosen[j] % pre_reduce_nodes_;
        void* const answer = answer_.row(static_cast<uint32_t>(j));
        sums[node] = std::fma(weights_[j], kernels::load_element(answer, dtype_, i), sums[node]);
        place[node] = std::min(place[node], j);
        kernels::store_element(answer, dtype_, i, 0.0f);
      }
      for (uint32_t node = 0; node < pre_reduce_nodes_; ++node) {
        if (place[node] == SIZE_MAX) continue;
        kernels::store_element(answer_.row(static_cast<uint32_t>(place[node])), dtype_, i,
                               sums[node]);
      }
    }
  }
}

void ModelRunner::experts(uint32_t layer, std::span<const uint32_t> chosen, uint32_t rows) {
  const uint32_t top_k = spec_.layers[layer].moe.top_k;
  std::vector<kernels::FfnGroup> groups;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  for (uint32_t expert = 0; expert < spec_.layers[layer].moe.experts; ++expert) {
    const auto first = static_cast<uint32_t>(inputs.size());
    for (uint32_t i = 0; i < rows * top_k; ++i) {
      if (chosen[i] != expert) continue;
      inputs.push_back((wire_ ? dispatched_ : normed_).row(i / top_k));
      outputs.push_back(answer_.row(i));
    }
    const kernels::FfnWeights* weights = expert_weights_.find(layer, expert);
    VOLLEY_CHECK(weights != nullptr);
    groups.push_back({.weights = *weights,
                      .first_row = first,
                      .row_count = static_cast<uint32_t>(inputs.size()) - first});
  }
  VOLLEY_CHECK(inputs.size() == size_t{rows} * top_k);
  kernels_.grouped_ffn({.groups = groups,
                        .input = inputs,
                        .output = outputs,
                        .dtype = dtype_,
                        .workspace = workspace_.bytes().data()},
                       pool_);
}

}  // namespace volley::engine
