#pragma once

// What an expert node computes, as its engine sees it: by kernels (expert_kernels.h), or as time
// that passes (modelled_expert.h).

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/common/types.h"
#include "volley/base/ids.h"

namespace volley::engine {

/// Thread: the engine thread.
class ExpertStage {
 public:
  /// Rows [first_row, first_row + row_count) of the run are one expert's.
  struct Group {
    uint32_t expert;
    uint32_t first_row;
    uint32_t row_count;
  };

  virtual ~ExpertStage() = default;
  virtual bool holds(uint32_t layer, uint32_t expert) const = 0;

  /// Around the calls for one run, with the times of the engine's profile: what lies between is the
  /// node's computation, with the engine's own share.
  virtual void begin_run(Nanos start) = 0;
  virtual void end_run(Nanos end) = 0;

  /// Brings rows of fp8 dispatches to the model's dtype.
  virtual void widen(kernels::ConstRows packed, kernels::Rows output) = 0;
  /// The grouped FFN: output[r] of input[r]. Groups have rows and are of held experts.
  virtual void ffn(uint32_t layer, std::span<const Group> groups, kernels::ConstRows input,
                   kernels::Rows output) = 0;
  /// output[r] = the sum of weight[i] * input[i] over i in [first[r], first[r + 1]), in that order.
  virtual void reduce(kernels::ConstRows input, const float* weight,
                      std::span<const uint32_t> first, kernels::Rows output) = 0;
  /// Whether the values of an answer's row are finite.
  virtual bool finite(const void* row) const = 0;

  virtual size_t weight_bytes() const = 0;
};

}  // namespace volley::engine
