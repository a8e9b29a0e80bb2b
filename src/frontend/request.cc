#include "volley/frontend/request.h"

#include <cmath>

#include "volley/base/clock.h"

namespace volley::frontend {
namespace {

Status check_token(const char* field, int index, int32_t id, uint32_t vocab_size) {
  if (id >= 0 && static_cast<uint32_t>(id) < vocab_size) return ok_status();
  return invalid_argument("{}[{}]: token id {} is out of range; allowed is [0, {})", field, index,
                          id, vocab_size);
}

Status take_prompt(const v1::GenerateRequest& request, const ModelInfo& model,
                   const model::Tokenizer& tokenizer, v1::RunRequest& run) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return invalid_argument("prompt: one of text and token_ids must be set");
    case v1::GenerateRequest::kTokenIds:
      if (request.has_add_special_tokens()) {
        return invalid_argument(
            "add_special_tokens: only for a text prompt; token_ids are taken as they are");
      }
      for (int i = 0; i < request.token_ids().ids_size(); ++i) {
        VOLLEY_RETURN_IF_ERROR(
            check_token("token_ids.ids", i, request.token_ids().ids(i), model.vocab_size));
      }
      *run.mutable_token_ids() = request.token_ids().ids();
      break;
    case v1::GenerateRequest::kText: {
      if (request.text().size() > kPromptBytesMax) {
        return invalid_argument("text: {} bytes; allowed are at most {}", request.text().size(),
                                kPromptBytesMax);
      }
      const bool add_special = !request.has_add_special_tokens() || request.add_special_tokens();
      auto ids = tokenizer.encode(request.text(), add_special);
      if (!ids.ok()) return annotate(ids.status(), "text");
      for (size_t i = 0; i < ids->size(); ++i) {
        VOLLEY_RETURN_IF_ERROR(
            check_token("text: tokenized", static_cast<int>(i), (*ids)[i], model.vocab_size));
      }
      run.mutable_token_ids()->Add(ids->begin(), ids->end());
      break;
    }
  }
  if (run.token_ids_size() == 0) return invalid_argument("prompt: it has no tokens");
  return ok_status();
}

Status take_length(const v1::GenerateRequest& request, const ModelInfo& model,
                   v1::RunRequest& run) {
  const uint32_t prompt = static_cast<uint32_t>(run.token_ids_size());
  const uint32_t limit = model.sequence_tokens_max;
  if (prompt >= limit) {
    return invalid_argument("prompt: {} tokens; allowed are at most {}, so that one fits after it",
                            prompt, limit - 1);
  }
  const uint32_t left = limit - prompt;
  run.set_max_new_tokens(request.has_max_new_tokens() ? request.max_new_tokens() : left);
  if (run.max_new_tokens() == 0 || run.max_new_tokens() > left) {
    return invalid_argument("max_new_tokens: {}; after a prompt of {} tokens allowed is [1, {}]",
                            run.max_new_tokens(), prompt, left);
  }
  return ok_status();
}

Status take_stop_tokens(const v1::GenerateRequest& request, const ModelInfo& model,
                        v1::RunRequest& run) {
  if (request.stop_token_ids_size() > kStopTokensMax) {
    return invalid_argument("stop_token_ids: {} ids; allowed are at most {}",
                            request.stop_token_ids_size(), kStopTokensMax);
  }
  for (int i = 0; i < request.stop_token_ids_size(); ++i) {
    VOLLEY_RETURN_IF_ERROR(
        check_token("stop_token_ids", i, request.stop_token_ids(i), model.vocab_size));
  }
  *run.mutable_stop_token_ids() = request.stop_token_ids();
  if (!request.ignore_eos()) {
    run.mutable_stop_token_ids()->Add(model.eos_token_ids.begin(), model.eos_token_ids.end());
  }
  return ok_status();
}

Status take_sampling(const v1::SamplingParams& sampling, const GenerationDefaults& defaults,
                     v1::RunRequest& run) {
  run.set_temperature(sampling.has_temperature() ? sampling.temperature() : defaults.temperature);
  run.set_top_k(sampling.has_top_k() ? sampling.top_k() : defaults.top_k);
  run.set_top_p(sampling.has_top_p() ? sampling.top_p() : defaults.top_p);
  run.set_min_p(sampling.has_min_p() ? sampling.min_p() : defaults.min_p);
  run.set_seed(sampling.has_seed() ? sampling.seed() : random_u64());
  // Written so that NaN, which compares false with everything, is refused.
  if (!(run.temperature() >= 0 && run.temperature() <= kTemperatureMax)) {
    return invalid_argument("sampling.temperature: {}; allowed is [0, {}]", run.temperature(),
                            kTemperatureMax);
  }
  if (!(run.top_p() > 0 && run.top_p() <= 1)) {
    return invalid_argument("sampling.top_p: {}; allowed is (0, 1]", run.top_p());
  }
  if (!(run.min_p() >= 0 && run.min_p() <= 1)) {
    return invalid_argument("sampling.min_p: {}; allowed is [0, 1]", run.min_p());
  }
  return ok_status();
}

}  // namespace

Result<PreparedRequest> prepare_request(const v1::GenerateRequest& request, const ModelInfo& model,
                                        const GenerationDefaults& defaults,
                                        const model::Tokenizer& tokenizer) {
  PreparedRequest prepared{.run = {},
                           .skip_special_tokens = !request.keep_special_tokens(),
                           .return_logits_digests = request.return_logits_digests(),
                           .return_logprobs = request.return_logprobs()};
  VOLLEY_RETURN_IF_ERROR(take_sampling(request.sampling(), defaults, prepared.run));
  VOLLEY_RETURN_IF_ERROR(take_stop_tokens(request, model, prepared.run));
  VOLLEY_RETURN_IF_ERROR(take_prompt(request, model, tokenizer, prepared.run));
  VOLLEY_RETURN_IF_ERROR(take_length(request, model, prepared.run));
  return prepared;
}

}  // namespace volley::frontend
