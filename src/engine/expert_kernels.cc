#include "expert_kernels.h"

#include <algorithm>
#include <cstring>

#include "finite.h"

namespace volley::engine {

Result<std::unique_ptr<ExpertKernels>> ExpertKernels::create(const ExpertKernelsOptions& options,
                                                             const model::ModelSpec& spec,
                                                             model::ExpertWeights weights,
                                                             const kernels::CpuKernels& kernels,
                                                             ThreadPool& pool) {
  std::unique_ptr<ExpertKernels> stage(
      new ExpertKernels(options, spec, std::move(weights), kernels, pool));
  uint32_t ffn = 0;
  for (const model::LayerSpec& layer : spec.layers) ffn = std::max(ffn, layer.moe.ffn);
  VOLLEY_ASSIGN_OR_RETURN(stage->workspace_, Mapping::allocate(kernels::grouped_ffn_workspace_bytes(
                                                 options.rows_max, ffn, options.dtype)));
  std::memset(stage->workspace_.bytes().data(), 0, stage->workspace_.bytes().size());
  stage->groups_.reserve(spec.layers.front().moe.experts);
  return stage;
}

ExpertKernels::ExpertKernels(const ExpertKernelsOptions& options, const model::ModelSpec& spec,
                             model::ExpertWeights weights, const kernels::CpuKernels& kernels,
                             ThreadPool& pool)
    : options_(options),
      hidden_(spec.hidden),
      weights_(std::move(weights)),
      kernels_(kernels),
      pool_(pool) {}

void ExpertKernels::widen(kernels::ConstRows packed, kernels::Rows output) {
  kernels_.unpack_e4m3({.input = packed,
                        .output = output,
                        .width = hidden_,
                        .dtype = options_.dtype,
                        .row_bytes = options_.packed_row_bytes},
                       pool_);
}

void ExpertKernels::ffn(uint32_t layer, std::span<const Group> groups, kernels::ConstRows input,
                        kernels::Rows output) {
  groups_.clear();
  for (const Group& group : groups) {
    groups_.push_back({.weights = *weights_.find(layer, group.expert),
                       .first_row = group.first_row,
                       .row_count = group.row_count});
  }
  kernels_.grouped_ffn({.groups = groups_,
                        .input = input,
                        .output = output,
                        .dtype = options_.dtype,
                        .workspace = workspace_.bytes().data()},
                       pool_);
}

void ExpertKernels::reduce(kernels::ConstRows input, const float* weight,
                           std::span<const uint32_t> first, kernels::Rows output) {
  kernels_.reduce({.input = input,
                   .weight = weight,
                   .first = first,
                   .output = output,
                   .width = hidden_,
                   .dtype = options_.dtype},
                  pool_);
}

bool ExpertKernels::finite(const void* row) const {
  return all_finite(row, hidden_, options_.dtype);
}

}  // namespace volley::engine
