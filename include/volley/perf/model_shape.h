#pragma once

// The model catalogue: the sizes that decide cost and memory. Unlike model::ModelSpec it also
// describes models that the engine does not run.

#include <cstdint>
#include <string>
#include <vector>

#include "volley/base/status.h"
#include "volley/perf/number_format.h"

namespace volley::perf {

struct AttentionShape {
  /// kLatent: multi-head latent attention (DeepSeek-V2, V3): one compressed vector per token is
  /// cached.
  enum class Kind : uint8_t { kGrouped, kLatent };
  Kind kind = Kind::kGrouped;
  uint32_t heads = 0;
  uint32_t kv_heads = 0;   ///< kGrouped.
  uint32_t head_dim = 0;   ///< Of queries and keys; kLatent: without the rotated part.
  uint32_t value_dim = 0;  ///< Of values, per head; kGrouped: equal to head_dim.
  uint32_t window = 0;     ///< Sliding window in tokens; 0: all positions.
  // kLatent only:
  uint32_t query_rank = 0;  ///< 0: queries are not compressed.
  uint32_t kv_rank = 0;
  uint32_t rope_dim = 0;  ///< The rotated part of queries (per head) and keys (shared).
  bool operator==(const AttentionShape&) const = default;
};

/// A gated FFN (three matrices). A dense one is one expert that every token chooses.
struct FfnShape {
  uint32_t experts = 1;
  uint32_t top_k = 1;
  uint32_t width = 0;         ///< Intermediate size of one routed expert.
  uint32_t shared_width = 0;  ///< Of all shared experts together; 0: none.
  bool routed() const { return experts > 1; }
  bool operator==(const FfnShape&) const = default;
};

/// Consecutive or interleaved layers that are alike.
struct LayerGroup {
  uint32_t count = 0;
  AttentionShape attention;
  FfnShape ffn;
  bool operator==(const LayerGroup&) const = default;
};

struct ModelShape {
  std::string name;
  uint32_t hidden = 0;
  uint32_t vocab = 0;
  bool tied_head = false;
  NumberFormat attention_format = NumberFormat::kBf16;  ///< Weights of all but routed experts.
  NumberFormat expert_format = NumberFormat::kBf16;     ///< Weights of FFNs.
  NumberFormat kv_format = NumberFormat::kBf16;
  NumberFormat activation_format = NumberFormat::kBf16;  ///< On the wire, both ways.
  std::vector<LayerGroup> layers;
  bool operator==(const ModelShape&) const = default;

  uint32_t layer_count() const;
  /// Most routed experts of any layer: the number of experts that a pool must hold.
  uint32_t experts() const;
  uint32_t top_k() const;
};

/// Parameters (numbers, not bytes). Norms are left out: below 0.01 %.
double attention_params(const ModelShape& model, const AttentionShape& attention);  ///< One layer.
double router_params(const ModelShape& model, const FfnShape& ffn);                 ///< One layer.
double expert_params(const ModelShape& model,
                     const FfnShape& ffn);  ///< One routed expert, one layer.
double shared_params(const ModelShape& model, const FfnShape& ffn);  ///< Shared experts, one layer.
double embedding_params(const ModelShape& model);                    ///< Embedding and head.
double total_params(const ModelShape& model);
double active_params(
    const ModelShape& model);  ///< That take part in one token, embedding counted once.
/// Bytes of keys and values that one token adds in one layer. Latent: the compressed vector.
double kv_bytes(const ModelShape& model, const AttentionShape& attention);
/// Over all layers, for a sequence of `tokens`: windows cap it.
double sequence_kv_bytes(const ModelShape& model, double tokens);

/// Reads one file of configs/models (YAML) or a Hugging Face config.json (by its content: Mixtral,
/// DBRX, Qwen3-MoE, DeepSeek-V2/V3, gpt-oss, Llama-like dense). A folder means its config.json.
/// Errors: kNotFound, kInvalidArgument ("FILE:LINE: KEY: ..."), kFailedPrecondition (an
/// architecture that is not known: its name and what is).
Result<ModelShape> load_model_shape(const std::string& path);
Result<ModelShape> parse_model_shape(const std::string& yaml, const std::string& origin);
/// A config.json. The model is named after the folder in `origin`, else after its architecture.
Result<ModelShape> parse_config_json(const std::string& json, const std::string& origin);
/// "mixtral-8x22b" -> DIRECTORY/mixtral-8x22b.yaml; else load_model_shape(name).
/// Errors: as load_model_shape(); kNotFound lists the names in `directory`.
Result<ModelShape> find_model_shape(const std::string& directory, const std::string& name);

}  // namespace volley::perf
