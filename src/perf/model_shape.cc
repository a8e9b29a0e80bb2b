// The sizes of a model, computed from its shape.

#include "volley/perf/model_shape.h"

#include <algorithm>

namespace volley::perf {
namespace {

constexpr double kFfnMatrices = 3;  // Gate, up and down.

double attention_of_all_layers(const ModelShape& model) {
  double params = 0;
  for (const LayerGroup& group : model.layers) {
    params +=
        group.count * (attention_params(model, group.attention) + router_params(model, group.ffn));
  }
  return params;
}

}  // namespace

uint32_t ModelShape::layer_count() const {
  uint32_t count = 0;
  for (const LayerGroup& group : layers) count += group.count;
  return count;
}

uint32_t ModelShape::experts() const {
  uint32_t most = 0;
  for (const LayerGroup& group : layers) most = std::max(most, group.ffn.experts);
  return most;
}

uint32_t ModelShape::top_k() const {
  uint32_t most = 0;
  for (const LayerGroup& group : layers) most = std::max(most, group.ffn.top_k);
  return most;
}

double attention_params(const ModelShape& model, const AttentionShape& attention) {
  const double hidden = model.hidden;
  const double heads = attention.heads;
  const double output = heads * attention.value_dim * hidden;
  if (attention.kind == AttentionShape::Kind::kGrouped) {
    const double key_and_value =
        1.0 * attention.kv_heads * (1.0 * attention.head_dim + attention.value_dim);
    return hidden * (heads * attention.head_dim + key_and_value) + output;
  }
  const double query_dim = heads * (1.0 * attention.head_dim + attention.rope_dim);
  const double query =
      attention.query_rank == 0 ? hidden * query_dim : attention.query_rank * (hidden + query_dim);
  const double compress = hidden * (1.0 * attention.kv_rank + attention.rope_dim);
  const double expand =
      attention.kv_rank * heads * (1.0 * attention.head_dim + attention.value_dim);
  return query + compress + expand + output;
}

double router_params(const ModelShape& model, const FfnShape& ffn) {
  return ffn.routed() ? 1.0 * model.hidden * ffn.experts : 0;
}

double expert_params(const ModelShape& model, const FfnShape& ffn) {
  return kFfnMatrices * model.hidden * ffn.width;
}

double shared_params(const ModelShape& model, const FfnShape& ffn) {
  return kFfnMatrices * model.hidden * ffn.shared_width;
}

double embedding_params(const ModelShape& model) {
  return 1.0 * model.vocab * model.hidden * (model.tied_head ? 1 : 2);
}

double total_params(const ModelShape& model) {
  double params = attention_of_all_layers(model) + embedding_params(model);
  for (const LayerGroup& group : model.layers) {
    params += group.count * (group.ffn.experts * expert_params(model, group.ffn) +
                             shared_params(model, group.ffn));
  }
  return params;
}

double active_params(const ModelShape& model) {
  double params = attention_of_all_layers(model) + 1.0 * model.vocab * model.hidden;
  for (const LayerGroup& group : model.layers) {
    params += group.count *
              (group.ffn.top_k * expert_params(model, group.ffn) + shared_params(model, group.ffn));
  }
  return params;
}

double kv_bytes(const ModelShape& model, const AttentionShape& attention) {
  const double numbers =
      attention.kind == AttentionShape::Kind::kLatent
          ? 1.0 * attention.kv_rank + attention.rope_dim
          : 1.0 * attention.kv_heads * (1.0 * attention.head_dim + attention.value_dim);
  return numbers * bytes_of(model.kv_format);
}

double sequence_kv_bytes(const ModelShape& model, double tokens) {
  double bytes = 0;
  for (const LayerGroup& group : model.layers) {
    const double window = group.attention.window;
    const double kept = window > 0 ? std::min(tokens, window) : tokens;
    bytes += group.count * kv_bytes(model, group.attention) * kept;
  }
  return bytes;
}

}  // namespace volley::perf
