#include "post_processor.h"

#include "bpe.h"

namespace volley::model {

Result<PostProcessor> PostProcessor::parse(const JsonPlace& place) {
  PostProcessor processor;
  VOLLEY_RETURN_IF_ERROR(processor.parse_into(place, 0));
  return processor;
}

Status PostProcessor::parse_into(const JsonPlace& place, uint32_t depth) {
  if (depth > kNestingMax) return place.error(fmt::format("nested deeper than {}", kNestingMax));
  VOLLEY_ASSIGN_OR_RETURN(const std::string type, place.type());
  if (type == "Sequence") {
    VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "processors"}));
    VOLLEY_ASSIGN_OR_RETURN(const JsonPlace list, place.member("processors"));
    VOLLEY_ASSIGN_OR_RETURN(const std::vector<JsonPlace> parts, list.elements());
    for (const JsonPlace& part : parts) VOLLEY_RETURN_IF_ERROR(parse_into(part, depth + 1));
    return ok_status();
  }
  if (type == "ByteLevel") {
    return place.check_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  }
  if (type == "TemplateProcessing") return parse_template(place);
  return place.member("type")->wrong_value(
      "supported post-processors are Sequence, TemplateProcessing, ByteLevel");
}

Status PostProcessor::parse_template(const JsonPlace& place) {
  VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "single", "pair", "special_tokens"}));
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace tokens, place.member("special_tokens"));
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace single, place.member("single"));
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<JsonPlace> parts, single.elements());
  Template result;
  bool has_text = false;
  for (const JsonPlace& part : parts) {
    VOLLEY_RETURN_IF_ERROR(part.check_keys({"SpecialToken", "Sequence"}));
    if (const auto sequence = part.optional_member("Sequence")) {
      VOLLEY_ASSIGN_OR_RETURN(const JsonPlace id_place, sequence->member("id"));
      VOLLEY_ASSIGN_OR_RETURN(const std::string id, id_place.as_string());
      if (id != "A" || has_text)
        return id_place.wrong_value("a single template has sequence A once");
      has_text = true;
      continue;
    }
    VOLLEY_ASSIGN_OR_RETURN(const JsonPlace special, part.member("SpecialToken"));
    VOLLEY_ASSIGN_OR_RETURN(const std::string name, special.string_member("id"));
    VOLLEY_ASSIGN_OR_RETURN(const JsonPlace definition, tokens.member(name));
    VOLLEY_ASSIGN_OR_RETURN(const JsonPlace ids_place, definition.member("ids"));
    VOLLEY_ASSIGN_OR_RETURN(const std::vector<JsonPlace> ids, ids_place.elements());
    for (const JsonPlace& id_place : ids) {
      VOLLEY_ASSIGN_OR_RETURN(const int64_t id, id_place.as_integer(0, kTokenIdMax));
      (has_text ? result.after : result.before).push_back(static_cast<int32_t>(id));
    }
  }
  if (!has_text) return single.error("the template has no {\"Sequence\": {\"id\": \"A\"}}");
  templates_.push_back(std::move(result));
  return ok_status();
}

void PostProcessor::add_special_tokens(std::vector<int32_t>& ids) const {
  for (const Template& part : templates_) {
    ids.insert(ids.begin(), part.before.begin(), part.before.end());
    ids.insert(ids.end(), part.after.begin(), part.after.end());
  }
}

std::vector<int32_t> PostProcessor::template_ids() const {
  std::vector<int32_t> ids;
  add_special_tokens(ids);
  return ids;
}

}  // namespace volley::model
