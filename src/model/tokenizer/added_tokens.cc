#include "added_tokens.h"

#include <algorithm>

#include "bpe.h"
#include "unicode.h"

namespace volley::model {

Result<AddedToken> AddedToken::parse(const JsonPlace& place) {
  VOLLEY_RETURN_IF_ERROR(place.check_keys(
      {"id", "content", "special", "normalized", "single_word", "lstrip", "rstrip"}));
  AddedToken token{};
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace id, place.member("id"));
  VOLLEY_ASSIGN_OR_RETURN(const int64_t id_value, id.as_integer(0, kTokenIdMax));
  token.id = static_cast<int32_t>(id_value);
  VOLLEY_ASSIGN_OR_RETURN(token.content, place.string_member("content"));
  if (token.content.empty()) return place.member("content")->wrong_value("expected text");
  VOLLEY_ASSIGN_OR_RETURN(token.special, place.bool_member("special"));
  VOLLEY_ASSIGN_OR_RETURN(token.normalized, place.bool_member("normalized"));
  VOLLEY_ASSIGN_OR_RETURN(token.single_word, place.bool_member("single_word"));
  VOLLEY_ASSIGN_OR_RETURN(token.lstrip, place.bool_member("lstrip"));
  VOLLEY_ASSIGN_OR_RETURN(token.rstrip, place.bool_member("rstrip"));
  return token;
}

Status AddedTokenMatcher::add(const std::string& pattern, const AddedToken& token) {
  if (pattern.empty()) return invalid_argument("\"{}\" is empty once normalized", token.content);
  uint32_t node = 0;
  for (const char c : pattern) {
    const auto next = static_cast<uint32_t>(nodes_.size());
    const auto [child, is_new] = nodes_[node].children.try_emplace(static_cast<uint8_t>(c), next);
    node = child->second;
    if (is_new) nodes_.emplace_back();
  }
  if (nodes_[node].token != nullptr) {
    return invalid_argument("\"{}\" cannot be told from \"{}\" once normalized", token.content,
                            nodes_[node].token->content);
  }
  nodes_[node].token = &token;
  starts_[static_cast<uint8_t>(pattern.front())] = true;
  return ok_status();
}

AddedTokenMatcher::Match AddedTokenMatcher::longest_at(std::string_view text, size_t offset) const {
  Match longest{0, nullptr};
  uint32_t node = 0;
  for (size_t end = offset; end < text.size();) {
    const auto child = nodes_[node].children.find(static_cast<uint8_t>(text[end]));
    if (child == nodes_[node].children.end()) break;
    node = child->second;
    ++end;
    if (nodes_[node].token != nullptr) longest = {end - offset, nodes_[node].token};
  }
  return longest;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  return (begin == 0 || !is_word(character_at(text, previous_offset(text, begin)).code)) &&
         (end == text.size() || !is_word(character_at(text, end).code));
}

size_t white_space_begin(std::string_view text, size_t end, size_t floor) {
  while (end > floor) {
    const size_t offset = previous_offset(text, end);
    if (!is_white_space(character_at(text, offset).code)) break;
    end = offset;
  }
  return std::max(end, floor);
}

size_t white_space_end(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const Character character = character_at(text, begin);
    if (!is_white_space(character.code)) break;
    begin += character.bytes;
  }
  return begin;
}

}  // namespace volley::model
