#include "model_cost.h"

#include <cmath>

namespace volley::benchmarks {
namespace {

constexpr double kBytes = 2;  // Of a bf16 value.

double attention_parameters(const model::ModelSpec& spec, const model::LayerSpec& layer) {
  const model::AttentionSpec& attention = layer.attention;
  const double rows = attention.heads + 2.0 * attention.kv_heads;
  const double projections = (rows + attention.heads) * attention.head_dim * spec.hidden;
  return projections + double{1} * layer.moe.experts * spec.hidden;
}

double expert_parameters(const model::ModelSpec& spec, const model::LayerSpec& layer) {
  return 3.0 * spec.hidden * layer.moe.ffn;
}

double head_parameters(const model::ModelSpec& spec) {
  return double{1} * spec.vocab * spec.hidden;
}

double layer_parameters_of_row(const model::ModelSpec& spec) {
  double sum = 0;
  for (const model::LayerSpec& layer : spec.layers) {
    sum += attention_parameters(spec, layer) + layer.moe.top_k * expert_parameters(spec, layer);
  }
  return sum;
}

}  // namespace

StepCost decode_step_cost(const model::ModelSpec& spec, uint32_t streams, double context) {
  StepCost cost{.bytes = kBytes * head_parameters(spec),
                .flops = 2.0 * streams * (layer_parameters_of_row(spec) + head_parameters(spec))};
  for (const model::LayerSpec& layer : spec.layers) {
    const double untouched =
        std::pow(1.0 - double{1} * layer.moe.top_k / layer.moe.experts, streams);
    const double visible =
        layer.attention.window == 0 ? context : std::fmin(context, layer.attention.window);
    cost.bytes +=
        kBytes * (attention_parameters(spec, layer) +
                  layer.moe.experts * (1 - untouched) * expert_parameters(spec, layer) +
                  2.0 * layer.attention.kv_heads * layer.attention.head_dim * visible * streams);
  }
  return cost;
}

double prefill_flops(const model::ModelSpec& spec, uint64_t tokens, uint32_t streams) {
  return 2.0 * (static_cast<double>(tokens) * layer_parameters_of_row(spec) +
                streams * head_parameters(spec));
}

}  // namespace volley::benchmarks
