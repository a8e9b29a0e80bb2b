#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "volley/base/check.h"
#include "volley/frontend/request.h"
#include "volley/model/tokenizer.h"

namespace volley::frontend {

inline constexpr int32_t kTestEos = 256;

/// A byte-level tokenizer: one token per byte, in GPT-2's order of the visible byte characters, and
/// the special token <eos>. Every character beyond ASCII takes several tokens.
inline std::unique_ptr<model::Tokenizer> test_tokenizer() {
  const auto utf8 = [](uint32_t code) {
    return code < 0x80 ? std::string(1, static_cast<char>(code))
                       : std::string{static_cast<char>(0xc0 | (code >> 6)),
                                     static_cast<char>(0x80 | (code & 0x3f))};
  };
  std::string vocab;
  uint32_t hidden = 0;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool visible = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    const uint32_t code = visible ? byte : 256 + hidden++;
    std::string text = utf8(code);
    if (text == "\"" || text == "\\") text = "\\" + text;
    vocab += "\"" + text + "\":" + std::to_string(byte) + ",";
  }
  vocab += "\"<eos>\":256";
  const std::string json =
      R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":256,"content":"<eos>",)"
      R"("single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],)"
      R"("normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,)"
      R"("trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel",)"
      R"("add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE",)"
      R"("dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,)"
      R"("fuse_unk":false,"byte_fallback":false,"vocab":{)" +
      vocab + R"(},"merges":[]}})";
  auto tokenizer = model::Tokenizer::parse(json, "test tokenizer");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  VOLLEY_CHECK(tokenizer.ok());
  return *std::move(tokenizer);
}

inline ModelInfo test_model() {
  return {.name = "test",
          .architecture = "mixtral",
          .vocab_size = 300,
          .sequence_tokens_max = 64,
          .layers = 1,
          .experts = 2,
          .experts_per_token = 1,
          .eos_token_ids = {kTestEos},
          .checkpoint_digest = 0xc0};
}

}  // namespace volley::frontend
