#pragma once

#include "volley/config/json_fields.h"
#include "volley/model/model_spec.h"

namespace volley::model {

/// MixtralForCausalLM. Fields that transformers gives a default may be absent when the default does
/// not depend on the size of the model: num_key_value_heads, head_dim, rope_theta, sliding_window,
/// tie_word_embeddings, hidden_act. All sizes must be there.
/// Errors: kInvalidArgument (a missing or bad field), kFailedPrecondition (an unsupported feature).
Result<ModelSpec> fill_mixtral(const config::JsonFields& config);

}  // namespace volley::model
