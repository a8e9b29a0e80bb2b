#pragma once

#include <memory>
#include <vector>

#include "expert_stage.h"
#include "kernels/cpu_kernels.h"
#include "volley/base/fd.h"
#include "volley/base/thread_pool.h"
#include "volley/model/weights.h"

namespace volley::engine {

struct ExpertKernelsOptions {
  kernels::DType dtype = kernels::DType::kBf16;
  uint32_t rows_max = 0;          ///< (token, expert) pairs of one run.
  uint32_t packed_row_bytes = 0;  ///< Of rows that widen() gets.
};

/// Computes with the kernels of the CPU backend.
class ExpertKernels final : public ExpertStage {
 public:
  /// Errors: kResourceExhausted.
  static Result<std::unique_ptr<ExpertKernels>> create(const ExpertKernelsOptions& options,
                                                       const model::ModelSpec& spec,
                                                       model::ExpertWeights weights,
                                                       const kernels::CpuKernels& kernels,
                                                       ThreadPool& pool);

  bool holds(uint32_t layer, uint32_t expert) const override {
    return weights_.find(layer, expert) != nullptr;
  }
  void begin_run(Nanos) override {}
  void end_run(Nanos) override {}
  void widen(kernels::ConstRows packed, kernels::Rows output) override;
  void ffn(uint32_t layer, std::span<const Group> groups, kernels::ConstRows input,
           kernels::Rows output) override;
  void reduce(kernels::ConstRows input, const float* weight, std::span<const uint32_t> first,
              kernels::Rows output) override;
  bool finite(const void* row) const override;
  size_t weight_bytes() const override { return weights_.bytes(); }

 private:
  ExpertKernels(const ExpertKernelsOptions& options, const model::ModelSpec& spec,
                model::ExpertWeights weights, const kernels::CpuKernels& kernels, ThreadPool& pool);

  const ExpertKernelsOptions options_;
  const uint32_t hidden_;
  const model::ExpertWeights weights_;
  const kernels::CpuKernels& kernels_;
  ThreadPool& pool_;
  Mapping workspace_;
  std::vector<kernels::FfnGroup> groups_;
};

}  // namespace volley::engine
