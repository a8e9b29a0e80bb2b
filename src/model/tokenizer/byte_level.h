#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace volley::model {

/// GPT-2's byte alphabet: each byte is one printable character, so that a vocabulary is text.
/// Printable Latin-1 stands for itself; the 68 other bytes are U+0100 and up, in order.

/// Each byte of `bytes` as its character, in UTF-8.
std::string to_byte_characters(std::string_view bytes);
/// The bytes that the characters of `text` stand for; empty when one of them stands for none.
std::optional<std::string> from_byte_characters(std::string_view text);

}  // namespace volley::model
