// The decoder stages. Each states what it holds back and why.

#include "decoder.h"

#include <algorithm>
#include <array>
#include <optional>

#include "byte_level.h"
#include "unicode.h"

namespace volley::model {
namespace {

// The end of the chain.
class Output final : public DecoderStage {
 public:
  explicit Output(std::string& out) : out_(out) {}
  void text(std::string_view part) override { out_ += part; }
  void end_token() override {}
  void finish() override {}

 private:
  std::string& out_;
};

class SpaceJoinStage final : public DecoderStage {
 public:
  SpaceJoinStage(const SpaceJoinDecoder&, DecoderStage& next) : next_(next) {}
  void text(std::string_view part) override {
    begin_token();
    next_.text(part);
  }
  void end_token() override {
    begin_token();
    next_.end_token();
    is_inside_token_ = false;
    is_first_ = false;
  }
  void finish() override { next_.finish(); }

 private:
  void begin_token() {
    if (!is_inside_token_ && !is_first_) next_.text(" ");
    is_inside_token_ = true;
  }
  DecoderStage& next_;
  bool is_first_ = true;
  bool is_inside_token_ = false;
};

// Holds back the part of the pattern that the token's text ends with so far (Knuth, Morris and
// Pratt).
class ReplaceStage final : public DecoderStage {
 public:
  ReplaceStage(const ReplaceDecoder& step, DecoderStage& next)
      : step_(step), borders_(step.pattern.size(), 0), next_(next) {
    for (size_t end = 1, border = 0; end < borders_.size(); ++end) {
      while (border > 0 && step_.pattern[end] != step_.pattern[border])
        border = borders_[border - 1];
      if (step_.pattern[end] == step_.pattern[border]) ++border;
      borders_[end] = border;
    }
  }
  void text(std::string_view part) override {
    std::string out;
    const std::string& pattern = step_.pattern;
    for (const char c : part) {
      while (matched_ > 0 && pattern[matched_] != c) {
        const size_t border = borders_[matched_ - 1];
        out.append(pattern, 0, matched_ - border);
        matched_ = border;
      }
      if (pattern[matched_] != c) {
        out += c;
      } else if (++matched_ == pattern.size()) {
        out += step_.content;
        matched_ = 0;
      }
    }
    next_.text(out);
  }
  void end_token() override {
    next_.text(std::string_view(step_.pattern).substr(0, matched_));
    matched_ = 0;
    next_.end_token();
  }
  void finish() override { next_.finish(); }

 private:
  const ReplaceDecoder& step_;
  std::vector<size_t> borders_;
  size_t matched_ = 0;
  DecoderStage& next_;
};

// Holds back the run of the character that the token's text ends with so far.
class StripStage final : public DecoderStage {
 public:
  StripStage(const StripDecoder& step, DecoderStage& next) : step_(step), next_(next) {}
  void text(std::string_view part) override {
    std::string out;
    for (size_t offset = 0; offset < part.size();) {
      const std::string_view character = part.substr(offset, character_at(part, offset).bytes);
      offset += character.size();
      const bool is_content = character == step_.content;
      if (is_content && is_at_start_ && cut_ < step_.start) {
        ++cut_;
        continue;
      }
      is_at_start_ = false;
      if (is_content && held_ < step_.stop) {
        ++held_;
      } else if (is_content) {
        out += character;  // The run is longer than what is cut at its end.
      } else {
        release(out);
        out += character;
      }
    }
    next_.text(out);
  }
  void end_token() override {
    held_ = 0;
    cut_ = 0;
    is_at_start_ = true;
    next_.end_token();
  }
  void finish() override { next_.finish(); }

 private:
  void release(std::string& out) {
    for (; held_ > 0; --held_) out += step_.content;
  }
  const StripDecoder& step_;
  bool is_at_start_ = true;
  uint64_t cut_ = 0;
  uint64_t held_ = 0;
  DecoderStage& next_;
};

class FuseStage final : public DecoderStage {
 public:
  FuseStage(const FuseDecoder&, DecoderStage& next) : next_(next) {}
  void text(std::string_view part) override { next_.text(part); }
  void end_token() override {}
  void finish() override {
    next_.end_token();
    next_.finish();
  }

