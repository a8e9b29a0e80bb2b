#include "qwen3_moe.h"

#include "decoder_fields.h"

namespace volley::model {
namespace {

constexpr double kRopeThetaDefault = 1e4;  // As transformers' Qwen3MoeConfig.

const TensorNames& tensor_names() {
  static const TensorNames kNames{
      .embedding = "model.embed_tokens.weight",
      .final_norm = "model.norm.weight",
      .head = "lm_head.weight",
      .attention_norm = "input_layernorm.weight",
      .query = "self_attn.q_proj.weight",
      .key = "self_attn.k_proj.weight",
      .value = "self_attn.v_proj.weight",
      .output = "self_attn.o_proj.weight",
      .ffn_norm = "post_attention_layernorm.weight",
      .router = "mlp.gate.weight",
      .query_norm = "self_attn.q_norm.weight",
      .key_norm = "self_attn.k_norm.weight",
      .expert_gate = "mlp.experts.{}.gate_proj.weight",
      .expert_up = "mlp.experts.{}.up_proj.weight",
      .expert_down = "mlp.experts.{}.down_proj.weight",
  };
  return kNames;
}

/// Fields that would give layers or projections of a kind that the engine does not have.
Status refuse_unsupported(const config::JsonFields& config) {
  // Biases of the projections, and a window whose layers max_window_layers chooses.
  for (const char* field : {"attention_bias", "use_sliding_window"}) {
    VOLLEY_ASSIGN_OR_RETURN(const bool set, config.boolean_or(field, false));
    if (set) return config.unsupported(field, "is true; only false is supported");
  }
  // Layer i has experts when i + 1 is a multiple of the step, and is dense otherwise.
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t step,
                          config.integer_or("decoder_sparse_step", {1, UINT32_MAX}, 1));
  if (step != 1) {
    return config.unsupported("decoder_sparse_step", "is {}; only 1 (no dense layers) is supported",
                              step);
  }
  const nlohmann::json* dense = config.find("mlp_only_layers");
  if (dense == nullptr) return ok_status();
  if (!dense->is_array()) {
    return config.bad("mlp_only_layers", "is {}, it must be a list", config::shown(*dense));
  }
  if (!dense->empty()) {
    return config.unsupported("mlp_only_layers", "is {}; only [] (no dense layers) is supported",
                              config::shown(*dense));
  }
  return ok_status();
}

/// transformers 4 and published checkpoints say num_experts, transformers 5 num_local_experts.
Result<MoeSpec> read_experts(const config::JsonFields& config) {
  const bool renamed = config.find("num_local_experts") != nullptr;
  if (renamed && config.find("num_experts") != nullptr &&
      *config.find("num_experts") != *config.find("num_local_experts")) {
    return config.bad("num_experts", "is {}, but num_local_experts is {}",
                      config::shown(*config.find("num_experts")),
                      config::shown(*config.find("num_local_experts")));
  }
  VOLLEY_ASSIGN_OR_RETURN(MoeSpec moe, read_moe(config, "moe_intermediate_size",
                                                renamed ? "num_local_experts" : "num_experts"));
  VOLLEY_ASSIGN_OR_RETURN(moe.normalize_top_k, config.boolean_or("norm_topk_prob", false));
  return moe;
}

}  // namespace

Result<ModelSpec> fill_qwen3_moe(const config::JsonFields& config) {
  VOLLEY_RETURN_IF_ERROR(refuse_unsupported(config));
  VOLLEY_ASSIGN_OR_RETURN(ModelSpec spec, read_decoder(config, kRopeThetaDefault));
  spec.names = tensor_names();
  if (config.find("num_key_value_heads") == nullptr) {
    return config.bad("num_key_value_heads", "is missing, and has no default");
  }
  VOLLEY_ASSIGN_OR_RETURN(AttentionSpec attention, read_attention(config, spec.hidden));
  attention.qk_norm = true;
  VOLLEY_ASSIGN_OR_RETURN(const MoeSpec moe, read_experts(config));
  VOLLEY_RETURN_IF_ERROR(add_layers(config, attention, moe, spec));
  return spec;
}

}  // namespace volley::model
