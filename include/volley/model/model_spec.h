#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace volley::model {

/// Grouped-query attention with half-split rotary embedding.
struct AttentionSpec {
  uint32_t heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t window = 0;  ///< Sliding window in tokens; 0: all positions are visible.
  bool qk_norm = false;  ///< RMSNorm over every head of queries and keys, before the rotation.
};

/// A mixture of gated (SwiGLU) experts behind a softmax top-k router.
struct MoeSpec {
  uint32_t experts = 0;
  uint32_t top_k = 0;
  uint32_t ffn = 0;          ///< Intermediate size of one expert.
  bool normalize_top_k = true;
};

struct LayerSpec {
  AttentionSpec attention;
  MoeSpec moe;
  std::string prefix;        ///< "model.layers.3."
};

/// Where an architecture keeps its tensors, relative to LayerSpec::prefix. "{}" is the expert id.
struct TensorNames {
  std::string embedding, final_norm, head;
  std::string attention_norm, query, key, value, output, ffn_norm, router;
  std::string query_norm{}, key_norm{};  ///< Where AttentionSpec::qk_norm.
  std::string expert_gate, expert_up, expert_down;
};

/// How tokens are drawn when a request does not say.
struct SamplingDefaults {
  float temperature = 1.0f;  ///< 0: greedy.
  uint32_t top_k = 0;        ///< 0: off.
  float top_p = 1.0f;        ///< 1: off.
  float min_p = 0.0f;        ///< 0: off.
};

/// A model as data. One file per architecture fills it from config.json (src/model/arch/).
struct ModelSpec {
  std::string architecture;  ///< "MixtralForCausalLM"
  uint32_t vocab = 0;
  uint32_t hidden = 0;
  uint32_t max_positions = 0;
  float rms_epsilon = 0;
  double rope_theta = 0;
  bool tied_head = false;
  std::vector<LayerSpec> layers;
  TensorNames names;
  std::vector<int32_t> eos_tokens;   ///< From generation_config.json, else config.json.
  int32_t bos_token = -1;            ///< -1: none.
  SamplingDefaults sampling;         ///< From generation_config.json.

  uint32_t layer_count() const { return static_cast<uint32_t>(layers.size()); }
};

}  // namespace volley::model
