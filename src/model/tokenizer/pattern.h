#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "volley/base/status.h"

namespace volley::model {

/// Bytes [begin, end) of a text.
struct ByteRange {
  size_t begin;
  size_t end;
};

/// A regular expression as `tokenizer.json` means it: Oniguruma with Ruby's syntax over Unicode,
/// run by PCRE2. The pattern is translated where the two differ (`\s \w \h \v \b`, scripts,
/// `{,n}`), and what cannot be translated (class intersection, nested classes, `(?m)`, `{n,m}+`) is
/// refused. Safe from any thread.
class Regex {
 public:
  /// Errors: kInvalidArgument with the pattern and the offset of the fault.
  static Result<Regex> compile(const std::string& pattern);

  /// All matches from left to right, without overlaps; an empty match directly after a match is
  /// skipped. `text` must be valid UTF-8. Errors: kResourceExhausted when one match needs too many
  /// steps.
  Status find_all(std::string_view text, std::vector<ByteRange>& matches) const;

  struct Code;
  struct CodeDelete {
    void operator()(Code* code) const;
  };

 private:
  explicit Regex(std::unique_ptr<Code, CodeDelete> code) : code_(std::move(code)) {}
  std::unique_ptr<Code, CodeDelete> code_;
};

/// The pattern in PCRE2's syntax; what `Regex::compile` compiles. Errors as there.
Result<std::string> translate_pattern(std::string_view pattern);

/// What the file calls a pattern: a literal string or a regular expression.
class Pattern {
 public:
  /// A literal; it must not be empty.
  explicit Pattern(std::string literal) : literal_(std::move(literal)) {}
  explicit Pattern(Regex regex) : regex_(std::make_unique<Regex>(std::move(regex))) {}

  /// As Regex::find_all.
  Status find_all(std::string_view text, std::vector<ByteRange>& matches) const;

 private:
  std::string literal_;
  std::unique_ptr<Regex> regex_;  // Null for a literal.
};

}  // namespace volley::model
