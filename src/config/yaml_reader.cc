#include "volley/config/yaml_reader.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace volley::config {

bool parse_decimal(const std::string& text, uint64_t max, uint64_t& value) {
  if (text.empty() || (text.size() > 1 && text.front() == '0')) return false;
  uint64_t parsed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  if (error != std::errc() || end != text.data() + text.size() || parsed > max) return false;
  value = parsed;
  return true;
}

bool parse_number(const std::string& text, double& value) {
  double parsed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  // from_chars reads "inf" and "nan" too.
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(parsed)) {
    return false;
  }
  value = parsed;
  return true;
}

Result<YAML::Node> parse_yaml(const std::string& text, const std::string& origin) {
  try {
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    return invalid_argument("{}:{}: {}", origin, error.mark.line + 1, error.msg);
  }
}

YamlMap::YamlMap(const YAML::Node& node, std::string path, const std::string& origin,
                 Status& status)
    : path_(std::move(path)),
      origin_(origin),
      status_(status),
      line_(std::max(node.Mark().line, 0)) {
  if (!status_.ok()) return;
  if (!node.IsMap()) {
    fail_at(node, "", "must be a mapping of keys to values");
    return;
  }
  for (const auto& entry : node) {
    if (!entry.first.IsScalar()) {
      fail_at(entry.first, "", "a key must be a plain word");
      return;
    }
    const std::string key = entry.first.Scalar();
    if (!values_.emplace(key, entry.second).second) {
      fail_at(entry.first, key, "the key appears twice");
      return;
    }
  }
}

std::string YamlMap::full(const std::string& key) const {
  if (key.empty()) return path_.empty() ? "the document" : path_;
  return path_.empty() ? key : path_ + "." + key;
}

void YamlMap::fail_at(const YAML::Node& node, const std::string& key, const std::string& message) {
  if (!status_.ok()) return;
  const int line = node.Mark().line >= 0 ? node.Mark().line : line_;
  status_ = invalid_argument("{}:{}: {}: {}", origin_, line + 1, full(key), message);
}

void YamlMap::fail(const std::string& key, const std::string& message) {
  const auto it = values_.find(key);
  fail_at(it == values_.end() ? YAML::Node() : it->second, key, message);
}

const YAML::Node* YamlMap::find(const std::string& key) {
  read_.insert(key);
  if (!status_.ok()) return nullptr;
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : &it->second;
}

const YAML::Node* YamlMap::find_scalar(const std::string& key) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return nullptr;
  if (!node->IsScalar()) {
    fail_at(*node, key, "must be a single value");
    return nullptr;
  }
  return node;
}

std::string YamlMap::raw(const std::string& key) {
  const YAML::Node* node = find_scalar(key);
  return node == nullptr ? std::string() : node->Scalar();
}

void YamlMap::string(const std::string& key, std::string& value) {
  if (const YAML::Node* node = find_scalar(key)) value = node->Scalar();
}

void YamlMap::text(const std::string& key, std::string& value) {
  const YAML::Node* node = find_scalar(key);
  if (node == nullptr) return;
  if (node->Scalar().empty()) return fail_at(*node, key, "must not be empty");
  value = node->Scalar();
}

void YamlMap::integer(const std::string& key, uint32_t& value, uint32_t min, uint32_t max) {
  const YAML::Node* node = find_scalar(key);
  if (node == nullptr) return;
  uint64_t parsed = 0;
  if (!parse_decimal(node->Scalar(), max, parsed) || parsed < min) {
    return fail_at(*node, key,
                   fmt::format("'{}' is not an integer in [{}, {}]", node->Scalar(), min, max));
  }
  value = static_cast<uint32_t>(parsed);
}

void YamlMap::integer64(const std::string& key, uint64_t& value) {
  const YAML::Node* node = find_scalar(key);
  if (node == nullptr) return;
  if (!parse_decimal(node->Scalar(), UINT64_MAX, value)) {
    fail_at(*node, key,
            fmt::format("'{}' is not an integer in [0, {}]", node->Scalar(), UINT64_MAX));
  }
}