 private:
  DecoderStage& next_;
};

// The byte of a token written "<0xHH>".
std::optional<uint8_t> byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  uint32_t value = 0;
  for (const char c : token.substr(3, 2)) {
    const uint32_t digit = c >= '0' && c <= '9'   ? static_cast<uint32_t>(c - '0')
                           : c >= 'a' && c <= 'f' ? static_cast<uint32_t>(c - 'a' + 10)
                           : c >= 'A' && c <= 'F' ? static_cast<uint32_t>(c - 'A' + 10)
                                                  : 16;
    if (digit > 15) return std::nullopt;
    value = value * 16 + digit;
  }
  return static_cast<uint8_t>(value);
}

// Holds back a run of byte tokens: if the whole run is valid UTF-8 it is that text, and otherwise
// one U+FFFD for each of its bytes. Once the run cannot become valid, nothing is held back any
// more.
class ByteFallbackStage final : public DecoderStage {
 public:
  ByteFallbackStage(const ByteFallbackDecoder&, DecoderStage& next) : next_(next) {}
  void text(std::string_view part) override { token_ += part; }
  void end_token() override {
    if (const auto byte = byte_of_token(token_)) {
      add_byte(*byte);
    } else {
      end_run();
      next_.text(token_);
      next_.end_token();
    }
    token_.clear();
  }
  void finish() override {
    end_run();
    next_.finish();
  }

 private:
  void add_byte(uint8_t byte) {
    run_ += static_cast<char>(byte);
    if (!is_broken_ && reader_.feed(byte) == Utf8Reader::Step::kInvalid) is_broken_ = true;
    if (is_broken_) release_broken();
  }
  void release_broken() {
    for (size_t index = 0; index < run_.size(); ++index) {
      next_.text(kReplacementCharacter);
      next_.end_token();
    }
    run_.clear();
  }
  void end_run() {
    if (!run_.empty() && reader_.inside()) release_broken();
    if (!run_.empty()) {
      next_.text(run_);
      next_.end_token();
    }
    run_.clear();
    reader_.reset();
    is_broken_ = false;
  }

  std::string token_;
  std::string run_;
  Utf8Reader reader_;
  bool is_broken_ = false;
  DecoderStage& next_;
};

// Holds back the bytes of a character that is not complete yet. Everything is one token behind it.
class ByteLevelStage final : public DecoderStage {
 public:
  ByteLevelStage(const ByteLevelDecoder&, DecoderStage& next) : next_(next) {}
  void text(std::string_view part) override { token_ += part; }
  void end_token() override {
    std::string out;
    lossy_.append(from_byte_characters(token_).value_or(token_), out);
    token_.clear();
    next_.text(out);
  }
  void finish() override {
    std::string out;
    lossy_.finish(out);
    next_.text(out);
    next_.end_token();
    next_.finish();
  }

 private:
  std::string token_;
  LossyUtf8 lossy_;
  DecoderStage& next_;
};

class MetaspaceStage final : public DecoderStage {
 public:
  MetaspaceStage(const MetaspaceDecoder& step, DecoderStage& next)
      : metaspace_(step.metaspace), next_(next) {}
  void text(std::string_view part) override {
    const bool drops = is_first_ && metaspace_.prepend != Metaspace::Prepend::kNever;
    std::string out;
    for (size_t offset = 0; offset < part.size();) {
      const std::string_view character = part.substr(offset, character_at(part, offset).bytes);
      offset += character.size();
      if (character != metaspace_.replacement) {
        out += character;
      } else if (!drops) {
        out += ' ';
      }
    }
    next_.text(out);
  }
  void end_token() override {
    is_first_ = false;
    next_.end_token();
  }
  void finish() override { next_.finish(); }

 private:
  const Metaspace& metaspace_;
  bool is_first_ = true;
  DecoderStage& next_;
};

std::unique_ptr<DecoderStage> make_stage(const SpaceJoinDecoder& step, DecoderStage& next) {
  return std::make_unique<SpaceJoinStage>(step, next);
}
std::unique_ptr<DecoderStage> make_stage(const ReplaceDecoder& step, DecoderStage& next) {
  return std::make_unique<ReplaceStage>(step, next);
}
std::unique_ptr<DecoderStage> make_stage(const StripDecoder& step, DecoderStage& next) {
  return std::make_unique<StripStage>(step, next);
}
std::unique_ptr<DecoderStage> make_stage(const FuseDecoder& step, DecoderStage& next) {
  return std::make_unique<FuseStage>(step, next);
}
std::unique_ptr<DecoderStage> make_stage(const ByteFallbackDecoder& step, DecoderStage& next) {
  return std::make_unique<ByteFallbackStage>(step, next);
}
std::unique_ptr<DecoderStage> make_stage(const ByteLevelDecoder& step, DecoderStage& next) {
  return std::make_unique<ByteLevelStage>(step, next);
}
std::unique_ptr<DecoderStage> make_stage(const MetaspaceDecoder& step, DecoderStage& next) {
  return std::make_unique<MetaspaceStage>(step, next);
}

}  // namespace

