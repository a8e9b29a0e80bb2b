#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "json_place.h"
#include "metaspace.h"
#include "volley/base/status.h"

namespace volley::model {

/// One stage of decoding. Tokens flow through the stages as text that may come in parts, each part
/// whole characters, followed by `end_token`. A stage passes on what later input cannot change and
/// keeps the rest until `finish`; so one implementation serves whole texts and streams.
class DecoderStage {
 public:
  virtual ~DecoderStage() = default;
  virtual void text(std::string_view part) = 0;
  virtual void end_token() = 0;
  /// The input is over; comes once, after the last `end_token`.
  virtual void finish() = 0;
};

struct ReplaceDecoder {
  std::string pattern;
  std::string content;
};
struct StripDecoder {
  std::string content;  // One character.
  uint64_t start;
  uint64_t stop;
};
struct FuseDecoder {};
struct ByteFallbackDecoder {};
struct ByteLevelDecoder {};
struct MetaspaceDecoder {
  Metaspace metaspace;
};
struct SpaceJoinDecoder {};

/// The file's "decoder": how token texts become the text. Types: Sequence, Replace (of a string),
/// Strip, Fuse, ByteFallback, ByteLevel, Metaspace.
class Decoder {
 public:
  /// What a file without a decoder gets: the tokens with spaces between them.
  Decoder() : steps_{SpaceJoinDecoder{}} {}
  static Result<Decoder> parse(const JsonPlace& place);

  /// The stages in order; the first takes the tokens, the last appends to `out`, which must outlive
  /// them. A stage points to the one behind it. The decoder must outlive the stages.
  std::vector<std::unique_ptr<DecoderStage>> start(std::string& out) const;

 private:
  using Step = std::variant<SpaceJoinDecoder, ReplaceDecoder, StripDecoder, FuseDecoder,
                            ByteFallbackDecoder, ByteLevelDecoder, MetaspaceDecoder>;
  Status parse_into(const JsonPlace& place, uint32_t depth);
  Status parse_replace(const JsonPlace& place);
  Status parse_strip(const JsonPlace& place);

  std::vector<Step> steps_;  // Sequences are flattened.
};

}  // namespace volley::model
