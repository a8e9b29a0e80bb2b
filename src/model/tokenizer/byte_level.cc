#include "byte_level.h"

#include <array>

#include "unicode.h"

namespace volley::model {
namespace {

constexpr char32_t kCharacterEnd = 0x144;  // U+0100 plus 68 bytes without a printable character.

constexpr bool is_printable(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int16_t, kCharacterEnd> byte{};

  constexpr Alphabet() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (uint32_t value = 0; value < 256; ++value) {
      character[value] = is_printable(value) ? value : next++;
      byte[character[value]] = static_cast<int16_t>(value);
    }
  }
};
constexpr Alphabet kAlphabet;
static_assert(kAlphabet.character[' '] == 0x120 && kAlphabet.byte[0x143] == 0xad);

}  // namespace

std::string to_byte_characters(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char c : bytes) append_character(out, kAlphabet.character[static_cast<uint8_t>(c)]);
  return out;
}

std::optional<std::string> from_byte_characters(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const Character character = character_at(text, offset);
    offset += character.bytes;
    if (character.code >= kCharacterEnd || kAlphabet.byte[character.code] < 0) return std::nullopt;
    out += static_cast<char>(kAlphabet.byte[character.code]);
  }
  return out;
}

}  // namespace volley::model
