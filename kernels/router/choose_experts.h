#pragma once

// The scalar parts of the router, which every implementation shares: the vector versions differ
// only in how they compute the exponentials.

#include <algorithm>
#include <cmath>

#include "kernels/router/router.h"

namespace volley::kernels {

struct ExpertChoice {
  bool valid;     ///< False: a logit was not finite.
  float largest;  ///< The largest logit.
};

/// Writes the chosen experts of a row in ascending id; for a row with a logit that is not finite,
/// kInvalidExpert and zero weights.
inline ExpertChoice choose_experts(const RouterArgs& args, uint32_t row) {
  const float* logits = static_cast<const float*>(args.logits[row]);
  uint32_t* expert = args.expert + size_t{row} * args.top_k;
  // The best so far, by (logit descending, id ascending). Ids come in ascending order, so an equal
  // logit goes behind.
  uint32_t best[kTopkMax] = {};
  uint32_t count = 0;
  for (uint32_t id = 0; id < args.experts; ++id) {
    if (!std::isfinite(logits[id])) {
      std::fill_n(expert, args.top_k, kInvalidExpert);
      std::fill_n(args.weight + size_t{row} * args.top_k, args.top_k, 0.0f);
      return {.valid = false, .largest = 0.0f};
    }
    if (count == args.top_k && !(logits[id] > logits[best[count - 1]])) continue;
    uint32_t slot = count == args.top_k ? count - 1 : count++;
    for (; slot > 0 && logits[id] > logits[best[slot - 1]]; --slot) best[slot] = best[slot - 1];
    best[slot] = id;
  }
  const float largest = logits[best[0]];
  std::sort(best, best + count);
  std::copy_n(best, count, expert);
  return {.valid = true, .largest = largest};
}

/// Writes the weights of the chosen experts from exp(logit - largest) of all of them.
inline void write_weights(const RouterArgs& args, uint32_t row, const float* exponential) {
  const uint32_t* expert = args.expert + size_t{row} * args.top_k;
  float* weight = args.weight + size_t{row} * args.top_k;
  float sum = 0.0f;
  for (uint32_t id = 0; id < args.experts; ++id) sum += exponential[id];
  float chosen_sum = 0.0f;
  for (uint32_t j = 0; j < args.top_k; ++j) {
    weight[j] = exponential[expert[j]] / sum;
    chosen_sum += weight[j];
  }
  if (!args.normalize) return;
  for (uint32_t j = 0; j < args.top_k; ++j) weight[j] /= chosen_sum;
}

}  // namespace volley::kernels
