#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "volley/base/status.h"
#include "volley/model/weights.h"

namespace volley::engine {

struct StageTimerOptions {
  kernels::DType dtype = kernels::DType::kBf16;
  uint32_t threads = 1;
  std::vector<uint32_t> cores{};    ///< None, or one for each thread.
  uint32_t rows_max = 64;           ///< Of a step, and of one expert's group.
  uint32_t context_max = 1024;      ///< Of one sequence.
  uint32_t kv_tokens_max = 65'536;  ///< Of all sequences of a step.
};

/// Times the computation of attention and expert nodes alone, by the very stages that the engines
/// compute with: no peers, no messages, no books. Weights and KV that do not fit a cache come from
/// memory, as in an engine, because each call goes on to the next layer.
///
/// Thread: one, which it pins to the first core.
class StageTimer {
 public:
  /// Loads the weights of all layers of `spec`. Errors: kInvalidArgument (options),
  /// kResourceExhausted (memory), those of the source.
  static Result<std::unique_ptr<StageTimer>> create(const StageTimerOptions& options,
                                                    const model::ModelSpec& spec,
                                                    model::WeightSource& source,
                                                    const kernels::CpuKernels& kernels);
  ~StageTimer();

  struct Step {
    double layer_s = 0;  ///< Mean over the layers: combine, norm to router, pack.
    double head_s = 0;   ///< Final norm, head, sampling.
  };
  /// Whether a step of so many rows and positions fits the options.
  bool fits(uint32_t rows, uint32_t context) const;
  /// Runs one step of `rows` decoding sequences that see `context` positions each. It must fit.
  Step attention_step(uint32_t rows, uint32_t context);
  /// Runs the grouped FFN of every layer once, for `experts` experts with `rows` rows each; mean
  /// seconds of a layer. At least one, at most those of the model and rows_max.
  double expert_layer(uint32_t experts, uint32_t rows);

 private:
  struct Impl;
  explicit StageTimer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley::engine
