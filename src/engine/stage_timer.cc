#include "volley/engine/stage_timer.h"

#include <algorithm>

#include "attention_step.h"
#include "expert_kernels.h"
#include "matrix.h"
#include "volley/base/bf16.h"
#include "volley/base/check.h"
#include "volley/base/clock.h"
#include "volley/base/random.h"
#include "volley/base/thread_pool.h"
#include "volley/cache/block_allocator.h"
#include "volley/engine/dispatch_rows.h"

namespace volley::engine {
namespace {

using kernels::kKvBlockTokens;

double seconds(Nanos time) {
  return static_cast<double>(time) / static_cast<double>(kSecond);
}

}  // namespace

struct StageTimer::Impl {
  Impl(const StageTimerOptions& opts, const model::ModelSpec& model_spec)
      : options(opts), spec(model_spec), pool(opts.threads, opts.cores), scratch(opts.threads) {
    for (kernels::SampleScratch& one : scratch) one.reserve(spec.vocab);
  }

  Status allocate() {
    const uint32_t top_k = spec.layers.front().moe.top_k;
    const size_t row_bytes = spec.hidden * kernels::dtype_bytes(options.dtype);
    VOLLEY_ASSIGN_OR_RETURN(answers, Matrix::create(options.rows_max * top_k, row_bytes));
    VOLLEY_ASSIGN_OR_RETURN(
        message, Mapping::allocate(size_t{options.rows_max} *
                                   dispatch_row_bytes(spec.hidden, options.dtype, false)));
    const uint32_t pairs = options.rows_max * spec.layers.front().moe.experts;
    VOLLEY_ASSIGN_OR_RETURN(inputs, Matrix::create(pairs, row_bytes));
    VOLLEY_ASSIGN_OR_RETURN(outputs, Matrix::create(pairs, row_bytes));
    // Values of about one: kernels take the same time for all, but for zeros and denormals there
    // is no promise.
    SplitMix64 random(1);
    for (const Matrix* matrix : {&answers, &inputs}) {
      const uint32_t rows = matrix == &answers ? options.rows_max * top_k : pairs;
      for (uint32_t row = 0; row < rows; ++row) {
        for (uint32_t i = 0; i < spec.hidden; ++i) {
          const auto value = static_cast<float>(random.unit() - 0.5);
          if (options.dtype == kernels::DType::kF32) {
            matrix->row_as<float>(row)[i] = value;
          } else {
            matrix->row_as<Bf16>(row)[i] = to_bf16(value);
          }
        }
      }
    }
    return ok_status();
  }

