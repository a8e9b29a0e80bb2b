// Tokenizer: reading the file, and the order in which its parts work on a text:
//   bytes -> valid UTF-8 -> cut at added tokens -> normalizer -> cut at normalized added tokens
//         -> pre-tokenizer -> BPE -> template,   and ids -> token texts -> decoder stages -> text.

#include "volley/model/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "added_tokens.h"
#include "bpe.h"
#include "decoder.h"
#include "json_place.h"
#include "normalizer.h"
#include "post_processor.h"
#include "pre_tokenizer.h"
#include "unicode.h"
#include "volley/base/digest.h"
#include "volley/base/fd.h"

namespace volley::model {
namespace {

// The largest published files are below 40 MiB.
constexpr size_t kFileBytesMax = 256u << 20;
constexpr size_t kTextBytesMax = 256u << 20;

}  // namespace

struct Tokenizer::Parts {
  struct Token {
    std::string_view text;  // What the decoder gets; owned by `model` or by `added_texts`.
    bool is_special;
    bool is_skipped;  // When special tokens are skipped.
  };

  Status read(const JsonPlace& root);
  Status read_components(const JsonPlace& root);
  Status read_added_tokens(const JsonPlace& place);
  Status check_added_id(const JsonPlace& place, const AddedToken& token) const;
  Status encode_part(std::string_view text, bool at_text_start, std::vector<int32_t>& ids) const;

  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  BpeModel model;
  PostProcessor post_processor;
  Decoder decoder;

  std::vector<AddedToken> added;         // Filled once; the matchers point into it.
  std::vector<std::string> added_texts;  // Of the same index; `tokens` points into it.
  TokenIds added_ids;
  AddedTokenMatcher raw_matcher;         // Finds tokens in the text as it comes,
  AddedTokenMatcher normalized_matcher;  // and these after the normalizer.
  absl::flat_hash_map<int32_t, Token> tokens;
  uint32_t vocab_size = 0;
  uint64_t digest = 0;
};

Status Tokenizer::Parts::read(const JsonPlace& root) {
  VOLLEY_RETURN_IF_ERROR(
      root.check_keys({"version", "truncation", "padding", "added_tokens", "normalizer",
                       "pre_tokenizer", "post_processor", "decoder", "model"}));
  if (const auto version_place = root.optional_member("version")) {
    VOLLEY_ASSIGN_OR_RETURN(const std::string version, version_place->as_string());
    if (version != "1.0") return version_place->wrong_value("expected \"1.0\"");
  }
  VOLLEY_RETURN_IF_ERROR(read_components(root));
  for (const auto& [text, id] : model.vocabulary()) tokens[id] = {text, false, false};
  if (const auto place = root.optional_member("added_tokens")) {
    VOLLEY_RETURN_IF_ERROR(read_added_tokens(*place));
  }
  for (const auto& [id, token] : tokens)
    vocab_size = std::max(vocab_size, static_cast<uint32_t>(id) + 1);
  for (const int32_t id : post_processor.template_ids()) {
    if (!tokens.contains(id)) {
      return root.member("post_processor")
          ->error(fmt::format("id {} of the template is no token", id));
    }
  }
  return ok_status();
}

Status Tokenizer::Parts::read_components(const JsonPlace& root) {
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace model_place, root.member("model"));
  VOLLEY_ASSIGN_OR_RETURN(model, BpeModel::parse(model_place));
  if (const auto place = root.optional_member("normalizer")) {
    VOLLEY_ASSIGN_OR_RETURN(normalizer, Normalizer::parse(*place));
  }
  if (const auto place = root.optional_member("pre_tokenizer")) {
    VOLLEY_ASSIGN_OR_RETURN(pre_tokenizer, PreTokenizer::parse(*place));
  }
  if (const auto place = root.optional_member("post_processor")) {
    VOLLEY_ASSIGN_OR_RETURN(post_processor, PostProcessor::parse(*place));
  }
  if (const auto place = root.optional_member("decoder")) {
    VOLLEY_ASSIGN_OR_RETURN(decoder, Decoder::parse(*place));
  }
  return ok_status();
}

Status Tokenizer::Parts::check_added_id(const JsonPlace& place, const AddedToken& token) const {
  if (added_ids.contains(token.content)) {
    return place.error(fmt::format("\"{}\" is there twice", token.content));
  }
  const auto in_model = model.vocabulary().find(token.content);
  if (in_model != model.vocabulary().end() && in_model->second != token.id) {
    return place.error(fmt::format("\"{}\" has id {} here and {} in the model", token.content,
                                   token.id, in_model->second));
  }
  const auto owner = tokens.find(token.id);
  if (in_model == model.vocabulary().end() && owner != tokens.end()) {
    return place.error(fmt::format("id {} belongs to both \"{}\" and \"{}\"", token.id,
                                   owner->second.text, token.content));
  }
  return ok_status();
}

