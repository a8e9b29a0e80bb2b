#include "modelled_expert.h"

#include <algorithm>

namespace volley::engine {

Result<std::unique_ptr<ModelledExpert>> ModelledExpert::create(
    const std::string& name, const model::ModelSpec& spec,
    std::span<const model::ExpertWeights::Key> experts, const ModelledCompute& compute) {
  std::unique_ptr<ModelledExpert> stage(new ModelledExpert(name, spec, compute));
  for (const model::ExpertWeights::Key& key : experts) {
    if (key.layer >= spec.layer_count() || key.expert >= stage->experts_) {
      return invalid_argument("expert {} of layer {} does not exist: the model has {} of {} layers",
                              key.expert, key.layer, stage->experts_, spec.layer_count());
    }
    uint32_t& place = stage->place_[size_t{key.layer} * stage->experts_ + key.expert];
    if (place == kNotHeld) place = stage->held_[key.layer]++;
  }
  stage->rows_.reserve(std::ranges::max(stage->held_));
  return stage;
}

ModelledExpert::ModelledExpert(const std::string& name, const model::ModelSpec& spec,
                               const ModelledCompute& compute)
    : experts_(spec.layers.front().moe.experts),
      times_(compute.times),
      time_(name, compute.clock),
      place_(size_t{spec.layer_count()} * experts_, kNotHeld),
      held_(spec.layer_count(), 0) {}

void ModelledExpert::ffn(uint32_t layer, std::span<const Group> groups, kernels::ConstRows,
                         kernels::Rows) {
  rows_.assign(held_[layer], 0.0);
  for (const Group& group : groups) {
    rows_[place_[size_t{layer} * experts_ + group.expert]] = group.row_count;
  }
  time_.take(times_->expert_layer(rows_));
}

}  // namespace volley::engine
