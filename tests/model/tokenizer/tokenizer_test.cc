// Goal: a broken or unsupported tokenizer file is an error that names the place and the value; odd
// input to a good tokenizer is harmless; concurrent use is safe. Method: one small valid file,
// changed in one place per case; every truncation of it.

#include "volley/model/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

namespace volley::model {
namespace {

using nlohmann::json;

json small_file() {
  return json::parse(R"json({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [
      {"id": 5, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": false, "special": true},
      {"id": 6, "content": "[x]", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": true, "special": false}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": false}]},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}]},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
      "vocab": {"a": 0, "b": 1, "ab": 2, " ": 3, "aba": 4}, "merges": [["a", "b"], "ab a"]}})json");
}

Result<std::unique_ptr<Tokenizer>> parse(const json& file) {
  return Tokenizer::parse(file.dump(), "t.json");
}

std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text,
                            bool special = false) {
  auto ids = tokenizer.encode(text, special);
  EXPECT_TRUE(ids.ok()) << message_of(ids.status());
  return ids.ok() ? *ids : std::vector<int32_t>{};
}

TEST(Tokenizer, SmallFileWorks) {
  const auto tokenizer = parse(small_file());
  ASSERT_TRUE(tokenizer.ok()) << message_of(tokenizer.status());
  EXPECT_EQ(encode(**tokenizer, "abab a<s>[x]b", true),
            (std::vector<int32_t>{5, 2, 2, 3, 0, 5, 6, 1}));
  EXPECT_EQ((*tokenizer)->vocab_size(), 7u);
  EXPECT_TRUE((*tokenizer)->is_special(5));
  EXPECT_FALSE((*tokenizer)->is_special(6));
}

struct BadCase {
  const char* pointer;  // Where in the small file,
  json value;           // what stands there instead,
  const char* message;  // and a part of the error.
};

json bpe_with(const json& vocabulary, const json& merges) {
  return {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}};
}

