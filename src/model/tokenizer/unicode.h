#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "volley/base/status.h"

namespace volley::model {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

/// A UTF-8 reader fed byte by byte that knows where a sequence becomes impossible.
class Utf8Reader {
 public:
  enum class Step { kComplete, kIncomplete, kInvalid };

  /// kInvalid leaves the reader at the start of a character; the byte itself is not consumed when
  /// it broke off a sequence that had begun (`was_inside`), so that it can start the next one.
  Step feed(uint8_t byte);
  bool inside() const { return missing_ > 0; }
  void reset() { missing_ = 0; }

 private:
  uint32_t missing_ = 0;  // Continuation bytes still to come.
  uint8_t lowest_ = 0x80;
  uint8_t highest_ = 0xbf;
};

/// Turns a stream of any bytes into valid UTF-8 with one U+FFFD per maximal invalid part.
class LossyUtf8 {
 public:
  void append(std::string_view bytes, std::string& out);
  void finish(std::string& out);

 private:
  Utf8Reader reader_;
  std::string pending_;  // The begun character, at most three bytes.
};

std::string to_valid_utf8(std::string_view bytes);

/// The character that starts at `text[offset]`; `text` is valid UTF-8 and the offset a boundary.
struct Character {
  char32_t code;
  uint32_t bytes;
};
Character character_at(std::string_view text, size_t offset);
/// The offset at which the character that ends at `offset` (> 0) starts.
size_t previous_offset(std::string_view text, size_t offset);
void append_character(std::string& out, char32_t code);

/// Unicode White_Space, which is what `\s` means to Rust's and Oniguruma's regular expressions.
bool is_white_space(char32_t code);
/// What `\w` means to Rust's regular expressions (UTS #18, annex C).
bool is_word(char32_t code);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
Result<std::string> to_normal_form(std::string_view text, NormalForm form);
/// Character by character, without the context rules (a final sigma stays a plain sigma).
std::string to_lower(std::string_view text);

}  // namespace volley::model