void YamlMap::number(const std::string& key, double& value, double min, double max) {
  const YAML::Node* node = find_scalar(key);
  if (node == nullptr) return;
  double parsed = 0;
  if (!parse_number(node->Scalar(), parsed) || parsed < min || parsed > max) {
    return fail_at(*node, key,
                   fmt::format("'{}' is not a number in [{}, {}]", node->Scalar(), min, max));
  }
  value = parsed;
}

void YamlMap::boolean(const std::string& key, bool& value) {
  const YAML::Node* node = find_scalar(key);
  if (node == nullptr) return;
  if (node->Scalar() != "true" && node->Scalar() != "false") {
    return fail_at(*node, key, fmt::format("'{}' is neither true nor false", node->Scalar()));
  }
  value = node->Scalar() == "true";
}

void YamlMap::choice(const std::string& key, std::string& value,
                     const std::vector<std::string>& allowed) {
  const YAML::Node* node = find_scalar(key);
  if (node == nullptr) return;
  for (const std::string& candidate : allowed) {
    if (node->Scalar() == candidate) {
      value = candidate;
      return;
    }
  }
  fail_at(*node, key,
          fmt::format("'{}' is not one of {}", node->Scalar(), fmt::join(allowed, ", ")));
}

void YamlMap::integers(const std::string& key, std::vector<uint32_t>& value, uint32_t max) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return;
  if (!node->IsSequence()) return fail_at(*node, key, "must be a list of integers, like [0, 3]");
  value.clear();
  for (const YAML::Node& element : *node) {
    uint64_t parsed = 0;
    if (!element.IsScalar() || !parse_decimal(element.Scalar(), max, parsed)) {
      return fail_at(element, key,
                     fmt::format("'{}' is not an integer in [0, {}]",
                                 element.IsScalar() ? element.Scalar() : "...", max));
    }
    value.push_back(static_cast<uint32_t>(parsed));
  }
}

void YamlMap::strings(const std::string& key, std::vector<std::string>& value) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return;
  if (!node->IsSequence()) return fail_at(*node, key, "must be a list of words, like [a, b]");
  value.clear();
  for (const YAML::Node& element : *node) {
    if (!element.IsScalar()) return fail_at(element, key, "must be a list of words, like [a, b]");
    value.push_back(element.Scalar());
  }
}

void YamlMap::number_pairs(const std::string& key, std::vector<std::pair<double, double>>& value) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return;
  constexpr const char* kForm = "must be a list of pairs of numbers, like [[1, 0.2], [256, 0.6]]";
  if (!node->IsSequence()) return fail_at(*node, key, kForm);
  value.clear();
  for (const YAML::Node& element : *node) {
    std::pair<double, double> pair;
    const bool valid = element.IsSequence() && element.size() == 2 && element[0].IsScalar() &&
                       element[1].IsScalar() && parse_number(element[0].Scalar(), pair.first) &&
                       parse_number(element[1].Scalar(), pair.second);
    if (!valid) return fail_at(element, key, kForm);
    value.push_back(pair);
  }
}

void YamlMap::map(const std::string& key, const std::function<void(YamlMap&)>& read) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return;
  YamlMap child(*node, full(key), origin_, status_);
  if (status_.ok()) read(child);
  child.finish();
}

void YamlMap::list(const std::string& key,
                   const std::function<void(YamlMap&, uint32_t index)>& read) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return;
  if (!node->IsSequence()) return fail_at(*node, key, "must be a list");
  uint32_t index = 0;
  for (const YAML::Node& element : *node) {
    YamlMap child(element, fmt::format("{}[{}]", full(key), index), origin_, status_);
    if (status_.ok()) read(child, index);
    child.finish();
    ++index;
  }
}

void YamlMap::required(const std::string& key) {
  if (status_.ok() && !values_.contains(key)) {
    status_ = invalid_argument("{}:{}: {}: the key is missing", origin_, line_ + 1, full(key));
  }
}

void YamlMap::finish() {
  if (!status_.ok()) return;
  for (const auto& [key, node] : values_) {
    if (read_.contains(key)) continue;
    return fail_at(node, key, fmt::format("unknown key; known here: {}", fmt::join(read_, ", ")));
  }
}

}  // namespace volley::config
