#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/status.h"

namespace volley::scheduler {

/// What the attention node is asked to generate.
struct SequenceRequest {
  SequenceId id;
  /// Everything known: the prompt, and for a replay the tokens that were already emitted. At least one.
  std::vector<int32_t> tokens;
  uint32_t max_new_tokens = 0;         ///< At least 1.
  std::vector<int32_t> stop_tokens;    ///< Generation ends with (and emits) any of these.
  Nanos deadline = 0;                  ///< Monotonic; 0: none.
};

enum class FinishReason : uint8_t { kNone, kStop, kLength };

/// One token of one sequence, or its end. The last output of a sequence has a reason or an error.
struct SequenceOutput {
  SequenceId id;
  int32_t token = -1;            ///< -1: none (the sequence ended with `status`).
  float logprob = 0;
  uint64_t logits_digest = 0;    ///< XXH3-64 of the f32 logits row that the token was drawn from.
  FinishReason finish = FinishReason::kNone;
  Status status;                 ///< Not OK: the sequence ended without another token.
  bool ended() const { return finish != FinishReason::kNone || !status.ok(); }
};

}  // namespace volley::scheduler
