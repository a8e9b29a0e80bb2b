#pragma once

// A strict reader over yaml-cpp: typed scalars, no duplicate and no unknown keys, errors with file,
// line and key. yaml-cpp itself accepts duplicates (the first wins), reads 010 as 8 and yes as
// true.

#include <yaml-cpp/yaml.h>

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "volley/base/status.h"

namespace volley::config {

/// The document as yaml-cpp sees it. Errors: kInvalidArgument "ORIGIN:LINE: ...".
Result<YAML::Node> parse_yaml(const std::string& text, const std::string& origin);

/// One mapping of the document. Reads are by key; the first error is kept, later reads do nothing,
/// and finish() reports it, or else the first key that nobody read.
class YamlMap {
 public:
  /// `path` is the key of this mapping ("transport"), "" for the document.
  YamlMap(const YAML::Node& node, std::string path, const std::string& origin, Status& status);
  YamlMap(const YamlMap&) = delete;
  YamlMap& operator=(const YamlMap&) = delete;

  // An absent key leaves the value as it is.
  void string(const std::string& key, std::string& value);
  void text(const std::string& key, std::string& value);  ///< Like string, but not empty.
  void integer(const std::string& key, uint32_t& value, uint32_t min, uint32_t max);
  void integer64(const std::string& key, uint64_t& value);
  /// A finite decimal number: "3", "0.92", "4.096e12".
  void number(const std::string& key, double& value, double min, double max);
  void boolean(const std::string& key, bool& value);
  void choice(const std::string& key, std::string& value, const std::vector<std::string>& allowed);
  void integers(const std::string& key, std::vector<uint32_t>& value, uint32_t max);
  void strings(const std::string& key, std::vector<std::string>& value);
  /// A list of pairs of numbers, like [[1, 0.2], [256, 0.6]].
  void number_pairs(const std::string& key, std::vector<std::pair<double, double>>& value);
  void map(const std::string& key, const std::function<void(YamlMap&)>& read);
  void list(const std::string& key, const std::function<void(YamlMap&, uint32_t index)>& read);
  void required(const std::string& key);

  bool is_map(const std::string& key) const {
    return values_.contains(key) && values_.at(key).IsMap();
  }
  bool is_list(const std::string& key) const {
    return values_.contains(key) && values_.at(key).IsSequence();
  }
  bool has(const std::string& key) const { return values_.contains(key); }
  /// The scalar as written, for keys that accept several types; marks it read.
  std::string raw(const std::string& key);
  /// Reports a bad value of a key.
  void fail(const std::string& key, const std::string& message);
  void finish();

 private:
  const YAML::Node* find(const std::string& key);
  const YAML::Node* find_scalar(const std::string& key);
  std::string full(const std::string& key) const;
  void fail_at(const YAML::Node& node, const std::string& key, const std::string& message);

  const std::string path_;
  const std::string& origin_;
  Status& status_;
  int line_;
  std::map<std::string, YAML::Node> values_;
  std::set<std::string> read_;
};

/// Parses one unsigned decimal number: digits only, no sign, no leading zero, at most `max`.
bool parse_decimal(const std::string& text, uint64_t max, uint64_t& value);
/// Parses one finite decimal number, the whole text of it: no hexadecimal, no leading "+".
bool parse_number(const std::string& text, double& value);

}  // namespace volley::config
