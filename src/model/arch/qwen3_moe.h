#pragma once

#include "volley/config/json_fields.h"
#include "volley/model/model_spec.h"

namespace volley::model {

/// Qwen3MoeForCausalLM: queries and keys are normalised per head, and every layer is a mixture of
/// experts. Fields that transformers gives a default may be absent when the default does not depend
/// on the size of the model: rope_theta, norm_topk_prob, tie_word_embeddings, hidden_act,
/// attention_bias, use_sliding_window, decoder_sparse_step, mlp_only_layers; and head_dim, which is
/// then hidden_size / num_attention_heads. All other sizes must be there, except intermediate_size
/// and sliding_window, which are not read: only dense layers and windows would use them.
/// Errors: kInvalidArgument (a missing or bad field), kFailedPrecondition (an unsupported feature:
/// dense layers, biases, windows).
Result<ModelSpec> fill_qwen3_moe(const config::JsonFields& config);

}  // namespace volley::model
