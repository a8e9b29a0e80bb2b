// Goal: no bytes crash the tokenizer, neither as its file nor as a text, and what it gives keeps
// the contract: decoded text is valid UTF-8, and a stream gives the same text as decode. Input: the
// first byte chooses. Below 128 the rest is a tokenizer.json; from 128 it is a text for one of the
// fixed tokenizers of the test data.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "volley/base/check.h"
#include "volley/model/tokenizer.h"

namespace {

using volley::model::StreamDecoder;
using volley::model::Tokenizer;

void check_round(const Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.encode(text, true);
  if (!ids.ok()) return;
  for (const bool skip : {false, true}) {
    const std::string decoded = tokenizer.decode(*ids, skip);
    StreamDecoder stream(tokenizer, skip);
    std::string streamed;
    for (const int32_t id : *ids) {
      VOLLEY_CHECK(tokenizer.has_token(id));
      streamed += stream.push(id);
    }
    streamed += stream.finish();
    VOLLEY_CHECK(streamed == decoded);
  }
}

const Tokenizer& fixed_tokenizer(uint32_t choice) {
  static const auto* tokenizers = [] {
    auto* loaded = new std::array<std::unique_ptr<Tokenizer>, 6>;
    const std::array<const char*, 6> names = {"gpt2",    "qwen",      "llama3",
                                              "mixtral", "metaspace", "odds_and_ends"};
    for (size_t index = 0; index < names.size(); ++index) {
      auto tokenizer =
          Tokenizer::load(std::string(VOLLEY_TEST_DATA) + "/tokenizers/" + names[index] + ".json");
      VOLLEY_CHECK(tokenizer.ok());
      (*loaded)[index] = std::move(tokenizer).value();
    }
    return loaded;
  }();
  return *(*tokenizers)[choice % tokenizers->size()];
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] >= 128) {
    check_round(fixed_tokenizer(data[0]), rest);
  } else if (const auto tokenizer = Tokenizer::parse(rest, "fuzz"); tokenizer.ok()) {
    check_round(**tokenizer, "ab <s>\xe4\xb8\xad\xff  x1 \n");
  }
  return 0;
}
