#include "mixtral.h"

#include "decoder_fields.h"

namespace volley::model {
namespace {

constexpr double kRopeThetaDefault = 1e6;  // As transformers' MixtralConfig.

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
      .router = "block_sparse_moe.gate.weight",
      .expert_gate = "block_sparse_moe.experts.{}.w1.weight",
      .expert_up = "block_sparse_moe.experts.{}.w3.weight",
      .expert_down = "block_sparse_moe.experts.{}.w2.weight",
  };
  return kNames;
}

}  // namespace

Result<ModelSpec> fill_mixtral(const config::JsonFields& config) {
  VOLLEY_ASSIGN_OR_RETURN(ModelSpec spec, read_decoder(config, kRopeThetaDefault));
  spec.names = tensor_names();
  VOLLEY_ASSIGN_OR_RETURN(AttentionSpec attention, read_attention(config, spec.hidden));
  VOLLEY_ASSIGN_OR_RETURN(attention.window, config.integer_or("sliding_window", kPositions, 0));
  VOLLEY_ASSIGN_OR_RETURN(const MoeSpec moe,
                          read_moe(config, "intermediate_size", "num_local_experts"));
  VOLLEY_RETURN_IF_ERROR(add_layers(config, attention, moe, spec));
  return spec;
}

}  // namespace volley::model
