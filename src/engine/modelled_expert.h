#pragma once

#include <memory>
#include <string>
#include <vector>

#include "expert_stage.h"
#include "modelled_time.h"
#include "volley/model/weights.h"

namespace volley::engine {

/// Takes the modelled time of a run when its FFN is asked for. Answers have the bytes that their
/// slots happen to hold, so nothing in them is checked.
class ModelledExpert final : public ExpertStage {
 public:
  /// Errors: kInvalidArgument (an expert or a layer that does not exist).
  static Result<std::unique_ptr<ModelledExpert>> create(
      const std::string& name, const model::ModelSpec& spec,
      std::span<const model::ExpertWeights::Key> experts, const ModelledCompute& compute);

  bool holds(uint32_t layer, uint32_t expert) const override {
    return place_[size_t{layer} * experts_ + expert] != kNotHeld;
  }
  void begin_run(Nanos start) override { time_.begin(start); }
  void end_run(Nanos end) override { time_.end(end); }
  void widen(kernels::ConstRows, kernels::Rows) override {}
  void ffn(uint32_t layer, std::span<const Group> groups, kernels::ConstRows input,
           kernels::Rows output) override;
  void reduce(kernels::ConstRows, const float*, std::span<const uint32_t>, kernels::Rows) override {
  }
  bool finite(const void*) const override { return true; }
  size_t weight_bytes() const override { return 0; }

 private:
  static constexpr uint32_t kNotHeld = 0xffffffff;
  ModelledExpert(const std::string& name, const model::ModelSpec& spec,
                 const ModelledCompute& compute);

  const uint32_t experts_;
  const std::shared_ptr<const perf::StageTimes> times_;
  ModelledTime time_;
  std::vector<uint32_t> place_;  // [layers][experts]: among the node's of the layer.
  std::vector<uint32_t> held_;   // [layers]
  std::vector<double> rows_;     // Of one run, by place.
};

}  // namespace volley::engine
