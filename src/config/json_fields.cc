#include "volley/config/json_fields.h"

namespace volley::config {

using nlohmann::json;

const json* JsonFields::find(const std::string& field) const {
  const auto found = object_.find(field);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

Result<uint32_t> JsonFields::integer(const std::string& field, Range range) const {
  const json* value = find(field);
  if (value == nullptr) {
    return bad(field, "is missing, it must be an integer from {} to {}", range.min, range.max);
  }
  const bool valid = value->is_number_unsigned() && value->get<uint64_t>() >= range.min &&
                     value->get<uint64_t>() <= range.max;
  if (!valid) {
    return bad(field, "is {}, it must be an integer from {} to {}", shown(*value), range.min,
               range.max);
  }
  return value->get<uint32_t>();
}

Result<uint32_t> JsonFields::integer_or(const std::string& field, Range range,
                                        uint32_t absent) const {
  if (find(field) == nullptr) return absent;
  return integer(field, range);
}

Result<double> JsonFields::number(const std::string& field, double min, double max) const {
  const json* value = find(field);
  if (value == nullptr)
    return bad(field, "is missing, it must be a number from {} to {}", min, max);
  const bool valid =
      value->is_number() && value->get<double>() >= min && value->get<double>() <= max;
  if (!valid)
    return bad(field, "is {}, it must be a number from {} to {}", shown(*value), min, max);
  return value->get<double>();
}

Result<bool> JsonFields::boolean_or(const std::string& field, bool absent) const {
  const json* value = find(field);
  if (value == nullptr) return absent;
  if (!value->is_boolean()) return bad(field, "is {}, it must be true or false", shown(*value));
  return value->get<bool>();
}

Result<std::string> JsonFields::text_or(const std::string& field, const std::string& absent) const {
  const json* value = find(field);
  if (value == nullptr) return absent;
  if (!value->is_string()) return bad(field, "is {}, it must be a string", shown(*value));
  return value->get<std::string>();
}

Result<const json*> JsonFields::object(const std::string& field) const {
  const json* value = find(field);
  if (value != nullptr && !value->is_object()) {
    return bad(field, "is {}, it must be an object", shown(*value));
  }
  return value;
}

}  // namespace volley::config
