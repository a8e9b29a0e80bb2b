#pragma once

#include <string>

#include "json_place.h"

namespace volley::model {

/// "Metaspace" is both a pre-tokenizer and a decoder, with the same members.
struct Metaspace {
  enum class Prepend { kFirst, kAlways, kNever };
  std::string replacement;  ///< One character, for each space.
  Prepend prepend;
  bool split;

  static Result<Metaspace> parse(const JsonPlace& place);
};

}  // namespace volley::model