  const StageTimerOptions options;
  const model::ModelSpec spec;
  ThreadPool pool;
  std::unique_ptr<AttentionStep> attention;
  std::unique_ptr<ExpertKernels> expert;
  std::vector<kernels::SampleScratch> scratch;
  Matrix answers, inputs, outputs;
  Mapping message;
};

StageTimer::StageTimer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
StageTimer::~StageTimer() = default;

Result<std::unique_ptr<StageTimer>> StageTimer::create(const StageTimerOptions& options,
                                                       const model::ModelSpec& spec,
                                                       model::WeightSource& source,
                                                       const kernels::CpuKernels& kernels) {
  if (options.threads == 0 || options.rows_max == 0 || options.context_max == 0 ||
      (!options.cores.empty() && options.cores.size() < options.threads)) {
    return invalid_argument("threads {} on {} cores, rows_max {} and context_max {} do not do",
                            options.threads, options.cores.size(), options.rows_max,
                            options.context_max);
  }
  auto impl = std::make_unique<Impl>(options, spec);
  VOLLEY_RETURN_IF_ERROR(impl->pool.pin_caller());
  VOLLEY_RETURN_IF_ERROR(impl->allocate());
  VOLLEY_ASSIGN_OR_RETURN(auto attention,
                          model::AttentionWeights::load(spec, source, options.dtype));
  const uint32_t blocks = cache::blocks_for(options.kv_tokens_max, kKvBlockTokens) +
                          options.rows_max;  // Every sequence's last block may be half full.
  VOLLEY_ASSIGN_OR_RETURN(impl->attention,
                          AttentionStep::create({.dtype = options.dtype,
                                                 .micro_batches = 1,
                                                 .rows_max = options.rows_max,
                                                 .kv_blocks = blocks},
                                                spec, std::move(attention), kernels, impl->pool));
  std::vector<model::ExpertWeights::Key> keys;
  for (uint32_t layer = 0; layer < spec.layer_count(); ++layer) {
    for (uint32_t expert = 0; expert < spec.layers[layer].moe.experts; ++expert) {
      keys.push_back({.layer = layer, .expert = expert});
    }
  }
  VOLLEY_ASSIGN_OR_RETURN(auto experts,
                          model::ExpertWeights::load(spec, source, options.dtype, keys));
  VOLLEY_ASSIGN_OR_RETURN(
      impl->expert,
      ExpertKernels::create(
          {.dtype = options.dtype, .rows_max = options.rows_max * spec.layers.front().moe.experts},
          spec, std::move(experts), kernels, impl->pool));
  return std::unique_ptr<StageTimer>(new StageTimer(std::move(impl)));
}

bool StageTimer::fits(uint32_t rows, uint32_t context) const {
  const StageTimerOptions& options = impl_->options;
  return rows > 0 && context > 0 && rows <= options.rows_max && context <= options.context_max &&
         uint64_t{rows} * context <= options.kv_tokens_max;
}

StageTimer::Step StageTimer::attention_step(uint32_t rows, uint32_t context) {
  VOLLEY_CHECK(fits(rows, context));
  const model::ModelSpec& spec = impl_->spec;
  AttentionStep& stage = *impl_->attention;
  const uint32_t blocks = cache::blocks_for(context, kKvBlockTokens);
  const std::vector<int32_t> token = {1};
  std::vector<uint32_t> tables(size_t{rows} * blocks), every_row(rows);
  scheduler::StepPlan plan{.chunks = {}, .row_count = rows};
  for (uint32_t row = 0; row < rows; ++row) {
    every_row[row] = row;
    uint32_t* const table = tables.data() + size_t{row} * blocks;
    // Neighbouring blocks are of different sequences, as they are after some time of serving.
    for (uint32_t i = 0; i < blocks; ++i) table[i] = i * rows + row;
    plan.chunks.push_back({.sequence = SequenceId{row + 1},
                           .first_row = row,
                           .row_count = 1,
                           .start_position = context - 1,
                           .emits = true,
                           .tokens = token,
                           .blocks = {table, blocks}});
  }
  const Nanos start = monotonic_now();
  for (uint32_t layer = 0; layer < spec.layer_count(); ++layer) {
    stage.attention(0, layer, plan);
    stage.pack(0, every_row, impl_->message.bytes().data());
    stage.combine(0, layer, 0, rows,
                  impl_->answers.const_rows(0, rows * spec.layers[layer].moe.top_k));
  }
  const Nanos layers_end = monotonic_now();
  uint32_t done = 0;
  while (true) {
    const auto chunks = static_cast<uint32_t>(stage.head(0, plan, done).size());
    if (chunks == 0) break;
    const auto tiles = static_cast<uint32_t>(std::min<size_t>(impl_->scratch.size(), chunks));
    impl_->pool.parallel_for(tiles, [&](uint32_t tile) {
      for (uint32_t i = tile; i < chunks; i += tiles) {
        stage.sample(i, {.seed = i}, impl_->scratch[tile]);
      }
    });
    done += chunks;
  }
  const Nanos end = monotonic_now();
  return {.layer_s = seconds(layers_end - start) / spec.layer_count(),
          .head_s = seconds(end - layers_end)};
}

double StageTimer::expert_layer(uint32_t experts, uint32_t rows) {
  const model::ModelSpec& spec = impl_->spec;
  const uint32_t all = spec.layers.front().moe.experts;
  VOLLEY_CHECK(experts > 0 && experts <= all && rows > 0 && rows <= impl_->options.rows_max);
  std::vector<ExpertStage::Group> groups(experts);
  Nanos time = 0;
  for (uint32_t layer = 0; layer < spec.layer_count(); ++layer) {
    // Other experts in every layer: with few of them the weights still come from memory.
    for (uint32_t i = 0; i < experts; ++i) {
      groups[i] = {.expert = (layer * experts + i) % all, .first_row = i * rows, .row_count = rows};
    }
    const Nanos start = monotonic_now();
    impl_->expert->ffn(layer, groups, impl_->inputs.const_rows(0, experts * rows),
                       impl_->outputs.rows(0, experts * rows));
    time += monotonic_now() - start;
  }
  return seconds(time) / spec.layer_count();
}

}  // namespace volley::engine
