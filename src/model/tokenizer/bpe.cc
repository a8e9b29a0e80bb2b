#include "bpe.h"

#include <queue>

#include "unicode.h"

namespace volley::model {
namespace {

constexpr uint32_t kNone = UINT32_MAX;

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

// A token of the word so far; a list linked by indices, so that a merge costs O(1).
struct BpeModel::Symbol {
  int32_t id;
  uint32_t previous;
  uint32_t next;
  bool merged_away;
};

Result<BpeModel> BpeModel::parse(const JsonPlace& place) {
  VOLLEY_RETURN_IF_ERROR(place.check_keys(
      {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
       "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
  // Files from before 2021 have no type; their members tell them apart.
  if (const auto type_place = place.optional_member("type")) {
    VOLLEY_ASSIGN_OR_RETURN(const std::string type, type_place->as_string());
    if (type != "BPE") return type_place->wrong_value("the only supported model is BPE");
  }
  BpeModel model;
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace vocabulary, place.member("vocab"));
  VOLLEY_RETURN_IF_ERROR(model.parse_vocabulary(vocabulary));
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace merges, place.member("merges"));
  VOLLEY_RETURN_IF_ERROR(model.parse_merges(merges));
  VOLLEY_RETURN_IF_ERROR(model.parse_options(place));
  return model;
}

Status BpeModel::parse_vocabulary(const JsonPlace& place) {
  if (!place.value().is_object()) return place.wrong_value("expected an object");
  vocabulary_.reserve(place.value().size());
  absl::flat_hash_map<int32_t, std::string_view> owners;
  owners.reserve(place.value().size());
  for (auto entry = place.value().begin(); entry != place.value().end(); ++entry) {
    const std::string& token = entry.key();
    // The common case builds no path: a vocabulary has hundreds of thousands of entries.
    if (!entry->is_number_unsigned() || entry->get<uint64_t>() > uint64_t{kTokenIdMax}) {
      return place.member(token)->wrong_value(
          fmt::format("expected an id from 0 to {}", kTokenIdMax));
    }
    const auto id = static_cast<int32_t>(entry->get<uint64_t>());
    const auto [owner, is_new] = owners.try_emplace(id, token);
    if (!is_new) {
      return place.error(fmt::format("id {} belongs to both {} and {}", id,
                                     JsonPlace::preview(std::string(owner->second)),
                                     JsonPlace::preview(token)));
    }
    vocabulary_.emplace(token, id);
  }
  return ok_status();
}

Status BpeModel::parse_merges(const JsonPlace& place) {
  if (!place.value().is_array()) return place.wrong_value("expected an array");
  const nlohmann::json& list = place.value();
  merges_.reserve(list.size());
  const auto entry_error = [&](size_t index, std::string_view message) {
    return place.error(fmt::format("entry {}: {}", index, message));
  };
  uint32_t rank = 0;
  std::string merged;
  for (size_t index = 0; index < list.size(); ++index) {
    const nlohmann::json& entry = list[index];
    std::string_view left;
    std::string_view right;
    if (entry.is_string()) {
      const std::string_view both = entry.get_ref<const std::string&>();
      if (both.starts_with("#version")) continue;
      const size_t space = both.find(' ');
      if (space == both.npos || both.find(' ', space + 1) != both.npos) {
        return entry_error(index,
                           JsonPlace::preview(entry) + " is not two tokens joined by a space");
      }
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
               entry[1].is_string()) {
      left = entry[0].get_ref<const std::string&>();
      right = entry[1].get_ref<const std::string&>();
    } else {
      return entry_error(index, "expected a string or an array of two strings");
    }
    merged.assign(left).append(right);
    for (const std::string_view token : {left, right, std::string_view(merged)}) {
      if (!vocabulary_.contains(token)) {
        return entry_error(index,
                           JsonPlace::preview(std::string(token)) + " is not in the vocabulary");
      }
    }
    merges_[pair_key(vocabulary_.find(left)->second, vocabulary_.find(right)->second)] =
        Merge{rank++, vocabulary_.find(merged)->second};
  }
  return ok_status();
}

Status BpeModel::parse_options(const JsonPlace& place) {
  if (const auto dropout = place.optional_member("dropout")) {
    if (!dropout->value().is_number() || dropout->value().get<double>() != 0.0) {
      return dropout->wrong_value("only null and 0 are supported");
    }
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (const auto affix = place.optional_member(key)) {
      VOLLEY_ASSIGN_OR_RETURN(const std::string text, affix->as_string());
      if (!text.empty()) return affix->wrong_value("only null and \"\" are supported");
    }
  }
  if (const auto unknown = place.optional_member("unk_token")) {
    VOLLEY_ASSIGN_OR_RETURN(const std::string token, unknown->as_string());
    const auto found = vocabulary_.find(token);
    if (found == vocabulary_.end()) return unknown->wrong_value("it is not in the vocabulary");
    unknown_id_ = found->second;
  }
  VOLLEY_ASSIGN_OR_RETURN(fuse_unknown_, place.bool_member_or("fuse_unk", false));
  VOLLEY_ASSIGN_OR_RETURN(ignore_merges_, place.bool_member_or("ignore_merges", false));
  VOLLEY_ASSIGN_OR_RETURN(const bool byte_fallback, place.bool_member_or("byte_fallback", false));
  for (uint32_t byte = 0; byte_fallback && byte < 256; ++byte) {
    const auto found = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
    byte_ids_.push_back(found == vocabulary_.end() ? -1 : found->second);
  }
  return ok_status();
}

const BpeModel::Merge* BpeModel::find_merge(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

uint64_t BpeModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const auto found = vocabulary_.find(piece); found != vocabulary_.end()) {
      ids.push_back(found->second);
      return 0;
    }
  }
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  append_symbols(piece, symbols);
  const uint64_t candidate_count = merge_symbols(symbols);
  for (const Symbol& symbol : symbols) {
    if (!symbol.merged_away) ids.push_back(symbol.id);
  }
  return candidate_count;
}

void BpeModel::append_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  const auto add = [&](int32_t id) {
    const auto index = static_cast<uint32_t>(symbols.size());
    if (index > 0) symbols.back().next = index;
    symbols.push_back({id, index > 0 ? index - 1 : kNone, kNone, false});
  };
  bool unknown_pending = false;
  const auto add_bytes = [&](std::string_view character) {
    if (byte_ids_.empty()) return false;
    for (const char byte : character) {
      if (byte_ids_[static_cast<uint8_t>(byte)] < 0) return false;
    }
    for (const char byte : character) add(byte_ids_[static_cast<uint8_t>(byte)]);
    return true;
  };
  for (size_t offset = 0; offset < piece.size();) {
    const std::string_view character = piece.substr(offset, character_at(piece, offset).bytes);
    offset += character.size();
    if (const auto found = vocabulary_.find(character); found != vocabulary_.end()) {
      if (unknown_pending) add(*unknown_id_);
      unknown_pending = false;
      add(found->second);
      continue;
    }
    // Byte tokens overtake a pending unknown token, as in `tokenizers`; it takes a vocabulary with
    // only some of the byte tokens to see it.
    if (add_bytes(character) || !unknown_id_) continue;
    if (unknown_pending && !fuse_unknown_) add(*unknown_id_);
    unknown_pending = true;
  }
  if (unknown_pending) add(*unknown_id_);
}

