#pragma once

#include "kernels/common/types.h"

namespace volley::kernels {

/// The token embedding [vocab, hidden]: row-major, or in panels when the head is tied to it (one
/// copy of the weights serves both).
struct EmbeddingTable {
  const void* data = nullptr;
  uint32_t vocab = 0;
  uint32_t hidden = 0;
  DType dtype = DType::kBf16;
  bool packed = false;
};

/// output[r] = f32(table[token[r]]), exact. Every token must be below table.vocab.
struct EmbedArgs {
  EmbeddingTable table;
  std::span<const int32_t> token;
  Rows output;  ///< [rows][hidden] f32.
};

}  // namespace volley::kernels