Result<Decoder> Decoder::parse(const JsonPlace& place) {
  Decoder decoder;
  decoder.steps_.clear();
  VOLLEY_RETURN_IF_ERROR(decoder.parse_into(place, 0));
  return decoder;
}

Status Decoder::parse_into(const JsonPlace& place, uint32_t depth) {
  if (depth > kNestingMax) return place.error(fmt::format("nested deeper than {}", kNestingMax));
  VOLLEY_ASSIGN_OR_RETURN(const std::string type, place.type());
  if (type == "Sequence") {
    VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "decoders"}));
    VOLLEY_ASSIGN_OR_RETURN(const JsonPlace list, place.member("decoders"));
    VOLLEY_ASSIGN_OR_RETURN(const std::vector<JsonPlace> parts, list.elements());
    for (const JsonPlace& part : parts) VOLLEY_RETURN_IF_ERROR(parse_into(part, depth + 1));
    return ok_status();
  }
  if (type == "Replace") return parse_replace(place);
  if (type == "Strip") return parse_strip(place);
  if (type == "Metaspace") {
    VOLLEY_ASSIGN_OR_RETURN(Metaspace metaspace, Metaspace::parse(place));
    steps_.push_back(MetaspaceDecoder{std::move(metaspace)});
    return ok_status();
  }
  if (type == "ByteLevel") {
    VOLLEY_RETURN_IF_ERROR(
        place.check_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"}));
    steps_.push_back(ByteLevelDecoder{});
    return ok_status();
  }
  VOLLEY_RETURN_IF_ERROR(place.check_keys({"type"}));
  if (type == "Fuse") {
    steps_.push_back(FuseDecoder{});
  } else if (type == "ByteFallback") {
    steps_.push_back(ByteFallbackDecoder{});
  } else {
    return place.member("type")->wrong_value(
        "supported decoders are Sequence, Replace, Strip, Fuse, ByteFallback, ByteLevel, "
        "Metaspace");
  }
  return ok_status();
}

Status Decoder::parse_replace(const JsonPlace& place) {
  VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "pattern", "content"}));
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace pattern_place, place.member("pattern"));
  VOLLEY_RETURN_IF_ERROR(pattern_place.check_keys({"String", "Regex"}));
  // What a regular expression may still match is unknown until the text ends: nothing could be
  // streamed.
  const auto literal = pattern_place.optional_member("String");
  if (!literal) return pattern_place.error("a decoder can only replace a \"String\"");
  VOLLEY_ASSIGN_OR_RETURN(std::string pattern, literal->as_string());
  if (pattern.empty()) return literal->wrong_value("expected a pattern that is not empty");
  VOLLEY_ASSIGN_OR_RETURN(std::string content, place.string_member("content"));
  steps_.push_back(ReplaceDecoder{std::move(pattern), std::move(content)});
  return ok_status();
}

Status Decoder::parse_strip(const JsonPlace& place) {
  VOLLEY_RETURN_IF_ERROR(place.check_keys({"type", "content", "start", "stop"}));
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace content_place, place.member("content"));
  VOLLEY_ASSIGN_OR_RETURN(std::string content, content_place.as_string());
  if (content.empty() || character_at(content, 0).bytes != content.size()) {
    return content_place.wrong_value("expected one character");
  }
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace start_place, place.member("start"));
  VOLLEY_ASSIGN_OR_RETURN(const int64_t start, start_place.as_integer(0, INT32_MAX));
  VOLLEY_ASSIGN_OR_RETURN(const JsonPlace stop_place, place.member("stop"));
  VOLLEY_ASSIGN_OR_RETURN(const int64_t stop, stop_place.as_integer(0, INT32_MAX));
  steps_.push_back(
      StripDecoder{std::move(content), static_cast<uint64_t>(start), static_cast<uint64_t>(stop)});
  return ok_status();
}

std::vector<std::unique_ptr<DecoderStage>> Decoder::start(std::string& out) const {
  std::vector<std::unique_ptr<DecoderStage>> stages;
  stages.push_back(std::make_unique<Output>(out));
  for (auto step = steps_.rbegin(); step != steps_.rend(); ++step) {
    stages.push_back(
        std::visit([&](const auto& s) { return make_stage(s, *stages.back()); }, *step));
  }
  std::reverse(stages.begin(), stages.end());
  return stages;
}

}  // namespace volley::model
