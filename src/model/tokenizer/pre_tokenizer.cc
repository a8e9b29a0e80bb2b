#include "pre_tokenizer.h"

#include <algorithm>

#include "byte_level.h"

namespace volley::model {
namespace {

struct Segment {
  ByteRange range;
  bool is_delimiter;
};

// Matches and the text between them, covering the whole text.
std::vector<Segment> segments_of(const std::vector<ByteRange>& matches, size_t text_bytes,
                                 bool invert) {
  std::vector<Segment> segments;
  segments.reserve(matches.size() * 2 + 1);
  size_t covered = 0;
  for (const ByteRange& match : matches) {
    if (match.begin > covered) segments.push_back({{covered, match.begin}, invert});
    segments.push_back({match, !invert});
    covered = match.end;
  }
  if (covered < text_bytes) segments.push_back({{covered, text_bytes}, invert});
  return segments;
}

Piece part_of(const Piece& piece, const ByteRange& range) {
  return {piece.text.substr(range.begin, range.end - range.begin),
          piece.at_text_start && range.begin == 0};
}

Status apply_step(const SplitStep& step, std::vector<Piece>& pieces) {
  std::vector<Piece> out;
  std::vector<ByteRange> matches;
  for (Piece& piece : pieces) {
    matches.clear();
    VOLLEY_RETURN_IF_ERROR(step.pattern.find_all(piece.text, matches));
    for (const ByteRange& part : split_at(matches, piece.text.size(), step.behavior, step.invert)) {
      if (part.begin < part.end) out.push_back(part_of(piece, part));
    }
  }
  pieces = std::move(out);
  return ok_status();
}

Status apply_step(const PrefixSpaceStep&, std::vector<Piece>& pieces) {
  for (Piece& piece : pieces) {
    if (piece.text.front() != ' ') piece.text.insert(0, 1, ' ');
  }
  return ok_status();
}

Status apply_step(const ByteCharactersStep&, std::vector<Piece>& pieces) {
  for (Piece& piece : pieces) piece.text = to_byte_characters(piece.text);
  return ok_status();
}

Status apply_step(const MetaspaceStep& step, std::vector<Piece>& pieces) {
  const Metaspace& metaspace = step.metaspace;
  for (Piece& piece : pieces) {
    std::string text;
    text.reserve(piece.text.size() + metaspace.replacement.size());
    for (const char c : piece.text) {
      if (c == ' ') {
        text += metaspace.replacement;
      } else {
        text += c;
      }
    }
    const bool wanted = metaspace.prepend == Metaspace::Prepend::kAlways ||
                        (metaspace.prepend == Metaspace::Prepend::kFirst && piece.at_text_start);
    if (wanted && !text.starts_with(metaspace.replacement)) text.insert(0, metaspace.replacement);
    piece.text = std::move(text);
  }
  return ok_status();
}

Result<SplitBehavior> parse_behavior(const JsonPlace& place) {
  VOLLEY_ASSIGN_OR_RETURN(const std::string name, place.as_string());
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return place.wrong_value(
      "expected Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

}  // namespace

std::vector<ByteRange> split_at(const std::vector<ByteRange>& matches, size_t text_bytes,
                                SplitBehavior behavior, bool invert) {
  const std::vector<Segment> segments = segments_of(matches, text_bytes, invert);
  std::vector<ByteRange> parts;
  parts.reserve(segments.size());
  bool previous_is_delimiter = false;
  switch (behavior) {
    case SplitBehavior::kRemoved:
      for (const Segment& segment : segments) {
        if (!segment.is_delimiter) parts.push_back(segment.range);
      }
      break;
    case SplitBehavior::kIsolated:
      for (const Segment& segment : segments) parts.push_back(segment.range);
      break;
    case SplitBehavior::kContiguous:
      for (const Segment& segment : segments) {
        if (segment.is_delimiter == previous_is_delimiter && !parts.empty()) {
          parts.back().end = segment.range.end;
        } else {
          parts.push_back(segment.range);
        }
        previous_is_delimiter = segment.is_delimiter;
      }
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (const Segment& segment : segments) {
        if (segment.is_delimiter && !previous_is_delimiter && !parts.empty()) {
          parts.back().end = segment.range.end;
        } else {
          parts.push_back(segment.range);
        }
        previous_is_delimiter = segment.is_delimiter;
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
        if (segment->is_delimiter && !previous_is_delimiter && !parts.empty()) {
          parts.back().begin = segment->range.begin;
        } else {
          parts.push_back(segment->range);
        }
        previous_is_delimiter = segment->is_delimiter;
      }
      std::reverse(parts.begin(), parts.end());
      break;
  }
  return parts;
}

Result<PreTokenizer> PreTokenizer::parse(const JsonPlace& place) {
  PreTokenizer pre_tokenizer;
  VOLLEY_RETURN_IF_ERROR(pre_tokenizer.parse_into(place, 0));
  return pre_tokenizer;
}

Status PreTokenizer::parse_into(const JsonPlace& place, uint32_t depth) {
  if (depth > kNestingMax) return place.error(fmt::format("nested deeper than {}", kNestingMax));
  VOLLEY_ASSIGN_OR_RETURN(const std::string type, place.type());
  if (type == "Sequence") {
    VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "pretokenizers"}));
    VOLLEY_ASSIGN_OR_RETURN(const JsonPlace list, place.member("pretokenizers"));
    VOLLEY_ASSIGN_OR_RETURN(const std::vector<JsonPlace> parts, list.elements());
    for (const JsonPlace& part : parts) VOLLEY_RETURN_IF_ERROR(parse_into(part, depth + 1));
    return ok_status();
  }
  if (type == "ByteLevel") return parse_byte_level(place);
  if (type == "Split") return parse_split(place);
  if (type == "Metaspace") {
    VOLLEY_ASSIGN_OR_RETURN(Metaspace metaspace, Metaspace::parse(place));
    const bool split = metaspace.split;
    const std::string replacement = metaspace.replacement;
    steps_.push_back(MetaspaceStep{std::move(metaspace)});
    if (split)
      steps_.push_back(SplitStep{Pattern(replacement), SplitBehavior::kMergedWithNext, false});
    return ok_status();
  }
  if (type == "Digits") {
    VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "individual_digits"}));
    VOLLEY_ASSIGN_OR_RETURN(const bool individual, place.bool_member("individual_digits"));
    return add_split("\\p{N}", individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous,
                     false);
  }
  if (type == "Whitespace") {
    VOLLEY_RETURN_IF_ERROR(place.check_keys({"type"}));
    // Rust's \w has the join controls, Oniguruma's has not.
    return add_split("[\\w\\x{200c}\\x{200d}]+|[^\\w\\x{200c}\\x{200d}\\s]+",
                     SplitBehavior::kRemoved, true);
  }
  return place.member("type")->wrong_value(
      "supported pre-tokenizers are Sequence, ByteLevel, Split, Metaspace, Digits, Whitespace");
}