json added(const json& id, const json& content, bool normalized = false) {
  return {{"id", id},        {"content", content},       {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", normalized}, {"special", true}};
}

TEST(TokenizerFile, BadPlacesAreNamed) {
  const json nested_too_deep = [] {
    json inner = {{"type", "NFC"}};
    for (int depth = 0; depth < 40; ++depth) {
      inner = json{{"type", "Sequence"}, {"normalizers", json::array({inner})}};
    }
    return inner;
  }();
  const std::vector<BadCase> cases = {
      {"/version", "2.0", "/version: the value is \"2.0\""},
      {"/surprise", 1, "unknown member \"surprise\""},
      {"/model", nullptr, "/model: the value is null; expected an object"},
      {"/model", json::array(), "/model: the value is an array"},
      {"/model/type", "WordPiece", "/model/type: the value is \"WordPiece\""},
      {"/model/type", 3, "/model/type: the value is 3; expected a string"},
      {"/model/dropout", 0.1, "/model/dropout: the value is 0.1"},
      {"/model/dropout", "0", "/model/dropout: the value is \"0\""},
      {"/model/continuing_subword_prefix", "##",
       "/model/continuing_subword_prefix: the value is \"##\""},
      {"/model/end_of_word_suffix", "</w>", "/model/end_of_word_suffix: the value is \"</w>\""},
      {"/model/unk_token", "<unk>",
       "/model/unk_token: the value is \"<unk>\"; it is not in the vocabulary"},
      {"/model/fuse_unk", 1, "/model/fuse_unk: the value is 1"},
      {"/model/extra", 1, "unknown member \"extra\""},
      {"/model/vocab", json::array({"a"}), "/model/vocab: the value is an array"},
      {"/model/vocab/a", -1, "/model/vocab/a: the value is -1"},
      {"/model/vocab/a", 2147483647, "/model/vocab/a: the value is 2147483647"},
      {"/model/vocab/a", 18446744073709551615u,
       "/model/vocab/a: the value is 18446744073709551615"},
      {"/model/vocab/a", 0.5, "/model/vocab/a: the value is 0.5"},
      {"/model/vocab/a", 1, "/model/vocab: id 1 belongs to both \"a\" and \"b\""},
      {"/model/merges", "a b", "/model/merges: the value is \"a b\""},
      {"/model/merges/1", "aba", "/model/merges: entry 1: \"aba\" is not two tokens"},
      {"/model/merges/1", "a b c", "/model/merges: entry 1: \"a b c\" is not two tokens"},
      {"/model/merges/1", "a z", "/model/merges: entry 1: \"z\" is not in the vocabulary"},
      {"/model/merges/1", "b a", "/model/merges: entry 1: \"ba\" is not in the vocabulary"},
      {"/model/merges/0", json::array({"a"}), "/model/merges: entry 0: expected"},
      {"/model/merges/0", json::array({"a", 1}), "/model/merges: entry 0: expected"},
      {"/added_tokens", json::object(), "/added_tokens: the value is an object"},
      {"/added_tokens/0", added(-1, "<s>"), "/added_tokens/0/id: the value is -1"},
      {"/added_tokens/0", added(18446744073709551615u, "<s>"), "/added_tokens/0/id"},
      {"/added_tokens/0", added(5, ""), "/added_tokens/0/content: the value is \"\""},
      {"/added_tokens/0", added(2, "<s>"),
       "/added_tokens/0: id 2 belongs to both \"ab\" and \"<s>\""},
      {"/added_tokens/1", added(5, "[x]"),
       "/added_tokens/1: id 5 belongs to both \"<s>\" and \"[x]\""},
      {"/added_tokens/1", added(6, "<s>"), "/added_tokens/1: \"<s>\" is there twice"},
      {"/added_tokens/1", added(6, "ab"),
       "/added_tokens/1: \"ab\" has id 6 here and 2 in the model"},
      {"/added_tokens/0/special", "yes", "/added_tokens/0/special: the value is \"yes\""},
      {"/added_tokens/0/lstrip", nullptr, "/added_tokens/0/lstrip: the value is null"},
      {"/normalizer",
       {{"type", "BertNormalizer"}},
       "/normalizer/type: the value is \"BertNormalizer\""},
      {"/normalizer/normalizers/0",
       {{"type", "Nmt"}},
       "/normalizer/normalizers/0/type: the value is \"Nmt\""},
      {"/normalizer/normalizers/0", {{"form", "NFC"}}, "the member \"type\" is missing"},
      {"/normalizer", nested_too_deep, "nested deeper than 32"},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}},
       "/normalizer/pattern/String: the value is \"\""},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "(a"}}}, {"content", "x"}},
       "/normalizer/pattern/Regex: "},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "(a)"}}}, {"content", "$1"}},
       "/normalizer/content: the value is \"$1\""},
      {"/pre_tokenizer/pretokenizers/0/pattern", {{"Regex", "[a"}}, "missing terminating ]"},
      {"/pre_tokenizer/pretokenizers/0/pattern", {{"Regex", "[a&&b]"}}, "the class intersection"},
      {"/pre_tokenizer/pretokenizers/0/pattern", "a",
       "/pre_tokenizer/pretokenizers/0/pattern: the value is"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "Isolate", "/behavior: the value is \"Isolate\""},
      {"/pre_tokenizer",
       {{"type", "UnicodeScripts"}},
       "/pre_tokenizer/type: the value is \"UnicodeScripts\""},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "__"}},
       "/pre_tokenizer/replacement: the value is \"__\"; expected one character"},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}},
       "/pre_tokenizer/prepend_scheme: the value is \"last\""},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "_"}, {"add_prefix_space", false}},
       "contradicts"},
      {"/post_processor",
       {{"type", "BertProcessing"}},
       "/post_processor/type: the value is \"BertProcessing\""},
      {"/post_processor/single/1/Sequence/id", "B",
       "/post_processor/single/1/Sequence/id: the value is \"B\""},
      {"/post_processor/single/1",
       {{"SpecialToken", {{"id", "<s>"}}}},
       "/post_processor/single: the template"},
      {"/post_processor/single/0/SpecialToken/id", "<t>", "the member \"<t>\" is missing"},
      {"/post_processor/special_tokens/<s>/ids", json::array({99}),
       "id 99 of the template is no token"},
      {"/decoder", {{"type", "CTC"}}, "/decoder/type: the value is \"CTC\""},
      {"/decoder",
       {{"type", "Strip"}, {"content", "ab"}, {"start", 0}, {"stop", 0}},
       "/decoder/content: the value is \"ab\""},
      {"/decoder",
       {{"type", "Strip"}, {"content", "a"}, {"start", -1}, {"stop", 0}},
       "/decoder/start: the value is -1"},
      {"/decoder",
       {{"type", "Replace"}, {"pattern", {{"Regex", "a"}}}, {"content", ""}},
       "/decoder/pattern: a decoder can only replace"},
  };
  for (const BadCase& bad : cases) {
    SCOPED_TRACE(fmt::format("{} = {}", bad.pointer, bad.value.dump().substr(0, 100)));
    json file = small_file();
    file[json::json_pointer(bad.pointer)] = bad.value;
    const auto tokenizer = parse(file);
    ASSERT_EQ(tokenizer.status().code(), StatusCode::kInvalidArgument);
    const std::string message = message_of(tokenizer.status());
    EXPECT_TRUE(message.starts_with("t.json: ")) << message;
    EXPECT_NE(message.find(bad.message), std::string::npos) << message;
  }
}

