#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pattern.h"
#include "volley/base/status.h"

namespace volley::model {

/// A value inside a JSON file together with where it stands, so that every error can say so.
/// The document and the origin must outlive it.
class JsonPlace {
 public:
  JsonPlace(const nlohmann::json& value, const std::string& origin, std::string path = "")
      : value_(&value), origin_(&origin), path_(std::move(path)) {}

  const nlohmann::json& value() const { return *value_; }
  /// kInvalidArgument: "<origin>: <JSON pointer>: <message>".
  Status error(std::string_view message) const;
  /// The same with what stands there: "... is <value>; <expected>".
  Status wrong_value(std::string_view expected) const;

  /// Errors unless this is an object whose keys are all in `known`.
  Status check_keys(std::initializer_list<std::string_view> known) const;
  /// The member, or an error that it is missing.
  Result<JsonPlace> member(std::string_view key) const;
  /// The member; empty when it is absent or null.
  std::optional<JsonPlace> optional_member(std::string_view key) const;
  /// Every element of an array, or an error.
  Result<std::vector<JsonPlace>> elements() const;

  Result<std::string> as_string() const;
  Result<bool> as_bool() const;
  /// An integer in [lowest, highest].
  Result<int64_t> as_integer(int64_t lowest, int64_t highest) const;

  Result<std::string> string_member(std::string_view key) const;
  Result<bool> bool_member(std::string_view key) const;
  /// `fallback` when the member is absent or null.
  Result<bool> bool_member_or(std::string_view key, bool fallback) const;
  /// {"String": "..."} or {"Regex": "..."} under `key`.
  Result<Pattern> pattern_member(std::string_view key) const;
  /// The member "type" as a string.
  Result<std::string> type() const { return string_member("type"); }

  /// The value as JSON text, cut to a length that fits a log line.
  static std::string preview(const nlohmann::json& value);

 private:
  const nlohmann::json* value_;
  const std::string* origin_;
  std::string path_;
};

/// `Sequence` components nest; this is how deep.
inline constexpr uint32_t kNestingMax = 32;

}  // namespace volley::model