Status PreTokenizer::parse_byte_level(const JsonPlace& place) {
  VOLLEY_RETURN_IF_ERROR(
      place.check_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  VOLLEY_ASSIGN_OR_RETURN(const bool add_prefix_space, place.bool_member("add_prefix_space"));
  VOLLEY_ASSIGN_OR_RETURN(const bool use_regex, place.bool_member_or("use_regex", true));
  if (add_prefix_space) steps_.push_back(PrefixSpaceStep{});
  if (use_regex) {
    VOLLEY_RETURN_IF_ERROR(
        add_split(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                  SplitBehavior::kIsolated, false));
  }
  steps_.push_back(ByteCharactersStep{});
  return ok_status();
}

Status PreTokenizer::parse_split(const JsonPlace& place) {
  VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "pattern", "behavior", "invert"}));
  VOLLEY_ASSIGN_OR_RETURN(Pattern pattern, place.pattern_member("pattern"));
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace behavior_place, place.member("behavior"));
  VOLLEY_ASSIGN_OR_RETURN(const SplitBehavior behavior, parse_behavior(behavior_place));
  VOLLEY_ASSIGN_OR_RETURN(const bool invert, place.bool_member("invert"));
  steps_.push_back(SplitStep{std::move(pattern), behavior, invert});
  return ok_status();
}

Status PreTokenizer::add_split(const char* pattern, SplitBehavior behavior, bool invert) {
  VOLLEY_ASSIGN_OR_RETURN(Regex regex, Regex::compile(pattern));
  steps_.push_back(SplitStep{Pattern(std::move(regex)), behavior, invert});
  return ok_status();
}

Status PreTokenizer::apply(std::vector<Piece>& pieces) const {
  for (const Step& step : steps_) {
    VOLLEY_RETURN_IF_ERROR(std::visit([&](const auto& s) { return apply_step(s, pieces); }, step));
  }
  return ok_status();
}

}  // namespace volley::model