uint64_t BpeModel::merge_symbols(std::vector<Symbol>& symbols) const {
  struct Candidate {
    uint32_t rank;
    uint32_t position;  // Of the left symbol.
    int32_t id;
  };
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  std::priority_queue<Candidate, std::vector<Candidate>, decltype(later)> queue(later);
  const auto propose = [&](uint32_t position) {
    const Symbol& left = symbols[position];
    if (left.next == kNone) return;
    if (const Merge* merge = find_merge(left.id, symbols[left.next].id)) {
      queue.push({merge->rank, position, merge->id});
    }
  };
  for (uint32_t position = 0; position < symbols.size(); ++position) propose(position);

  // Every merge removes a symbol and proposes at most two candidates, so at most 3n are ever looked
  // at.
  uint64_t candidate_count = 0;
  for (; !queue.empty(); ++candidate_count) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.position];
    if (left.merged_away || left.next == kNone) continue;
    Symbol& right = symbols[left.next];
    // The symbols may have changed since; a candidate counts if it would still make the same token.
    const Merge* merge = find_merge(left.id, right.id);
    if (merge == nullptr || merge->id != best.id) continue;
    left.id = best.id;
    left.next = right.next;
    right.merged_away = true;
    if (right.next != kNone) symbols[right.next].previous = best.position;
    if (left.previous != kNone) propose(left.previous);
    propose(best.position);
  }
  return candidate_count;
}

}  // namespace volley::model
