#pragma once

// Text to token ids and back, from a Hugging Face `tokenizer.json`, with the ids and the text that
// the `tokenizers` library gives. The model is BPE (byte-level, or SentencePiece-style with byte
// fallback); the headers in src/model/tokenizer/ list the supported normalizers, pre-tokenizers,
// post-processors and decoders. Whatever else a file asks for is an error at load, never a guess.
// Not here: chat templates, truncation and padding (the file's settings for the last two are
// ignored, as `transformers` ignores them unless the caller asks).

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "volley/base/status.h"

namespace volley::model {

class StreamDecoder;

/// One loaded tokenizer. Immutable: every method may be called from any thread at the same time.
class Tokenizer {
 public:
  /// Reads `tokenizer.json` of a folder, or that file itself.
  /// Errors: kNotFound; kInvalidArgument naming the file, the place in it (a JSON pointer) and the
  /// value.
  static Result<std::unique_ptr<Tokenizer>> load(const std::string& folder_or_file);
  /// The same from memory. `origin` stands for the file name in errors.
  static Result<std::unique_ptr<Tokenizer>> parse(std::string_view json, const std::string& origin);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  /// The ids of `text`, which may be any bytes: each maximal invalid part of a UTF-8 sequence
  /// counts as U+FFFD, as with errors="replace" in Python. Added tokens, special ones included, are
  /// recognised inside the text. `add_special_tokens` applies the file's template (usually the
  /// begin-of-text token). Cost: O(text · log text), except that a pattern of the file may
  /// backtrack up to its limit. Errors: kResourceExhausted when a pattern of the file exceeds its
  /// match limit on this text; kInvalidArgument when the text is larger than 256 MiB.
  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens) const;

  /// The text of `ids`: always valid UTF-8. Bytes that form no character become U+FFFD. Ids that
  /// name no token add nothing, because a model whose vocabulary is padded can sample them; check
  /// client input with `has_token`.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  /// One more than the largest id. Ids below it may still be unused.
  uint32_t vocab_size() const;
  bool has_token(int32_t id) const;
  /// The id whose token is exactly `token`, as it is written in the file.
  std::optional<int32_t> token_id(std::string_view token) const;
  /// Whether the file marks the token as special. False for unused ids.
  bool is_special(int32_t id) const;
  /// digest64 of the file's bytes.
  uint64_t digest() const;

 private:
  friend class StreamDecoder;
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);

  std::unique_ptr<const Parts> parts_;
};

/// Decodes one stream of ids as they come. Whatever text no later id can change is given out at
/// once; it never ends inside a UTF-8 character. All pieces and `finish()`, joined, equal
/// `Tokenizer::decode`. A run of byte-fallback tokens is held until it ends or cannot become valid,
/// because one bad byte turns the whole run into U+FFFD. Cost per id is that of the token, not of
/// the text so far. Owned by one thread; the tokenizer must outlive it.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens);
  ~StreamDecoder();
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;

  std::string push(int32_t id);
  /// The text still held. Nothing may be pushed after it.
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace volley::model
