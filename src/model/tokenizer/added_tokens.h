#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "json_place.h"
#include "volley/base/status.h"

namespace volley::model {

/// One entry of the file's "added_tokens".
struct AddedToken {
  int32_t id;
  std::string content;
  bool special;      ///< Left out by decode when special tokens are skipped.
  bool normalized;   ///< Looked for in the normalized text, in its normalized form.
  bool single_word;  ///< Only where no word character touches it.
  bool lstrip;       ///< Takes the white space on its left with it.
  bool rstrip;       ///< The same on its right.

  static Result<AddedToken> parse(const JsonPlace& place);
};

/// A stretch of text: an added token, or text between added tokens.
struct TextSpan {
  std::string_view text;
  const AddedToken* token;  ///< Null for text.
};

/// Finds added tokens in a text: leftmost, and the longest of those that start there.
class AddedTokenMatcher {
 public:
  /// `token` must outlive the matcher. Errors: kInvalidArgument when `pattern` is empty or was
  /// added before.
  Status add(const std::string& pattern, const AddedToken& token);

  /// Calls `visit(TextSpan)` for the stretches of `text` from left to right; none is empty text.
  template <class Visit>
  Status for_each_span(std::string_view text, Visit visit) const;

 private:
  // A byte trie; node 0 is the root.
  struct Node {
    std::map<uint8_t, uint32_t> children;
    const AddedToken* token = nullptr;
  };
  struct Match {
    size_t bytes;
    const AddedToken* token;  // Null: nothing starts here.
  };
  Match longest_at(std::string_view text, size_t offset) const;

  std::vector<Node> nodes_{1};
  std::array<bool, 256> starts_{};  // Bytes that some pattern begins with.
};

/// Whether word characters touch text[begin, end) on neither side.
bool stands_alone(std::string_view text, size_t begin, size_t end);
/// Where the white space that ends at `end` begins, but not before `floor`.
size_t white_space_begin(std::string_view text, size_t end, size_t floor);
/// Where the white space that begins at `begin` ends.
size_t white_space_end(std::string_view text, size_t begin);

template <class Visit>
Status AddedTokenMatcher::for_each_span(std::string_view text, Visit visit) const {
  size_t covered = 0;
  for (size_t offset = 0; offset < text.size();) {
    const Match match =
        starts_[static_cast<uint8_t>(text[offset])] ? longest_at(text, offset) : Match{0, nullptr};
    if (match.token == nullptr) {
      ++offset;
      continue;
    }
    size_t begin = offset;
    size_t end = offset + match.bytes;
    // The search goes on behind the match itself, also when it is refused or took white space with
    // it: another token may start inside that white space.
    offset = end;
    if (match.token->single_word && !stands_alone(text, begin, end)) continue;
    if (match.token->lstrip) begin = white_space_begin(text, begin, covered);
    if (match.token->rstrip) end = white_space_end(text, end);
    if (covered < begin) {
      VOLLEY_RETURN_IF_ERROR(visit(TextSpan{text.substr(covered, begin - covered), nullptr}));
    }
    VOLLEY_RETURN_IF_ERROR(visit(TextSpan{text.substr(begin, end - begin), match.token}));
    covered = end;
  }
  if (covered < text.size()) return visit(TextSpan{text.substr(covered), nullptr});
  return ok_status();
}

}  // namespace volley::model
