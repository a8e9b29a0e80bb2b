#pragma once

#include <string>
#include <variant>
#include <vector>

#include "json_place.h"
#include "metaspace.h"
#include "pattern.h"
#include "volley/base/status.h"

namespace volley::model {

/// What becomes of the matches of a pattern that splits a text.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

/// The parts of [0, text_bytes) after a split at `matches`, in order; parts may be empty.
/// With `invert`, what lies between the matches is the delimiter.
std::vector<ByteRange> split_at(const std::vector<ByteRange>& matches, size_t text_bytes,
                                SplitBehavior behavior, bool invert);

/// A part of the text on its way to the model.
struct Piece {
  std::string text;
  bool at_text_start;  ///< It begins where the whole original text begins.
};

struct SplitStep {
  Pattern pattern;
  SplitBehavior behavior;
  bool invert;
};
struct PrefixSpaceStep {};
struct ByteCharactersStep {};
struct MetaspaceStep {
  Metaspace metaspace;
};

/// The file's "pre_tokenizer": cuts normalized text into the pieces that are encoded one by one.
/// Types: Sequence, ByteLevel, Split, Metaspace, Digits, Whitespace.
class PreTokenizer {
 public:
  /// Without steps it changes nothing.
  PreTokenizer() = default;
  static Result<PreTokenizer> parse(const JsonPlace& place);

  /// Errors: kResourceExhausted from a pattern.
  Status apply(std::vector<Piece>& pieces) const;

 private:
  // Digits and Whitespace are Splits; ByteLevel and Metaspace are made of several steps.
  using Step = std::variant<SplitStep, PrefixSpaceStep, ByteCharactersStep, MetaspaceStep>;
  Status parse_into(const JsonPlace& place, uint32_t depth);
  Status parse_byte_level(const JsonPlace& place);
  Status parse_split(const JsonPlace& place);
  Status add_split(const char* pattern, SplitBehavior behavior, bool invert);

  std::vector<Step> steps_;  // Sequences are flattened.
};

}  // namespace volley::model
