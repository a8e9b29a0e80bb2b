#pragma once

#include <absl/container/flat_hash_map.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "json_place.h"
#include "volley/base/status.h"

namespace volley::model {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
/// Token text to id; looked up by string_view without a copy.
using TokenIds = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

inline constexpr int64_t kTokenIdMax = INT32_MAX - 1;  // vocab_size() is one more.

/// The file's "model" of type BPE: vocabulary and ranked merges.
class BpeModel {
 public:
  static Result<BpeModel> parse(const JsonPlace& place);

  const TokenIds& vocabulary() const { return vocabulary_; }

  /// Appends the ids of one piece of valid UTF-8. A character outside the vocabulary becomes its
  /// byte tokens (byte_fallback), the unknown token, or nothing. O(n log n) in the piece's
  /// characters. Returns how many merge candidates it looked at, for the tests of that bound.
  uint64_t encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    uint32_t rank;
    int32_t id;  // Of the merged token.
  };
  struct Symbol;

  Status parse_vocabulary(const JsonPlace& place);
  Status parse_merges(const JsonPlace& place);
  Status parse_options(const JsonPlace& place);
  void append_symbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  uint64_t merge_symbols(std::vector<Symbol>& symbols) const;
  const Merge* find_merge(int32_t left, int32_t right) const;

  TokenIds vocabulary_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // Key: left id << 32 | right id.
  std::optional<int32_t> unknown_id_;
  // Per byte the id of "<0xHH>", -1 where the vocabulary lacks it; empty without byte_fallback.
  std::vector<int32_t> byte_ids_;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
};

}  // namespace volley::model
