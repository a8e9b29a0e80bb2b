#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "volley/base/status.h"

namespace volley::config {

/// What a file from outside may cost before it is refused.
struct JsonLimits {
  size_t bytes_max;
  size_t depth_max;
  size_t values_max;  ///< Objects, arrays, strings, numbers, booleans and nulls together.
};

/// Parses one JSON object. Stricter than the library: a duplicate key, a depth or a number of
/// values beyond the limits, a top level that is no object, or bytes after it are errors. `origin`
/// names the file in errors. Errors: kInvalidArgument.
Result<nlohmann::json> parse_json_object(std::string_view text, const JsonLimits& limits,
                                         const std::string& origin);

/// `text` for an error message: in quotes, control characters escaped, cut after 100 bytes.
std::string in_quotes(std::string_view text);

/// A JSON value for an error message, cut after 100 bytes.
std::string shown(const nlohmann::json& value);

}  // namespace volley::config
