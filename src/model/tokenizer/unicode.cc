#include "unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>

namespace volley::model {

Utf8Reader::Step Utf8Reader::feed(uint8_t byte) {
  if (missing_ > 0) {
    if (byte < lowest_ || byte > highest_) {
      missing_ = 0;
      return Step::kInvalid;
    }
    lowest_ = 0x80;
    highest_ = 0xbf;
    --missing_;
    return missing_ == 0 ? Step::kComplete : Step::kIncomplete;
  }
  if (byte < 0x80) return Step::kComplete;
  // The second byte's range shuts out overlong forms, surrogates and code points above U+10FFFF.
  lowest_ = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
  highest_ = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
  if (byte >= 0xc2 && byte <= 0xdf) {
    missing_ = 1;
  } else if (byte >= 0xe0 && byte <= 0xef) {
    missing_ = 2;
  } else if (byte >= 0xf0 && byte <= 0xf4) {
    missing_ = 3;
  } else {
    return Step::kInvalid;
  }
  return Step::kIncomplete;
}

void LossyUtf8::append(std::string_view bytes, std::string& out) {
  for (const char c : bytes) {
    const uint8_t byte = static_cast<uint8_t>(c);
    const bool was_inside = reader_.inside();
    Utf8Reader::Step step = reader_.feed(byte);
    if (step == Utf8Reader::Step::kInvalid && was_inside) {
      out += kReplacementCharacter;
      pending_.clear();
      step = reader_.feed(byte);
    }
    switch (step) {
      case Utf8Reader::Step::kComplete:
        out += pending_;
        out += c;
        pending_.clear();
        break;
      case Utf8Reader::Step::kIncomplete:
        pending_ += c;
        break;
      case Utf8Reader::Step::kInvalid:
        out += kReplacementCharacter;
        break;
    }
  }
}

void LossyUtf8::finish(std::string& out) {
  if (reader_.inside()) out += kReplacementCharacter;
  reader_.reset();
  pending_.clear();
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  LossyUtf8 lossy;
  lossy.append(bytes, out);
  lossy.finish(out);
  return out;
}

Character character_at(std::string_view text, size_t offset) {
  const auto byte = [&](size_t index) -> char32_t {
    return static_cast<uint8_t>(text[offset + index]);
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xe0) return {(lead & 0x1f) << 6 | (byte(1) & 0x3f), 2};
  if (lead < 0xf0) return {(lead & 0xf) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f), 3};
  return {(lead & 7) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f), 4};
}

size_t previous_offset(std::string_view text, size_t offset) {
  do {
    --offset;
  } while (offset > 0 && (static_cast<uint8_t>(text[offset]) & 0xc0) == 0x80);
  return offset;
}

void append_character(std::string& out, char32_t code) {
  const auto put = [&](char32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

bool is_white_space(char32_t code) {
  return u_hasBinaryProperty(static_cast<UChar32>(code), UCHAR_WHITE_SPACE) != 0;
}

bool is_word(char32_t code) {
  const auto point = static_cast<UChar32>(code);
  constexpr uint32_t kMarksDigitsConnectors = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  return u_hasBinaryProperty(point, UCHAR_ALPHABETIC) != 0 ||
         (U_GET_GC_MASK(point) & kMarksDigitsConnectors) != 0 ||
         u_hasBinaryProperty(point, UCHAR_JOIN_CONTROL) != 0;
}

namespace {

// The reference library normalises by the tables of Unicode 9.0: what came later stays as it is and
// combines with nothing. Ids must not depend on which ICU is installed either.
const icu::UnicodeSet& normalized_characters(UErrorCode& error) {
  static UErrorCode set_error = U_ZERO_ERROR;
  static const icu::UnicodeSet set(u"[:Age=9.0:]", set_error);
  if (U_FAILURE(set_error)) error = set_error;
  return set;
}

}  // namespace

Result<std::string> to_normal_form(std::string_view text, NormalForm form) {
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = nullptr;
  switch (form) {
    case NormalForm::kNfc:
      normalizer = icu::Normalizer2::getNFCInstance(error);
      break;
    case NormalForm::kNfd:
      normalizer = icu::Normalizer2::getNFDInstance(error);
      break;
    case NormalForm::kNfkc:
      normalizer = icu::Normalizer2::getNFKCInstance(error);
      break;
    case NormalForm::kNfkd:
      normalizer = icu::Normalizer2::getNFKDInstance(error);
      break;
  }
  const icu::UnicodeSet& characters = normalized_characters(error);
  std::string out;
  if (U_SUCCESS(error)) {
    const icu::FilteredNormalizer2 filtered(*normalizer, characters);
    icu::StringByteSink<std::string> sink(&out);
    filtered.normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())),
                           sink, nullptr, error);
  }
  if (U_FAILURE(error)) {
    return internal_error("Unicode normalisation of {} bytes failed: {}", text.size(),
                          u_errorName(error));
  }
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const Character character = character_at(text, offset);
    offset += character.bytes;
    if (character.code == 0x130) {
      out += "i\xcc\x87";  // The one character whose lower case is two, without any context.
    } else {
      append_character(out, static_cast<char32_t>(u_tolower(static_cast<UChar32>(character.code))));
    }
  }
  return out;
}

}  // namespace volley::model
