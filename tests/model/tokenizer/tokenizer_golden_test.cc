// Goal: ids and texts equal those of Hugging Face's `tokenizers`, in every style that Volley
// supports. Method: small trained tokenizers and what the library made of a corpus, both written by
// tests/data/tokenizers/make_tokenizer_goldens.py; equality for every text and for sequences of ids
// that no text gives. The streaming decoder must give the same text in pieces of whole characters.

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "volley/model/tokenizer.h"

namespace volley::model {
namespace {

using nlohmann::json;

const std::string kFolder = std::string(VOLLEY_TEST_DATA) + "/tokenizers/";

json read_json(const std::string& name) {
  std::ifstream file(kFolder + name);
  EXPECT_TRUE(file.good()) << kFolder + name;
  return json::parse(file);
}

std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (size_t at = 0; at + 1 < digits.size(); at += 2) {
    bytes += static_cast<char>(std::stoi(digits.substr(at, 2), nullptr, 16));
  }
  return bytes;
}

// Whether `text` ends at a character's end; it is known to be made of valid UTF-8 in all.
bool ends_on_character(const std::string& text) {
  size_t continuation_count = 0;
  size_t at = text.size();
  while (at > 0 && (static_cast<uint8_t>(text[at - 1]) & 0xc0) == 0x80) {
    --at;
    ++continuation_count;
  }
  if (at == 0) return text.empty();
  const uint8_t lead = static_cast<uint8_t>(text[at - 1]);
  const size_t expected = lead < 0x80 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
  return continuation_count == expected;
}

class TokenizerGolden : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::load(kFolder + GetParam() + ".json");
    ASSERT_TRUE(loaded.ok()) << message_of(loaded.status());
    tokenizer_ = std::move(loaded).value();
    golden_ = read_json(std::string(GetParam()) + ".golden.json");
    const json corpus = read_json("corpus.json");
    for (const json& digits : corpus["texts"]) texts_.push_back(from_hex(digits));
    ASSERT_GT(texts_.size(), 200u);
    ASSERT_EQ(texts_.size(), golden_["rows"].size());
  }

  std::vector<int32_t> full_ids(const json& row) const {
    std::vector<int32_t> ids = golden_["before"];
    for (const int32_t id : row[0]) ids.push_back(id);
    for (const int32_t id : golden_["after"]) ids.push_back(id);
    return ids;
  }
  std::string kept_text(size_t index) const {
    const json& kept = golden_["rows"][index][1];
    return kept.is_null() ? texts_[index] : kept.get<std::string>();
  }
  std::string skipped_text(size_t index) const {
    const json& skipped = golden_["rows"][index][2];
    return skipped.is_null() ? kept_text(index) : skipped.get<std::string>();
  }
  void expect_stream(const std::vector<int32_t>& ids, bool skip,
                     const std::string& expected) const {
    StreamDecoder stream(*tokenizer_, skip);
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = stream.push(id);
      EXPECT_TRUE(ends_on_character(piece)) << "id " << id;
      text += piece;
      ASSERT_TRUE(expected.starts_with(text)) << "streamed: " << text << "\nexpected: " << expected;
    }
    text += stream.finish();
    EXPECT_EQ(text, expected);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  json golden_;
  std::vector<std::string> texts_;
};

TEST_P(TokenizerGolden, EncodesLikeTheReference) {
  for (size_t index = 0; index < texts_.size(); ++index) {
    SCOPED_TRACE(fmt::format("text {}: {}", index, texts_[index].substr(0, 200)));
    const json& row = golden_["rows"][index];
    const auto plain = tokenizer_->encode(texts_[index], false);
    ASSERT_TRUE(plain.ok()) << message_of(plain.status());
    EXPECT_EQ(*plain, row[0].get<std::vector<int32_t>>());
    const auto full = tokenizer_->encode(texts_[index], true);
    ASSERT_TRUE(full.ok()) << message_of(full.status());
    EXPECT_EQ(*full, full_ids(row));
  }
}

TEST_P(TokenizerGolden, DecodesLikeTheReference) {
  for (size_t index = 0; index < texts_.size(); ++index) {
    SCOPED_TRACE(fmt::format("text {}", index));
    const std::vector<int32_t> ids = full_ids(golden_["rows"][index]);
    EXPECT_EQ(tokenizer_->decode(ids, false), kept_text(index));
    EXPECT_EQ(tokenizer_->decode(ids, true), skipped_text(index));
  }
  for (const json& row : golden_["sequences"]) {
    SCOPED_TRACE("ids " + row[0].dump());
    EXPECT_EQ(tokenizer_->decode(row[0].get<std::vector<int32_t>>(), false),
              row[1].get<std::string>());
    EXPECT_EQ(tokenizer_->decode(row[0].get<std::vector<int32_t>>(), true),
              row[2].get<std::string>());
  }
}

TEST_P(TokenizerGolden, StreamsTheSameText) {
  for (size_t index = 0; index < texts_.size(); ++index) {
    SCOPED_TRACE(fmt::format("text {}", index));
    const std::vector<int32_t> ids = full_ids(golden_["rows"][index]);
    expect_stream(ids, false, kept_text(index));
    expect_stream(ids, true, skipped_text(index));
  }
  for (const json& row : golden_["sequences"]) {
    SCOPED_TRACE("ids " + row[0].dump());
    expect_stream(row[0], false, row[1]);
    expect_stream(row[0], true, row[2]);
  }
}

TEST_P(TokenizerGolden, KnowsEveryTokenOfTheFile) {
  const json file = read_json(std::string(GetParam()) + ".json");
  int32_t highest = 0;
  for (const auto& [token, id] : file["model"]["vocab"].items()) {
    EXPECT_EQ(tokenizer_->token_id(token), id.get<int32_t>()) << token;
    EXPECT_TRUE(tokenizer_->has_token(id));
    highest = std::max(highest, id.get<int32_t>());
  }
  for (const json& token : file["added_tokens"]) {
    EXPECT_EQ(tokenizer_->token_id(token["content"].get<std::string>()),
              token["id"].get<int32_t>());
    EXPECT_EQ(tokenizer_->is_special(token["id"]), token["special"].get<bool>()) << token;
    highest = std::max(highest, token["id"].get<int32_t>());
  }
  EXPECT_EQ(tokenizer_->vocab_size(), static_cast<uint32_t>(highest) + 1);
  EXPECT_FALSE(tokenizer_->has_token(highest + 1));
  EXPECT_FALSE(tokenizer_->has_token(-1));
  EXPECT_FALSE(tokenizer_->is_special(highest + 1));
  EXPECT_FALSE(tokenizer_->token_id("no such token").has_value());
}

INSTANTIATE_TEST_SUITE_P(Styles, TokenizerGolden,
                         testing::Values("gpt2", "qwen", "llama3", "mixtral", "metaspace",
                                         "odds_and_ends", "digits_and_inverts"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace volley::model
