#include "decoder_fields.h"

#include "kernels/router/router.h"

namespace volley::model {
namespace {

using nlohmann::json;

// Bounds far above any model that exists: they keep a hostile file from asking for absurd memory
// and all sizes derived from them inside 64 bits.
constexpr config::JsonFields::Range kHidden{1, 1u << 16};
constexpr config::JsonFields::Range kLayers{1, 512};
constexpr config::JsonFields::Range kHeads{1, 1024};
constexpr config::JsonFields::Range kHeadDim{2, 256};
constexpr config::JsonFields::Range kFfn{1, 1u << 18};
constexpr config::JsonFields::Range kExperts{1, kernels::kExpertsMax};
constexpr config::JsonFields::Range kTopK{1, kernels::kTopkMax};
constexpr config::JsonFields::Range kVocab{1, 1u << 22};

/// One of the places where a file may describe the rotary embedding. Reads rope_theta from it when
/// it is there, and refuses what would change the angles.
Status read_rope(const config::JsonFields& rope, std::optional<double>& theta) {
  for (const char* field : {"rope_type", "type"}) {
    VOLLEY_ASSIGN_OR_RETURN(const std::string type, rope.text_or(field, "default"));
    if (type != "default") {
      return rope.unsupported(field, "is {}; only \"default\" is supported",
                              config::in_quotes(type));
    }
  }
  if (rope.find("partial_rotary_factor") != nullptr) {
    VOLLEY_ASSIGN_OR_RETURN(const double factor, rope.number("partial_rotary_factor", 0, 1));
    if (factor != 1)
      return rope.unsupported("partial_rotary_factor", "is {}; only 1 is supported", factor);
  }
  if (rope.find("rope_theta") == nullptr) return ok_status();
  VOLLEY_ASSIGN_OR_RETURN(const double here, rope.number("rope_theta", 1, 1e12));
  if (theta && *theta != here) {
    return rope.bad("rope_theta", "is {}, but the same file also says {}", here, *theta);
  }
  theta = here;
  return ok_status();
}

/// transformers 4 has rope_theta at the top and rope_scaling beside it, transformers 5
/// rope_parameters.
Result<double> read_rope_theta(const config::JsonFields& config, double absent) {
  std::optional<double> theta;
  if (config.find("rope_theta") != nullptr) {
    VOLLEY_ASSIGN_OR_RETURN(theta, config.number("rope_theta", 1, 1e12));
  }
  if (config.find("partial_rotary_factor") != nullptr) {
    VOLLEY_ASSIGN_OR_RETURN(const double factor, config.number("partial_rotary_factor", 0, 1));
    if (factor != 1) {
      return config.unsupported("partial_rotary_factor", "is {}; only 1 is supported", factor);
    }
  }
  for (const char* field : {"rope_parameters", "rope_scaling"}) {
    VOLLEY_ASSIGN_OR_RETURN(const json* nested, config.object(field));
    if (nested == nullptr) continue;
    const config::JsonFields rope(*nested, config.origin() + ": " + field);
    VOLLEY_RETURN_IF_ERROR(read_rope(rope, theta));
  }
  return theta.value_or(absent);
}

/// Fields that would change the arithmetic in a way that no kernel implements.
Status refuse_unsupported_arithmetic(const config::JsonFields& config) {
  VOLLEY_ASSIGN_OR_RETURN(const std::string activation, config.text_or("hidden_act", "silu"));
  if (activation != "silu") {
    return config.unsupported("hidden_act", "is {}; only \"silu\" is supported",
                              config::in_quotes(activation));
  }
  if (const json* quantization = config.find("quantization_config")) {
    return config.unsupported("quantization_config",
                              "is {}; only plain bf16, f16 and f32 weights are supported",
                              config::shown(*quantization));
  }
  return ok_status();
}

}  // namespace

Result<ModelSpec> read_decoder(const config::JsonFields& config, double rope_theta_default) {
  VOLLEY_RETURN_IF_ERROR(refuse_unsupported_arithmetic(config));
  ModelSpec spec;
  VOLLEY_ASSIGN_OR_RETURN(spec.vocab, config.integer("vocab_size", kVocab));
  VOLLEY_ASSIGN_OR_RETURN(spec.hidden, config.integer("hidden_size", kHidden));
  VOLLEY_ASSIGN_OR_RETURN(spec.max_positions,
                          config.integer("max_position_embeddings", kPositions));
  VOLLEY_ASSIGN_OR_RETURN(const double epsilon, config.number("rms_norm_eps", 1e-12, 0.1));
  spec.rms_epsilon = static_cast<float>(epsilon);
  VOLLEY_ASSIGN_OR_RETURN(spec.rope_theta, read_rope_theta(config, rope_theta_default));
  VOLLEY_ASSIGN_OR_RETURN(spec.tied_head, config.boolean_or("tie_word_embeddings", false));
  return spec;
}

Result<AttentionSpec> read_attention(const config::JsonFields& config, uint32_t hidden) {
  AttentionSpec attention;
  VOLLEY_ASSIGN_OR_RETURN(attention.heads, config.integer("num_attention_heads", kHeads));
  VOLLEY_ASSIGN_OR_RETURN(attention.kv_heads,
                          config.integer_or("num_key_value_heads", kHeads, attention.heads));
  if (attention.heads % attention.kv_heads != 0) {
    return config.bad("num_key_value_heads",
                      "is {}, it must divide num_attention_heads, which is {}", attention.kv_heads,
                      attention.heads);
  }
  if (config.find("head_dim") != nullptr) {
    VOLLEY_ASSIGN_OR_RETURN(attention.head_dim, config.integer("head_dim", kHeadDim));
  } else if (hidden % attention.heads != 0) {
    return config.bad("head_dim",
                      "is missing, and hidden_size {} is no multiple of "
                      "num_attention_heads {}",
                      hidden, attention.heads);
  } else {
    attention.head_dim = hidden / attention.heads;
  }
  if (attention.head_dim % 2 != 0 || attention.head_dim < kHeadDim.min ||
      attention.head_dim > kHeadDim.max) {
    return config.bad("head_dim", "is {}, it must be even and from {} to {}", attention.head_dim,
                      kHeadDim.min, kHeadDim.max);
  }
  return attention;
}

Result<MoeSpec> read_moe(const config::JsonFields& config, const std::string& ffn_field,
                         const std::string& experts_field) {
  MoeSpec moe;
  VOLLEY_ASSIGN_OR_RETURN(moe.ffn, config.integer(ffn_field, kFfn));
  VOLLEY_ASSIGN_OR_RETURN(moe.experts, config.integer(experts_field, kExperts));
  VOLLEY_ASSIGN_OR_RETURN(moe.top_k, config.integer("num_experts_per_tok", kTopK));
  if (moe.top_k > moe.experts) {
    return config.bad("num_experts_per_tok", "is {}, it must be at most {}, which is {}", moe.top_k,
                      experts_field, moe.experts);
  }
  return moe;
}

Status add_layers(const config::JsonFields& config, const AttentionSpec& attention,
                  const MoeSpec& moe, ModelSpec& spec) {
  VOLLEY_ASSIGN_OR_RETURN(const uint32_t layers, config.integer("num_hidden_layers", kLayers));
  for (uint32_t layer = 0; layer < layers; ++layer) {
    spec.layers.push_back({attention, moe, fmt::format("model.layers.{}.", layer)});
  }
  return ok_status();
}

}  // namespace volley::model
