#include "json_place.h"

#include <algorithm>

#include "unicode.h"

namespace volley::model {
namespace {

constexpr size_t kPreviewBytesMax = 80;

// A JSON pointer (RFC 6901) escapes '~' and '/'.
std::string pointer_part(std::string_view key) {
  std::string out = "/";
  for (const char c : key) {
    if (c == '~') {
      out += "~0";
    } else if (c == '/') {
      out += "~1";
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

std::string JsonPlace::preview(const nlohmann::json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (!value.is_string()) return value.dump();
  const auto& text = value.get_ref<const std::string&>();
  if (text.size() <= kPreviewBytesMax) return fmt::format("\"{}\"", text);
  size_t end = kPreviewBytesMax;
  while ((static_cast<uint8_t>(text[end]) & 0xc0) == 0x80) --end;
  return fmt::format("\"{}…\"", text.substr(0, end));
}

Status JsonPlace::error(std::string_view message) const {
  return invalid_argument("{}: {}: {}", *origin_, path_.empty() ? "/" : path_, message);
}

Status JsonPlace::wrong_value(std::string_view expected) const {
  return error(fmt::format("the value is {}; {}", preview(*value_), expected));
}

Status JsonPlace::check_keys(std::initializer_list<std::string_view> known) const {
  if (!value_->is_object()) return wrong_value("expected an object");
  for (const auto& [key, unused] : value_->items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return error(fmt::format("unknown member \"{}\"; known are {}", key, fmt::join(known, ", ")));
    }
  }
  return ok_status();
}

Result<JsonPlace> JsonPlace::member(std::string_view key) const {
  if (!value_->is_object()) return wrong_value("expected an object");
  const auto found = value_->find(key);
  if (found == value_->end()) return error(fmt::format("the member \"{}\" is missing", key));
  return JsonPlace(*found, *origin_, path_ + pointer_part(key));
}

std::optional<JsonPlace> JsonPlace::optional_member(std::string_view key) const {
  if (!value_->is_object()) return std::nullopt;
  const auto found = value_->find(key);
  if (found == value_->end() || found->is_null()) return std::nullopt;
  return JsonPlace(*found, *origin_, path_ + pointer_part(key));
}

Result<std::vector<JsonPlace>> JsonPlace::elements() const {
  if (!value_->is_array()) return wrong_value("expected an array");
  std::vector<JsonPlace> places;
  places.reserve(value_->size());
  for (size_t index = 0; index < value_->size(); ++index) {
    places.emplace_back((*value_)[index], *origin_, fmt::format("{}/{}", path_, index));
  }
  return places;
}

Result<std::string> JsonPlace::as_string() const {
  if (!value_->is_string()) return wrong_value("expected a string");
  return value_->get_ref<const std::string&>();
}

Result<bool> JsonPlace::as_bool() const {
  if (!value_->is_boolean()) return wrong_value("expected true or false");
  return value_->get<bool>();
}

Result<int64_t> JsonPlace::as_integer(int64_t lowest, int64_t highest) const {
  // An unsigned value above int64's range would wrap when read as one.
  const bool wraps = value_->is_number_unsigned() && value_->get<uint64_t>() > uint64_t{INT64_MAX};
  if (!value_->is_number_integer() || wraps || value_->get<int64_t>() < lowest ||
      value_->get<int64_t>() > highest) {
    return wrong_value(fmt::format("expected an integer from {} to {}", lowest, highest));
  }
  return value_->get<int64_t>();
}

Result<std::string> JsonPlace::string_member(std::string_view key) const {
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace place, member(key));
  return place.as_string();
}

Result<bool> JsonPlace::bool_member(std::string_view key) const {
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace place, member(key));
  return place.as_bool();
}

Result<bool> JsonPlace::bool_member_or(std::string_view key, bool fallback) const {
  const std::optional<JsonPlace> place = optional_member(key);
  if (!place) return fallback;
  return place->as_bool();
}

Result<Pattern> JsonPlace::pattern_member(std::string_view key) const {
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace place, member(key));
  VOLLEY_RETURN_IF_ERROR(place.check_keys({"String", "Regex"}));
  if (place.value().size() != 1) return place.error("expected either \"String\" or \"Regex\"");
  if (const auto literal = place.optional_member("String")) {
    VOLLEY_ASSIGN_OR_RETURN(std::string text, literal->as_string());
    if (text.empty()) return literal->wrong_value("expected a pattern that is not empty");
    return Pattern(std::move(text));
  }
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace regex_place, place.member("Regex"));
  VOLLEY_ASSIGN_OR_RETURN(const std::string source, regex_place.as_string());
  Result<Regex> regex = Regex::compile(source);
  if (!regex.ok()) return regex_place.error(message_of(regex.status()));
  return Pattern(std::move(regex).value());
}

}  // namespace volley::model
