// Goal: the parts of the tokenizer keep their own contracts: the bound on BPE's work, the
// translation of patterns, the splitting behaviors, lossy UTF-8, matching of added tokens, the
// decoders on fragments. Method: published or hand-made cases; BPE against the plain definition
// with random merges.

#include <gtest/gtest.h>

#include <bit>
#include <random>

#include "added_tokens.h"
#include "bpe.h"
#include "byte_level.h"
#include "decoder.h"
#include "pattern.h"
#include "pre_tokenizer.h"
#include "unicode.h"

namespace volley::model {
namespace {

using nlohmann::json;

const std::string kOrigin = "test";

// The definition: merge the leftmost pair of the lowest rank until there is none. O(n^2).
std::vector<std::string> merge_by_definition(std::vector<std::string> symbols, const json& merges) {
  while (true) {
    size_t best_rank = merges.size();
    size_t best_at = 0;
    for (size_t at = 0; at + 1 < symbols.size(); ++at) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank][0] == symbols[at] && merges[rank][1] == symbols[at + 1]) {
          best_rank = rank;
          best_at = at;
        }
      }
    }
    if (best_rank == merges.size()) return symbols;
    symbols[best_at] += symbols[best_at + 1];
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best_at) + 1);
  }
}

TEST(Bpe, EqualsItsDefinition) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(seed);
    std::vector<std::string> tokens = {"a", "b", "c"};
    json vocabulary = {{"a", 0}, {"b", 1}, {"c", 2}};
    json merges = json::array();
    for (int count = 0; count < 12; ++count) {
      const std::string left = tokens[random() % tokens.size()];
      const std::string right = tokens[random() % tokens.size()];
      if (vocabulary.contains(left + right)) continue;
      vocabulary[left + right] = vocabulary.size();
      tokens.push_back(left + right);
      merges.push_back({left, right});
    }
    const json file = json::parse(json{{"vocab", vocabulary}, {"merges", merges}}.dump());
    const auto model = BpeModel::parse(JsonPlace(file, kOrigin));
    ASSERT_TRUE(model.ok()) << message_of(model.status());
    for (int round = 0; round < 5; ++round) {
      std::vector<std::string> symbols(random() % 40, "");
      std::string text;
      for (std::string& symbol : symbols) text += symbol = tokens[random() % 3];
      std::vector<int32_t> ids;
      model->encode(text, ids);
      std::vector<int32_t> expected;
      for (const std::string& token : merge_by_definition(symbols, merges)) {
        expected.push_back(vocabulary[token]);
      }
      EXPECT_EQ(ids, expected) << text;
    }
  }
}