TEST(TokenizerFile, TwoTokensThatNormalizeToTheSameAreRefused) {
  json file = small_file();
  file["added_tokens"][0] = added(5, "\u00c5", true);
  file["added_tokens"][1] = added(6, "A\u030a", true);
  const auto tokenizer = parse(file);
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_NE(message_of(tokenizer.status()).find("/added_tokens/1: "), std::string::npos)
      << message_of(tokenizer.status());
}

TEST(TokenizerFile, EveryTruncationIsAnError) {
  const std::string whole = small_file().dump();
  ASSERT_TRUE(Tokenizer::parse(whole, "t.json").ok());
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const auto tokenizer = Tokenizer::parse(std::string_view(whole).substr(0, bytes), "t.json");
    ASSERT_EQ(tokenizer.status().code(), StatusCode::kInvalidArgument) << bytes;
  }
}

TEST(TokenizerFile, HostileSyntaxIsAnError) {
  const std::string deep(1'000'000, '[');
  EXPECT_FALSE(Tokenizer::parse(deep, "t").ok());
  EXPECT_FALSE(Tokenizer::parse(deep + std::string(deep.size(), ']'), "t").ok());
  std::string deep_object;
  for (int depth = 0; depth < 100'000; ++depth) deep_object += R"({"normalizer":)";
  EXPECT_FALSE(Tokenizer::parse(deep_object + "1" + std::string(100'000, '}'), "t").ok());
  EXPECT_FALSE(Tokenizer::parse("{\"model\": \"\xff\"}", "t").ok());
  EXPECT_FALSE(Tokenizer::parse(R"({"model": "\ud800"})", "t").ok());
  EXPECT_FALSE(Tokenizer::parse("{\"version\": 1e999}", "t").ok());
  EXPECT_FALSE(Tokenizer::parse("null", "t").ok());
  EXPECT_FALSE(Tokenizer::parse("", "t").ok());
}

TEST(TokenizerFile, LoadTakesAFolderOrAFile) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / fmt::format("tokenizer_test_{}", getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "tokenizer.json") << small_file().dump();
  const auto from_folder = Tokenizer::load(folder);
  const auto from_file = Tokenizer::load(folder / "tokenizer.json");
  std::ofstream(folder / "tokenizer.json") << "{\"model\": 1}";
  const auto broken = Tokenizer::load(folder);
  std::filesystem::remove_all(folder);
  const auto missing = Tokenizer::load(folder);

  ASSERT_TRUE(from_folder.ok() && from_file.ok());
  EXPECT_EQ((*from_folder)->digest(), (*from_file)->digest());
  json other = small_file();
  other["model"]["merges"] = json::array({"a b"});
  EXPECT_NE(parse(other).value()->digest(), (*from_file)->digest());
  EXPECT_NE(message_of(broken.status()).find(folder / "tokenizer.json"), std::string::npos);
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
}

TEST(Tokenizer, APatternThatExplodesIsAStatus) {
  json file = small_file();
  file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", "(?:a|aa)+(?:a|aa)+(?=[^a])"}};
  const auto tokenizer = parse(file);
  ASSERT_TRUE(tokenizer.ok()) << message_of(tokenizer.status());
  EXPECT_TRUE((*tokenizer)->encode("aab", false).ok());
  EXPECT_EQ((*tokenizer)->encode(std::string(300, 'a'), false).status().code(),
            StatusCode::kResourceExhausted);
}

TEST(Tokenizer, UnusedIdsDecodeToNothing) {
  json file = small_file();
  file["added_tokens"][1]["id"] = 100;  // Leaves a gap.
  const auto tokenizer = parse(file);
  ASSERT_TRUE(tokenizer.ok()) << message_of(tokenizer.status());
  EXPECT_EQ((*tokenizer)->vocab_size(), 101u);
  EXPECT_FALSE((*tokenizer)->has_token(50));
  const std::vector<int32_t> ids = {0, 50, -1, INT32_MAX, INT32_MIN, 100, 1};
  EXPECT_EQ((*tokenizer)->decode(ids, false), "a[x]b");
}

TEST(Tokenizer, UnknownCharactersFollowTheOptions) {
  json file = small_file();
  const auto encoded = [&](std::string_view text) { return encode(*parse(file).value(), text); };
  EXPECT_EQ(encoded("a??b"), (std::vector<int32_t>{2}));  // No unknown token: they vanish.
  file["model"]["unk_token"] = " ";
  EXPECT_EQ(encoded("a??b"), (std::vector<int32_t>{0, 3, 3, 1}));
  file["model"]["fuse_unk"] = true;
  EXPECT_EQ(encoded("a??b"), (std::vector<int32_t>{0, 3, 1}));
  file["model"]["byte_fallback"] = true;  // Without the byte's token the unknown token stays.
  EXPECT_EQ(encoded("a??b"), (std::vector<int32_t>{0, 3, 1}));
  file["model"]["vocab"]["<0x3F>"] = 9;
  EXPECT_EQ(encoded("a??b"), (std::vector<int32_t>{0, 9, 9, 1}));
}

TEST(Tokenizer, ManyThreadsGetTheSameIds) {
  const auto tokenizer = parse(small_file());
  ASSERT_TRUE(tokenizer.ok());
  std::string text;
  for (int index = 0; index < 200; ++index)
    text += index % 7 == 0 ? " <s>" : index % 3 == 0 ? "b" : "a";
  const std::vector<int32_t> expected = encode(**tokenizer, text);
  std::vector<std::vector<int32_t>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int round = 0; round < 50; ++round) result = (*tokenizer)->encode(text, false).value();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

// Both sides of a stream: what is certain comes at once, and what is not is held.
TEST(StreamDecoder, GivesWhatIsCertain) {
  json file = small_file();
  file["model"] = bpe_with(
      {{"<0xE4>", 0}, {"<0xB8>", 1}, {"<0xAD>", 2}, {"x", 3}, {"\u2581y", 4}, {"<0x0A>", 7}},
      json::array());
  file["decoder"] = json::parse(R"({"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})");
  const auto tokenizer = parse(file);
  ASSERT_TRUE(tokenizer.ok()) << message_of(tokenizer.status());
  const auto pieces = [&](const std::vector<int32_t>& ids, bool skip) {
    StreamDecoder stream(**tokenizer, skip);
    std::vector<std::string> out;
    for (const int32_t id : ids) out.push_back(stream.push(id));
    out.push_back(stream.finish());
    return out;
  };
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(pieces({4, 4, 3}, false),
            (Pieces{"y", " y", "x", ""}));  // Only the first space is stripped.
  EXPECT_EQ(pieces({5, 4}, false), (Pieces{"<s>", " y", ""}));
  EXPECT_EQ(pieces({5, 4}, true), (Pieces{"", "y", ""}));
  EXPECT_EQ(pieces({0, 1, 2, 3}, false), (Pieces{"", "", "", "中x", ""}));
  EXPECT_EQ(pieces({0, 1, 2}, false), (Pieces{"", "", "", "中"}));
  EXPECT_EQ(pieces({0, 1, 3}, false), (Pieces{"", "", "��x", ""}));
  EXPECT_EQ(pieces({0, 1}, false), (Pieces{"", "", "��"}));
  // Nothing can mend the run from the second byte on, so nothing is held any more.
  EXPECT_EQ(pieces({7, 0, 7, 1, 3}, false), (Pieces{"", "", "���", "�", "x", ""}));
}

TEST(StreamDecoder, ByteLevelHoldsOnlyTheOpenCharacter) {
  json file = small_file();
  file["model"] = bpe_with(
      {{"\u00e4", 0}, {"\u00b8", 1}, {"\u0143", 2}, {"x", 3}, {"\u0120y", 4}, {"\u2603", 7}},
      json::array());
  file["decoder"] = {{"type", "ByteLevel"}};
  const auto tokenizer = parse(file);
  ASSERT_TRUE(tokenizer.ok()) << message_of(tokenizer.status());
  StreamDecoder stream(**tokenizer, false);
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.push(1), "");
  EXPECT_EQ(stream.push(2), "中");
  EXPECT_EQ(stream.push(4), " y");
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.push(3), "�x");
  EXPECT_EQ(stream.push(7), "☃");  // Not of the byte alphabet: it stands for itself.
  StreamDecoder moved = std::move(stream);
  EXPECT_EQ(moved.push(0), "");
  EXPECT_EQ(moved.finish(), "�");
}

TEST(StreamDecoder, ALongRunCostsNoMoreThanItsTokens) {
  json file = small_file();
  file["decoder"] = json::parse(R"({"type": "Sequence", "decoders": [
      {"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "aab"}, "content": "-"}]})");
  const auto tokenizer = parse(file);
  ASSERT_TRUE(tokenizer.ok()) << message_of(tokenizer.status());
  StreamDecoder stream(**tokenizer, false);
  size_t held_bytes_max = 0;
  size_t pushed_bytes = 0;
  size_t given_bytes = 0;
  for (int index = 0; index < 10'000; ++index) {
    pushed_bytes += 1;
    given_bytes += stream.push(0).size();
    held_bytes_max = std::max(held_bytes_max, pushed_bytes - given_bytes);
  }
  EXPECT_EQ(held_bytes_max,
            2u);  // What may still begin the pattern, though it is all one fused token.
  EXPECT_EQ(stream.push(1), "-");
}

}  // namespace
}  // namespace volley::model
