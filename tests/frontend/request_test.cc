// Goal: a request is refused with the field, its value and what is allowed, or is passed on with
// everything filled in. Method: a table of requests with one thing wrong, values at the edge of
// what is allowed, and defaults.

#include "volley/frontend/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "frontend/test_model.h"

namespace volley::frontend {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Request = v1::GenerateRequest;

class RequestTest : public ::testing::Test {
 protected:
  Result<PreparedRequest> prepare(const Request& request) {
    return prepare_request(request, test_model(), defaults_, *tokenizer_);
  }
  static Request of_ids(int count) {
    Request request;
    for (int i = 0; i < count; ++i) request.mutable_token_ids()->add_ids(i % 100);
    return request;
  }

  const std::unique_ptr<model::Tokenizer> tokenizer_ = test_tokenizer();
  GenerationDefaults defaults_{.temperature = 0.5f, .top_k = 7, .top_p = 0.25f, .min_p = 0.125f};
};

TEST_F(RequestTest, RefusalsNameFieldValueAndRange) {
  struct Case {
    std::function<void(Request&)> change;
    std::string message;
  };
  const float nan = std::nanf("");
  const float infinity = std::numeric_limits<float>::infinity();
  const Case cases[] = {
      {[](Request& r) { r.clear_prompt(); }, "prompt: one of text and token_ids must be set"},
      {[](Request& r) { r.mutable_token_ids()->clear_ids(); }, "prompt: it has no tokens"},
      {[](Request& r) { r.set_text(""); }, "prompt: it has no tokens"},
      {[](Request& r) { r.set_text(std::string(kPromptBytesMax + 1, 'a')); },
       "text: 1048577 bytes; allowed are at most 1048576"},
      {[](Request& r) { r.mutable_token_ids()->set_ids(1, -1); },
       "token_ids.ids[1]: token id -1 is out of range; allowed is [0, 300)"},
      {[](Request& r) { r.mutable_token_ids()->set_ids(2, 300); },
       "token_ids.ids[2]: token id 300"},
      {[](Request& r) { r.set_add_special_tokens(true); }, "add_special_tokens: only for a text"},
      {[](Request& r) { r = of_ids(64); }, "prompt: 64 tokens; allowed are at most 63"},
      {[](Request& r) { r.set_max_new_tokens(0); },
       "max_new_tokens: 0; after a prompt of 3 tokens allowed is [1, 61]"},
      {[](Request& r) { r.set_max_new_tokens(62); }, "max_new_tokens: 62;"},
      {[](Request& r) { r.set_max_new_tokens(4294967295u); }, "max_new_tokens: 4294967295;"},
      {[](Request& r) { r.mutable_sampling()->set_temperature(-0.5f); },
       "sampling.temperature: -0.5; allowed is [0, 100]"},
      {[](Request& r) { r.mutable_sampling()->set_temperature(100.5f); }, "temperature: 100.5"},
      {[=](Request& r) { r.mutable_sampling()->set_temperature(nan); }, "temperature: nan"},
      {[=](Request& r) { r.mutable_sampling()->set_temperature(infinity); }, "temperature: inf"},
      {[](Request& r) { r.mutable_sampling()->set_top_p(0); }, "top_p: 0; allowed is (0, 1]"},
      {[](Request& r) { r.mutable_sampling()->set_top_p(1.5f); }, "top_p: 1.5; allowed is (0, 1]"},
      {[=](Request& r) { r.mutable_sampling()->set_top_p(nan); }, "top_p: nan"},
      {[](Request& r) { r.mutable_sampling()->set_min_p(-1); }, "min_p: -1; allowed is [0, 1]"},
      {[](Request& r) { r.mutable_sampling()->set_min_p(2); }, "min_p: 2; allowed is [0, 1]"},
      {[=](Request& r) { r.mutable_sampling()->set_min_p(nan); }, "min_p: nan"},
      {[](Request& r) { r.add_stop_token_ids(300); }, "stop_token_ids[0]: token id 300"},
      {[](Request& r) {
         for (int i = 0; i <= kStopTokensMax; ++i) r.add_stop_token_ids(1);
       },
       "stop_token_ids: 65 ids; allowed are at most 64"},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(one.message);
    Request request = of_ids(3);
    one.change(request);
    const auto prepared = prepare(request);
    EXPECT_EQ(prepared.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(message_of(prepared.status()), HasSubstr(one.message));
  }
}

TEST_F(RequestTest, WhatIsAbsentComesFromTheDefaults) {
  const auto prepared = prepare(of_ids(3));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_EQ(prepared->run.temperature(), 0.5f);
  EXPECT_EQ(prepared->run.top_k(), 7u);
  EXPECT_EQ(prepared->run.top_p(), 0.25f);
  EXPECT_EQ(prepared->run.min_p(), 0.125f);
  EXPECT_EQ(prepared->run.max_new_tokens(), 61u);
  EXPECT_THAT(prepared->run.token_ids(), ElementsAre(0, 1, 2));
  EXPECT_THAT(prepared->run.stop_token_ids(), ElementsAre(kTestEos));
  EXPECT_TRUE(prepared->skip_special_tokens);
  // Two requests without a seed differ.
  EXPECT_NE(prepared->run.seed(), prepare(of_ids(3))->run.seed());
}

TEST_F(RequestTest, WhatIsGivenIsTaken) {
  Request request = of_ids(63);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_top_k(0);
  request.mutable_sampling()->set_top_p(1);
  request.mutable_sampling()->set_min_p(0);
  request.mutable_sampling()->set_seed(0);
  request.set_max_new_tokens(1);
  request.add_stop_token_ids(5);
  request.set_ignore_eos(true);
  request.set_keep_special_tokens(true);
  const auto prepared = prepare(request);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_EQ(prepared->run.temperature(), 0);
  EXPECT_EQ(prepared->run.top_k(), 0u);
  EXPECT_EQ(prepared->run.top_p(), 1);
  EXPECT_EQ(prepared->run.min_p(), 0);
  EXPECT_EQ(prepared->run.seed(), 0u);
  EXPECT_EQ(prepared->run.max_new_tokens(), 1u);
  EXPECT_THAT(prepared->run.stop_token_ids(), ElementsAre(5));
  EXPECT_FALSE(prepared->skip_special_tokens);
}

TEST_F(RequestTest, TextIsTokenized) {
  Request request;
  request.set_text("abc");
  const auto prepared = prepare(request);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const auto ids = tokenizer_->encode("abc", true);
  EXPECT_EQ(
      std::vector<int32_t>(prepared->run.token_ids().begin(), prepared->run.token_ids().end()),
      *ids);
}

}  // namespace
}  // namespace volley::frontend
