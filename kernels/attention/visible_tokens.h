#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention/attention.h"

namespace volley::kernels {

/// The positions [begin, end) that a row sees.
struct VisibleTokens {
  uint32_t begin;
  uint32_t end;
};

inline VisibleTokens visible_tokens(uint32_t position, uint32_t window) {
  const uint32_t end = position + 1;
  return {.begin = window == 0 || window >= end ? 0 : end - window, .end = end};
}

/// Where the split that starts at or holds `begin` ends: splits are cut at absolute positions.
inline uint32_t attention_split_end(uint32_t begin) {
  return (begin / kAttentionSplitTokens + 1) * kAttentionSplitTokens;
}

}  // namespace volley::kernels
