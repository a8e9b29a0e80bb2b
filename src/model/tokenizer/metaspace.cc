#include "metaspace.h"

#include "unicode.h"

namespace volley::model {

Result<Metaspace> Metaspace::parse(const JsonPlace& place) {
  VOLLEY_RETURN_IF_ERROR(place.check_keys(
      {"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"}));
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace character, place.member("replacement"));
  VOLLEY_ASSIGN_OR_RETURN(std::string replacement, character.as_string());
  if (replacement.empty() || character_at(replacement, 0).bytes != replacement.size()) {
    return character.wrong_value("expected one character");
  }
  Prepend prepend = Prepend::kAlways;
  if (const auto scheme_place = place.optional_member("prepend_scheme")) {
    VOLLEY_ASSIGN_OR_RETURN(const std::string scheme, scheme_place->as_string());
    if (scheme == "first") {
      prepend = Prepend::kFirst;
    } else if (scheme == "never") {
      prepend = Prepend::kNever;
    } else if (scheme != "always") {
      return scheme_place->wrong_value("expected \"first\", \"always\" or \"never\"");
    }
  }
  // Older files say it with `add_prefix_space`; a file that has both must not contradict itself.
  VOLLEY_ASSIGN_OR_RETURN(const bool add_prefix_space,
                          place.bool_member_or("add_prefix_space", true));
  if (!add_prefix_space && prepend != Prepend::kNever) {
    return place.member("add_prefix_space")->wrong_value("it contradicts the prepend_scheme");
  }
  VOLLEY_ASSIGN_OR_RETURN(const bool split, place.bool_member_or("split", true));
  return Metaspace{std::move(replacement), prepend, split};
}

}  // namespace volley::model
