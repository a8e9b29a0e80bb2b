#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "volley/base/status.h"
#include "volley/config/json_reader.h"

namespace volley::config {

/// Typed, range-checked access to the fields of one JSON object. A field that is absent and one
/// that is null are the same, as in transformers. Errors name the file, the field, its value and
/// what is allowed.
class JsonFields {
 public:
  struct Range {
    uint32_t min;
    uint32_t max;
  };

  /// Borrows both; `origin` names the file, and the object inside it when that is nested.
  JsonFields(const nlohmann::json& object, const std::string& origin)
      : object_(object), origin_(origin) {}

  /// Null when the field is absent or null.
  const nlohmann::json* find(const std::string& field) const;

  /// Errors, here and below: kInvalidArgument.
  Result<uint32_t> integer(const std::string& field, Range range) const;
  Result<uint32_t> integer_or(const std::string& field, Range range, uint32_t absent) const;
  Result<double> number(const std::string& field, double min, double max) const;
  Result<bool> boolean_or(const std::string& field, bool absent) const;
  Result<std::string> text_or(const std::string& field, const std::string& absent) const;
  /// The nested object, or nothing.
  Result<const nlohmann::json*> object(const std::string& field) const;

  template <class... Args>
  Status bad(const std::string& field, fmt::format_string<Args...> why, Args&&... args) const {
    return invalid_argument("{}: {} {}", origin_, field,
                            fmt::format(why, std::forward<Args>(args)...));
  }
  template <class... Args>
  Status unsupported(const std::string& field, fmt::format_string<Args...> why,
                     Args&&... args) const {
    return failed_precondition("{}: {} {}", origin_, field,
                               fmt::format(why, std::forward<Args>(args)...));
  }
  const std::string& origin() const { return origin_; }

 private:
  const nlohmann::json& object_;
  const std::string origin_;
};

}  // namespace volley::config
