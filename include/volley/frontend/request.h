#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "volley/base/status.h"
#include "volley/model/tokenizer.h"
#include "volley/v1/inference.pb.h"
#include "volley/v1/node.pb.h"

namespace volley::frontend {

/// What the frontend must know of the model it serves, from the checkpoint and the cluster's
/// limits.
struct ModelInfo {
  std::string name;
  std::string architecture;
  uint32_t vocab_size = 0;
  uint32_t sequence_tokens_max = 0;  ///< Prompt and generated tokens together.
  uint32_t layers = 0;
  uint32_t experts = 0;
  uint32_t experts_per_token = 0;
  std::vector<int32_t> eos_token_ids;
  uint64_t checkpoint_digest = 0;
};

/// Sampling of requests that do not say: generation_config.json of the checkpoint.
struct GenerationDefaults {
  float temperature = 1.0f;
  uint32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
};

/// Bounds on what one request may make the frontend do.
inline constexpr size_t kPromptBytesMax = 1 << 20;
inline constexpr int kStopTokensMax = 64;
inline constexpr float kTemperatureMax = 100.0f;

/// A request that was found valid, as an attention node gets it, and how its answer is to be given.
struct PreparedRequest {
  v1::RunRequest run;
  bool skip_special_tokens = true;
  bool return_logits_digests = false;
  bool return_logprobs = false;
};

/// Checks every field, tokenizes, and fills what was left open; the seed is drawn when absent.
/// Errors: kInvalidArgument naming the field, its value and what is allowed; kResourceExhausted
/// when the tokenizer gives up on the text.
Result<PreparedRequest> prepare_request(const v1::GenerateRequest& request, const ModelInfo& model,
                                        const GenerationDefaults& defaults,
                                        const model::Tokenizer& tokenizer);

}  // namespace volley::frontend