Status Tokenizer::Parts::read_added_tokens(const JsonPlace& place) {
  VOLLEY_ASSIGN_OR_RETURN(const std::vector<JsonPlace> entries, place.elements());
  added.reserve(entries.size());
  added_texts.reserve(entries.size());
  std::set<std::string_view> special_contents;
  for (const JsonPlace& entry : entries) {
    VOLLEY_ASSIGN_OR_RETURN(AddedToken parsed, AddedToken::parse(entry));
    VOLLEY_RETURN_IF_ERROR(check_added_id(entry, parsed));
    added_ids.emplace(parsed.content, parsed.id);
    const AddedToken& token = added.emplace_back(std::move(parsed));
    std::string& text = added_texts.emplace_back(token.content);
    if (token.normalized) VOLLEY_RETURN_IF_ERROR(normalizer.apply(text));
    const Status unique = (token.normalized ? normalized_matcher : raw_matcher).add(text, token);
    if (!unique.ok()) return entry.error(message_of(unique));
    tokens[token.id] = {text, token.special, false};
    if (token.special) special_contents.insert(token.content);
  }
  // `tokenizers` decodes a normalized token to its normalized form, and recognises what to skip by
  // that text: a special token that the normalizer changes is not skipped.
  for (const AddedToken& token : added) {
    Token& entry = tokens[token.id];
    entry.is_skipped = special_contents.contains(entry.text);
  }
  return ok_status();
}

Status Tokenizer::Parts::encode_part(std::string_view text, bool at_text_start,
                                     std::vector<int32_t>& ids) const {
  std::string normalized(text);
  VOLLEY_RETURN_IF_ERROR(normalizer.apply(normalized));
  return normalized_matcher.for_each_span(normalized, [&](const TextSpan& span) -> Status {
    if (span.token != nullptr) {
      ids.push_back(span.token->id);
      return ok_status();
    }
    const bool is_first = span.text.data() == normalized.data();
    std::vector<Piece> pieces;
    pieces.push_back({std::string(span.text), at_text_start && is_first});
    VOLLEY_RETURN_IF_ERROR(pre_tokenizer.apply(pieces));
    for (const Piece& piece : pieces) model.encode(piece.text, ids);
    return ok_status();
  });
}

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::load(const std::string& folder_or_file) {
  std::error_code error;
  std::string path = folder_or_file;
  if (std::filesystem::is_directory(path, error))
    path = std::filesystem::path(path) / "tokenizer.json";
  VOLLEY_ASSIGN_OR_RETURN(const Mapping file, Mapping::map_file(path));
  const auto bytes = file.bytes();
  return parse({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::parse(std::string_view json,
                                                    const std::string& origin) {
  if (json.size() > kFileBytesMax) {
    return invalid_argument("{}: {} bytes; at most {} are supported", origin, json.size(),
                            kFileBytesMax);
  }
  nlohmann::json document;
  try {
    document = nlohmann::json::parse(json);
  } catch (const nlohmann::json::exception& problem) {  // Syntax, or a number out of range.
    return invalid_argument("{}: {}", origin, problem.what());
  }
  auto parts = std::make_unique<Parts>();
  VOLLEY_RETURN_IF_ERROR(parts->read(JsonPlace(document, origin)));
  parts->digest = digest64(std::as_bytes(std::span(json)));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(parts)));
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text,
                                               bool add_special_tokens) const {
  if (text.size() > kTextBytesMax) {
    return invalid_argument("the text has {} bytes; at most {} are supported", text.size(),
                            kTextBytesMax);
  }
  const std::string valid = to_valid_utf8(text);
  std::vector<int32_t> ids;
  VOLLEY_RETURN_IF_ERROR(
      parts_->raw_matcher.for_each_span(valid, [&](const TextSpan& span) -> Status {
        if (span.token == nullptr) {
          return parts_->encode_part(span.text, span.text.data() == valid.data(), ids);
        }
        ids.push_back(span.token->id);
        return ok_status();
      }));
  if (add_special_tokens) parts_->post_processor.add_special_tokens(ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  StreamDecoder stream(*this, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

uint32_t Tokenizer::vocab_size() const {
  return parts_->vocab_size;
}

bool Tokenizer::has_token(int32_t id) const {
  return parts_->tokens.contains(id);
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  for (const TokenIds* ids : {&parts_->added_ids, &parts_->model.vocabulary()}) {
    if (const auto found = ids->find(token); found != ids->end()) return found->second;
  }
  return std::nullopt;
}

bool Tokenizer::is_special(int32_t id) const {
  const auto found = parts_->tokens.find(id);
  return found != parts_->tokens.end() && found->second.is_special;
}

uint64_t Tokenizer::digest() const {
  return parts_->digest;
}

struct StreamDecoder::State {
  const Tokenizer::Parts* parts;
  bool skip_special_tokens;
  std::string
      out;  // What the last stage has given out; a stage refers to it, so the state never moves.
  std::vector<std::unique_ptr<DecoderStage>> stages;
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : state_(std::make_unique<State>()) {
  state_->parts = tokenizer.parts_.get();
  state_->skip_special_tokens = skip_special_tokens;
  state_->stages = state_->parts->decoder.start(state_->out);
}
StreamDecoder::~StreamDecoder() = default;
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;

std::string StreamDecoder::push(int32_t id) {
  const auto found = state_->parts->tokens.find(id);
  if (found == state_->parts->tokens.end()) return {};
  if (state_->skip_special_tokens && found->second.is_skipped) return {};
  DecoderStage& first = *state_->stages.front();
  first.text(found->second.text);
  first.end_token();
  return std::exchange(state_->out, {});
}

std::string StreamDecoder::finish() {
  state_->stages.front()->finish();
  return std::exchange(state_->out, {});
}

}  // namespace volley::model
