#pragma once

#include <string>
#include <variant>
#include <vector>

#include "json_place.h"
#include "pattern.h"
#include "unicode.h"
#include "volley/base/status.h"

namespace volley::model {

struct PrependStep {
  std::string text;
};
struct ReplaceStep {
  Pattern pattern;
  std::string content;
};
struct NormalFormStep {
  NormalForm form;
};
struct LowercaseStep {};
struct StripStep {
  bool left;
  bool right;
};

/// The file's "normalizer": steps applied in order to every part of a text that is no added token.
/// Types: Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip.
class Normalizer {
 public:
  /// Without steps it changes nothing.
  Normalizer() = default;
  static Result<Normalizer> parse(const JsonPlace& place);

  /// `text` must be valid UTF-8, and is so afterwards. Errors: kResourceExhausted from a pattern.
  Status apply(std::string& text) const;

 private:
  using Step = std::variant<PrependStep, ReplaceStep, NormalFormStep, LowercaseStep, StripStep>;
  Status parse_into(const JsonPlace& place, uint32_t depth);

  std::vector<Step> steps_;  // Sequences are flattened.
};

}  // namespace volley::model