TEST(Bpe, WorkIsLinearInCandidates) {
  // "a", "aa", "aaaa", ...: every level merges the whole word again.
  json vocabulary = {{"a", 0}};
  json merges = json::array();
  std::string token = "a";
  for (int level = 1; level <= 10; ++level) {
    merges.push_back({token, token});
    token += token;
    vocabulary[token] = level;
  }
  const json file = json::parse(json{{"vocab", vocabulary}, {"merges", merges}}.dump());
  const auto model = BpeModel::parse(JsonPlace(file, kOrigin));
  ASSERT_TRUE(model.ok()) << message_of(model.status());
  for (const size_t bytes : {1'000u, 1'000'000u}) {
    std::vector<int32_t> ids;
    const uint64_t candidate_count = model->encode(std::string(bytes, 'a'), ids);
    EXPECT_LE(candidate_count, 3 * bytes);
    EXPECT_GE(candidate_count, bytes / 2);
    EXPECT_EQ(ids.size(), bytes / 1024 + static_cast<size_t>(std::popcount(bytes % 1024)));
  }
}

std::vector<std::string> find_all(const std::string& pattern, const std::string& text) {
  const auto regex = Regex::compile(pattern);
  EXPECT_TRUE(regex.ok()) << message_of(regex.status());
  std::vector<ByteRange> matches;
  EXPECT_TRUE(regex->find_all(text, matches).ok());
  std::vector<std::string> found;
  for (const ByteRange& match : matches)
    found.push_back(text.substr(match.begin, match.end - match.begin));
  return found;
}

TEST(Regex, MeansWhatOnigurumaMeans) {
  using Found = std::vector<std::string>;
  EXPECT_EQ(find_all("\\h+", "xfg09"), (Found{"f", "09"}));  // Hexadecimal digits.
  EXPECT_EQ(find_all("\\s", "a\u180e \u0085\u3000\u200b"), (Found{" ", "\u0085", "\u3000"}));
  EXPECT_EQ(find_all("\\w+", "e\u0301a\u203fb-c"),
            (Found{"e\u0301a\u203fb", "c"}));  // Marks and connectors.
  EXPECT_EQ(find_all("[^\\s\\w]+", "a!\u3000?b"), (Found{"!", "?"}));
  EXPECT_EQ(find_all("^b$", "a\nb\nc"), (Found{"b"}));         // Always by lines.
  EXPECT_EQ(find_all(".+", "a\rb\nc"), (Found{"a\rb", "c"}));  // Only \n ends a line.
  EXPECT_EQ(find_all("a{,2}b", "aaab"), (Found{"aab"}));
  EXPECT_EQ(find_all("\\u4e2d", "中"), (Found{"中"}));
  EXPECT_EQ(find_all("\\p{Han}+", "漢、字"),
            (Found{"漢", "字"}));  // The script, not its extensions.
  EXPECT_EQ(find_all("\\p{^Han}+", "漢ab字"), (Found{"ab"}));
  EXPECT_EQ(find_all("(?i:'S)", "'s 'S '\u017f"), (Found{"'s", "'S", "'\u017f"}));
  EXPECT_EQ(find_all("x*", "axb"), (Found{"", "x", ""}));
  EXPECT_EQ(find_all("[]a]+", "a]b"), (Found{"a]"}));
  EXPECT_EQ(find_all("[[:alpha:]]+", "ab1"), (Found{"ab"}));
}

TEST(Regex, RefusesWhatItCannotMean) {
  for (const char* pattern :
       {"[a&&b]", "[a[b]]", "(?m:.)", "(?im).", "a{1,2}+", "[\\W]", "\\K", "\\C", "\\Qa\\E",
        "(*ACCEPT)", "\\u12", "\\pL", "\\xff", "(", "a**b)", "[z-a]", "\\", "\\p{Nonsense}"}) {
    const auto regex = Regex::compile(pattern);
    EXPECT_EQ(regex.status().code(), StatusCode::kInvalidArgument) << pattern;
    EXPECT_NE(message_of(regex.status()).find(pattern), std::string::npos)
        << message_of(regex.status());
  }
  EXPECT_FALSE(Regex::compile(std::string(100'000, 'a')).ok());
}

TEST(Regex, LongTextsNeedNoStack) {
  const auto regex = Regex::compile("(?:a|b(?=[ab]|$))+");
  ASSERT_TRUE(regex.ok()) << message_of(regex.status());
  std::string text;
  for (int index = 0; index < 100'000; ++index) text += index % 2 == 0 ? 'a' : 'b';
  std::vector<ByteRange> matches;
  const Status status = regex->find_all(text, matches);
  ASSERT_TRUE(status.ok()) << message_of(status);
  ASSERT_EQ(matches.size(), 1u);
  EXPECT_EQ(matches[0].end, text.size());
}

TEST(Split, Behaviors) {
  const std::string text = "the-final--countdown";
  const auto parts = [&](SplitBehavior behavior, bool invert) {
    std::vector<ByteRange> dashes = {{3, 4}, {9, 10}, {10, 11}};
    std::vector<std::string> out;
    for (const ByteRange& part : split_at(dashes, text.size(), behavior, invert)) {
      out.push_back(text.substr(part.begin, part.end - part.begin));
    }
    return out;
  };
  using Parts = std::vector<std::string>;
  EXPECT_EQ(parts(SplitBehavior::kRemoved, false), (Parts{"the", "final", "countdown"}));
  EXPECT_EQ(parts(SplitBehavior::kIsolated, false),
            (Parts{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(parts(SplitBehavior::kMergedWithPrevious, false),
            (Parts{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(parts(SplitBehavior::kMergedWithNext, false),
            (Parts{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(parts(SplitBehavior::kContiguous, false),
            (Parts{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(parts(SplitBehavior::kRemoved, true), (Parts{"-", "-", "-"}));
  EXPECT_TRUE(split_at({}, 0, SplitBehavior::kIsolated, false).empty());
}

TEST(Unicode, LossyTextDoesNotDependOnHowItIsCut) {
  struct Case {
    std::string bytes;
    size_t replacements;
  };
  const std::vector<Case> cases = {
      {"\xe4\xb8\xad", 0},
      {"\xe4\xb8", 1},
      {"\xe4\xb8"
       "a",
       1},
      {"\xf0\x9f\x99\xe4\xb8\xad", 1},
      {"\xc0\x80", 2},
      {"\xed\xa0\x80", 3},
      {"\xf4\x90\x80\x80", 4},
      {"\xf4\x8f\xbf\xbf", 0},
      {"\xe0\x80\x80", 3},
      {"\xff\xfe", 2},
      {"\xf0\x8f\xbf", 3},
      {"\xc2\xc2\xa0", 1},
  };
  for (const Case& test_case : cases) {
    const std::string whole = to_valid_utf8(test_case.bytes);
    size_t count = 0;
    for (size_t at = whole.find(kReplacementCharacter); at != whole.npos;
         at = whole.find(kReplacementCharacter, at + 3)) {
      ++count;
    }
    EXPECT_EQ(count, test_case.replacements);
    for (size_t cut = 0; cut <= test_case.bytes.size(); ++cut) {
      LossyUtf8 lossy;
      std::string out;
      lossy.append(std::string_view(test_case.bytes).substr(0, cut), out);
      lossy.append(std::string_view(test_case.bytes).substr(cut), out);
      lossy.finish(out);
      EXPECT_EQ(out, whole);
    }
  }
}

TEST(ByteLevel, AlphabetIsABijection) {
  for (int value = 0; value < 256; ++value) {
    const std::string byte(1, static_cast<char>(value));
    const std::string character = to_byte_characters(byte);
    EXPECT_EQ(character_at(character, 0).bytes, character.size());
    EXPECT_EQ(from_byte_characters(character), byte);
  }
  EXPECT_EQ(to_byte_characters(" \n\xad"), "\u0120\u010a\u0143");
  EXPECT_FALSE(from_byte_characters("a\u0144").has_value());
  EXPECT_FALSE(from_byte_characters("a b").has_value());  // A space stands for no byte.
}

TEST(AddedTokens, LongestMatchAndStripping) {
  const AddedToken plain{1, "<a>", false, false, false, false, false};
  const AddedToken longer{2, "<a>b", false, false, false, false, false};
  const AddedToken greedy{3, "<g>", false, false, false, true, true};
  const AddedToken word{4, "word", false, false, true, false, false};
  AddedTokenMatcher matcher;
  for (const AddedToken* token : {&plain, &longer, &greedy, &word}) {
    ASSERT_TRUE(matcher.add(token->content, *token).ok());
  }
  EXPECT_FALSE(matcher.add("<a>", plain).ok());
  EXPECT_FALSE(matcher.add("", plain).ok());
  const auto spans = [&](const std::string& text) {
    std::string out;
    const Status status = matcher.for_each_span(text, [&](const TextSpan& span) {
      out += span.token != nullptr ? fmt::format("{}({})", span.token->id, span.text)
                                   : fmt::format("[{}]", span.text);
      return ok_status();
    });
    EXPECT_TRUE(status.ok());
    return out;
  };
  EXPECT_EQ(spans(""), "");
  EXPECT_EQ(spans("x<a>y<a>bz<a"), "[x]1(<a>)[y]2(<a>b)[z<a]");
  EXPECT_EQ(spans("x \u3000<g>\n y"), "[x]3( \u3000<g>\n )[y]");
  EXPECT_EQ(spans("<g> <g>"), "3(<g> )3(<g>)");
  EXPECT_EQ(spans("a word, swords word"), "[a ]4(word)[, swords ]4(word)");
  EXPECT_EQ(spans("e\u0301word"), "[e\u0301word]");
}

// Whatever the fragments, a fused text decodes as in one part.
TEST(Decoder, FragmentsDoNotMatter) {
  const json file = json::parse(R"({"type": "Sequence", "decoders": [
      {"type": "Fuse"},
      {"type": "Replace", "pattern": {"String": "abab"}, "content": "X"},
      {"type": "Replace", "pattern": {"String": "▁"}, "content": "  "},
      {"type": "Strip", "content": " ", "start": 1, "stop": 2}]})");
  const auto decoder = Decoder::parse(JsonPlace(file, kOrigin));
  ASSERT_TRUE(decoder.ok()) << message_of(decoder.status());
  const auto decode = [&](const std::vector<std::string>& tokens) {
    std::string out;
    const auto stages = decoder->start(out);
    for (const std::string& token : tokens) {
      stages.front()->text(token);
      stages.front()->end_token();
    }
    stages.front()->finish();
    return out;
  };
  const std::vector<std::string> alphabet = {"a", "b", "ab", "▁", " ", "\u2580", ""};
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::string> tokens(random() % 20);
    std::string whole;
    for (std::string& token : tokens) whole += token = alphabet[random() % alphabet.size()];
    EXPECT_EQ(decode(tokens), decode({whole})) << whole;
  }
  EXPECT_EQ(decode({"▁aba", "babab▁", " "}), " XX ");
  EXPECT_EQ(decode({"abab", "aba", "b"}), "XX");
  EXPECT_EQ(decode({}), "");
}

}  // namespace
}  // namespace volley::model
