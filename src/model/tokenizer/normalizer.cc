#include "normalizer.h"

namespace volley::model {
namespace {

constexpr size_t kNormalizedBytesMax = 512u << 20;

Status apply_step(const PrependStep& step, std::string& text) {
  if (!text.empty()) text.insert(0, step.text);
  return ok_status();
}

Status apply_step(const ReplaceStep& step, std::string& text) {
  if (text.empty()) return ok_status();
  std::vector<ByteRange> matches;
  VOLLEY_RETURN_IF_ERROR(step.pattern.find_all(text, matches));
  std::string out;
  out.reserve(text.size());
  size_t copied = 0;
  for (const ByteRange& match : matches) {
    out.append(text, copied, match.begin - copied);
    out += step.content;
    copied = match.end;
  }
  out.append(text, copied);
  text = std::move(out);
  return ok_status();
}

Status apply_step(const NormalFormStep& step, std::string& text) {
  VOLLEY_ASSIGN_OR_RETURN(text, to_normal_form(text, step.form));
  return ok_status();
}

Status apply_step(const LowercaseStep&, std::string& text) {
  text = to_lower(text);
  return ok_status();
}

Status apply_step(const StripStep& step, std::string& text) {
  size_t begin = 0;
  size_t end = text.size();
  while (step.left && begin < end) {
    const Character character = character_at(text, begin);
    if (!is_white_space(character.code)) break;
    begin += character.bytes;
  }
  while (step.right && begin < end) {
    const size_t offset = previous_offset(text, end);
    if (!is_white_space(character_at(text, offset).code)) break;
    end = offset;
  }
  text = text.substr(begin, end - begin);
  return ok_status();
}

}  // namespace

Result<Normalizer> Normalizer::parse(const JsonPlace& place) {
  Normalizer normalizer;
  VOLLEY_RETURN_IF_ERROR(normalizer.parse_into(place, 0));
  return normalizer;
}

Status Normalizer::parse_into(const JsonPlace& place, uint32_t depth) {
  if (depth > kNestingMax) return place.error(fmt::format("nested deeper than {}", kNestingMax));
  VOLLEY_ASSIGN_OR_RETURN(const std::string type, place.type());
  if (type == "Sequence") {
    VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "normalizers"}));
    VOLLEY_ASSIGN_OR_RETURN(const JsonPlace list, place.member("normalizers"));
    VOLLEY_ASSIGN_OR_RETURN(const std::vector<JsonPlace> parts, list.elements());
    for (const JsonPlace& part : parts) VOLLEY_RETURN_IF_ERROR(parse_into(part, depth + 1));
  } else if (type == "Prepend") {
    VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "prepend"}));
    VOLLEY_ASSIGN_OR_RETURN(std::string text, place.string_member("prepend"));
    steps_.push_back(PrependStep{std::move(text)});
  } else if (type == "Replace") {
    VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "pattern", "content"}));
    VOLLEY_ASSIGN_OR_RETURN(Pattern pattern, place.pattern_member("pattern"));
    VOLLEY_ASSIGN_OR_RETURN(std::string content, place.string_member("content"));
    // Versions of `tokenizers` disagree on whether "$1" in the content names a group.
    if (place.member("pattern")->value().contains("Regex") && content.find('$') != content.npos) {
      return place.member("content")->wrong_value(
          "'$' beside a regular expression is not supported");
    }
    steps_.push_back(ReplaceStep{std::move(pattern), std::move(content)});
  } else if (type == "Strip") {
    VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "strip_left", "strip_right"}));
    VOLLEY_ASSIGN_OR_RETURN(const bool left, place.bool_member("strip_left"));
    VOLLEY_ASSIGN_OR_RETURN(const bool right, place.bool_member("strip_right"));
    steps_.push_back(StripStep{left, right});
  } else {
    VOLLEY_RETURN_IF_ERROR(place.check_keys({"type"}));
    if (type == "NFC") {
      steps_.push_back(NormalFormStep{NormalForm::kNfc});
    } else if (type == "NFD") {
      steps_.push_back(NormalFormStep{NormalForm::kNfd});
    } else if (type == "NFKC") {
      steps_.push_back(NormalFormStep{NormalForm::kNfkc});
    } else if (type == "NFKD") {
      steps_.push_back(NormalFormStep{NormalForm::kNfkd});
    } else if (type == "Lowercase") {
      steps_.push_back(LowercaseStep{});
    } else {
      return place.member("type")->wrong_value(
          "supported normalizers are Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, "
          "Strip");
    }
  }
  return ok_status();
}

Status Normalizer::apply(std::string& text) const {
  for (const Step& step : steps_) {
    VOLLEY_RETURN_IF_ERROR(std::visit([&](const auto& s) { return apply_step(s, text); }, step));
    // The next steps count bytes in 32 bits.
    if (text.size() > kNormalizedBytesMax) {
      return resource_exhausted("the normalizer made {} bytes; at most {} are supported",
                                text.size(), kNormalizedBytesMax);
    }
  }
  return ok_status();
}

}  // namespace volley::model
