#pragma once

#include <string>

#include "volley/config/json_fields.h"
#include "volley/model/model_spec.h"

namespace volley::model {

// The fields that decoder architectures have in common. Errors, everywhere: kInvalidArgument (a
// missing or bad field), kFailedPrecondition (an unsupported feature).

// Bounds far above any model that exists: they keep a hostile file from asking for absurd memory
// and all sizes derived from them inside 64 bits.
inline constexpr config::JsonFields::Range kPositions{1, 1u << 24};

/// Everything but the layers and the names of the tensors, which are left empty. Refuses
/// activations other than SiLU, quantized weights, and rotary embeddings that are scaled or
/// partial.
Result<ModelSpec> read_decoder(const config::JsonFields& config, double rope_theta_default);

/// Heads and their size; num_key_value_heads defaults to num_attention_heads, head_dim to hidden /
/// num_attention_heads. No window.
Result<AttentionSpec> read_attention(const config::JsonFields& config, uint32_t hidden);

/// The sizes of the mixture, of which two are called differently by different architectures.
Result<MoeSpec> read_moe(const config::JsonFields& config, const std::string& ffn_field,
                         const std::string& experts_field);

/// num_hidden_layers equal layers, called "model.layers.<i>.".
Status add_layers(const config::JsonFields& config, const AttentionSpec& attention,
                  const MoeSpec& moe, ModelSpec& spec);

}  // namespace volley::model
