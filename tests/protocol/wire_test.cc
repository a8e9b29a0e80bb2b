// Goal: the wire decoder accepts what the format allows and names what it does not.
// Method: one good message of each kind, then every field at and beyond its limits.

#include "volley/protocol/wire.h"

#include <gtest/gtest.h>

#include <functional>
#include <utility>
#include <vector>

namespace volley::protocol {
namespace {

constexpr LinkGeometry kGeometry = LinkGeometry::make(2, 4, 2, 32);

Expectation dispatch_expectation() {
  return {.kind = MessageKind::kDispatch,
          .incarnation = 11,
          .link = 12,
          .slot = 1,
          .layers = 3,
          .experts = 8,
          .dtype = 1,
          .layout = kGeometry.dispatch,
          .micro_batches = kGeometry.micro_batches};
}

MessageHeader dispatch_header() {
  MessageHeader header;
  header.dtype = 1;
  header.incarnation = 11;
  header.sequence = 5;
  header.link = 12;
  header.slot = 1;
  header.micro_batch = 1;
  header.layer = 2;
  header.fragment = 1;
  header.fragment_count = 2;
  header.row_count = 4;
  header.entry_count = 8;
  header.row_bytes = 32;
  return header;
}

Expectation answer_expectation() {
  Expectation expected = dispatch_expectation();
  expected.kind = MessageKind::kAnswer;
  expected.layout = kGeometry.answer;
  return expected;
}

MessageHeader answer_header() {
  MessageHeader header = dispatch_header();
  header.kind = MessageKind::kAnswer;
  header.row_count = 8;
  header.entry_count = 0;
  return header;
}

MessageHeader refusal_header() {
  MessageHeader header = answer_header();
  header.kind = MessageKind::kRefusal;
  header.refusal = Refusal::kNotHeld;
  header.row_count = 0;
  return header;
}

TEST(Wire, GoodHeadersPass) {
  EXPECT_TRUE(validate_header(dispatch_header(), dispatch_expectation()).ok());
  EXPECT_TRUE(validate_header(answer_header(), answer_expectation()).ok());
  EXPECT_TRUE(validate_header(refusal_header(), answer_expectation()).ok());

  MessageHeader empty = dispatch_header();
  empty.row_count = empty.entry_count = 0;
  EXPECT_TRUE(validate_header(empty, dispatch_expectation()).ok());

  // A takeover slot serves any micro-batch.
  Expectation takeover = dispatch_expectation();
  takeover.slot = 3;
  MessageHeader header = dispatch_header();
  header.slot = 3;
  header.micro_batch = 0;
  EXPECT_TRUE(validate_header(header, takeover).ok());
}

TEST(Wire, Fp8DispatchesAndAnswersOfTheModelAreToldApart) {
  const auto fp8 = static_cast<uint8_t>(RowDType::kE4m3);
  MessageHeader dispatch = dispatch_header();
  dispatch.dtype = fp8;
  EXPECT_FALSE(validate_header(dispatch, dispatch_expectation()).ok());
  Expectation expected = dispatch_expectation();
  expected.dtype = fp8;
  EXPECT_TRUE(validate_header(dispatch, expected).ok());
  EXPECT_FALSE(validate_header(dispatch_header(), expected).ok());
  MessageHeader answer = answer_header();
  answer.dtype = fp8;
  EXPECT_FALSE(validate_header(answer, answer_expectation()).ok());

  const LinkGeometry geometry = LinkGeometry::make(2, 4, 2, e4m3_row_bytes(100), 200);
  EXPECT_EQ(geometry.dispatch.row_bytes, 112u);
  EXPECT_EQ(geometry.answer.row_bytes, 200u);
  EXPECT_EQ(geometry.answer.rows_max, geometry.dispatch.entries_max);
  for (uint32_t width = 1; width < 100; ++width) {
    const uint32_t bytes = e4m3_row_bytes(width);
    EXPECT_EQ(bytes % 16, 0u);
    EXPECT_GE(bytes, width + 4);
    EXPECT_LT(bytes, width + 4 + 16);
  }
}

TEST(Wire, WeightsFollowTheEntriesInUse) {
  const LinkGeometry exact = LinkGeometry::make(2, 4, 2, 32, 48);
  EXPECT_EQ(exact.combine(), Combine::kExact);
  EXPECT_EQ(exact.dispatch.entries_bytes(3), 24u);
  EXPECT_EQ(exact.answer.rows_max, 8u);
  EXPECT_EQ(exact.answer_rows(3, 5), 5u);

  const LinkGeometry sums = LinkGeometry::make(2, 4, 2, 32, 48, Combine::kPreReduce);
  EXPECT_EQ(sums.combine(), Combine::kPreReduce);
  EXPECT_EQ(sums.dispatch.weight_bytes, 4u);
  EXPECT_EQ(sums.dispatch.entries_bytes(3), 36u);
  EXPECT_EQ(sums.dispatch.rows_offset(), 64u + 128u);  // 8 entries of 12 bytes, rounded up to 64.
  EXPECT_EQ(sums.answer.rows_max, 4u);
  EXPECT_EQ(sums.answer.weight_bytes, 0u);
  EXPECT_EQ(sums.answer_rows(3, 5), 3u);
  EXPECT_NE(exact.dispatch, sums.dispatch);

  std::vector<uint64_t> memory(sums.dispatch.slot_bytes() / 8);
  auto* slot = reinterpret_cast<std::byte*>(memory.data());
  const std::span<float> weights = weights_of(slot, sums.dispatch, 8);
  EXPECT_EQ(reinterpret_cast<std::byte*>(weights.data()), slot + 64 + 8 * sizeof(Entry));
  EXPECT_LE(reinterpret_cast<std::byte*>(weights.data() + 8), row_of(slot, sums.dispatch, 0));
  EXPECT_EQ(weights_of(std::as_const(slot), sums.dispatch, 3).data(),
            reinterpret_cast<float*>(slot + 64 + 3 * sizeof(Entry)));
}

TEST(Wire, ADispatchWithWeightsHasNoMoreRowsThanEntries) {
  const LinkGeometry sums = LinkGeometry::make(2, 4, 2, 32, 32, Combine::kPreReduce);
  Expectation expected = dispatch_expectation();
  expected.layout = sums.dispatch;
  MessageHeader header = dispatch_header();
  header.entry_count = 4;
  EXPECT_TRUE(validate_header(header, expected).ok());
  header.entry_count = 3;
  EXPECT_TRUE(validate_header(header, dispatch_expectation()).ok());
  EXPECT_EQ(message_of(validate_header(header, expected)),
            "header.row_count is 4, allowed: 0 to 3, the entries");
  header.row_count = header.entry_count = 0;
  EXPECT_TRUE(validate_header(header, expected).ok());

  expected = answer_expectation();
  expected.layout = sums.answer;
  MessageHeader answer = answer_header();
  answer.row_count = 4;
  EXPECT_TRUE(validate_header(answer, expected).ok());
  answer.row_count = 5;
  EXPECT_EQ(validate_header(answer, expected).code(), StatusCode::kDataLoss);
}

TEST(Wire, AnswerTimesSaturate) {
  EXPECT_EQ(AnswerTimes::make(5, 7), (AnswerTimes{.compute_ns = 5, .queue_ns = 7}));
  EXPECT_EQ(AnswerTimes::make(0, -1).queue_ns, AnswerTimes::kUnknown);
  EXPECT_EQ(AnswerTimes::make(int64_t{1} << 40, int64_t{1} << 40),
            (AnswerTimes{.compute_ns = 0xffffffff, .queue_ns = 0xfffffffe}));

  MessageHeader answer = answer_header();
  answer.times = {.compute_ns = 0xffffffff, .queue_ns = AnswerTimes::kUnknown};
  EXPECT_TRUE(validate_header(answer, answer_expectation()).ok());
}

TEST(Wire, EveryWrongFieldIsNamed) {
  struct Case {
    const char* field;
    std::function<void(MessageHeader&)> break_it;
  };
  const Case dispatch_cases[] = {
      {"magic", [](auto& h) { h.magic = 0; }},
      {"wire_version", [](auto& h) { h.wire_version = 0; }},
      {"wire_version", [](auto& h) { h.wire_version = kWireVersion + 1; }},
      {"kind", [](auto& h) { h.kind = MessageKind::kAnswer; }},
      {"kind", [](auto& h) { h.kind = MessageKind::kRefusal; }},
      {"kind", [](auto& h) { h.kind = MessageKind{0}; }},
      {"kind", [](auto& h) { h.kind = MessageKind{255}; }},
      {"dtype", [](auto& h) { h.dtype = 2; }},
      {"incarnation", [](auto& h) { h.incarnation = 10; }},
      {"link", [](auto& h) { h.link = 13; }},
      {"slot", [](auto& h) { h.slot = 2; }},
      {"micro_batch", [](auto& h) { h.micro_batch = 2; }},
      {"micro_batch", [](auto& h) { h.micro_batch = 0; }},
      {"layer", [](auto& h) { h.layer = 3; }},
      {"fragment_count", [](auto& h) { h.fragment_count = 0; }},
      {"fragment", [](auto& h) { h.fragment = 2; }},
      {"row_count", [](auto& h) { h.row_count = 5; }},
      {"entry_count", [](auto& h) { h.entry_count = 9; }},
      {"entry_count", [](auto& h) { h.row_count = 0; }},
      {"row_bytes", [](auto& h) { h.row_bytes = 0; }},
      {"refusal", [](auto& h) { h.refusal = Refusal::kStaleMap; }},
  };
  for (const Case& c : dispatch_cases) {
    SCOPED_TRACE(c.field);
    MessageHeader header = dispatch_header();
    c.break_it(header);
    const Status status = validate_header(header, dispatch_expectation());
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_EQ(message_of(status).find(std::string("header.") + c.field + " is"), 0u) << status;
  }

  const Case answer_cases[] = {
      {"kind", [](auto& h) { h.kind = MessageKind::kDispatch; }},
      {"row_count", [](auto& h) { h.row_count = 9; }},
      {"entry_count", [](auto& h) { h.entry_count = 1; }},
      {"refusal", [](auto& h) { h.refusal = Refusal::kNotHeld; }},
      {"refusal", [](auto& h) { h.kind = MessageKind::kRefusal; }},
      {"row_count",
       [](auto& h) {
         h.kind = MessageKind::kRefusal;
         h.refusal = Refusal::kNotHeld;
       }},
      {"refusal",
       [](auto& h) {
         h = refusal_header();
         h.refusal = Refusal{4};
       }},
  };
  for (const Case& c : answer_cases) {
    SCOPED_TRACE(c.field);
    MessageHeader header = answer_header();
    c.break_it(header);
    const Status status = validate_header(header, answer_expectation());
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_EQ(message_of(status).find(std::string("header.") + c.field + " is"), 0u) << status;
  }
}

TEST(Wire, ASlotBeyondTheLinkIsRefusedEvenWhenExpected) {
  Expectation expected = dispatch_expectation();
  expected.slot = 4;
  MessageHeader header = dispatch_header();
  header.slot = 4;
  EXPECT_EQ(validate_header(header, expected).code(), StatusCode::kDataLoss);
}

class WireMessage : public ::testing::Test {
 protected:
  WireMessage() {
    header() = dispatch_header();
    uint32_t i = 0;
    for (uint32_t expert : {1u, 7u}) {
      for (uint32_t row = 0; row < 4; ++row) entries()[i++] = {.row = row, .expert = expert};
    }
  }
  std::span<std::byte> slot() { return std::as_writable_bytes(std::span(memory_)); }
  MessageHeader& header() { return header_of(slot().data()); }
  std::span<Entry> entries() { return entries_of(slot().data(), kGeometry.dispatch, 8); }
  Status validate() { return validate_message(slot(), dispatch_expectation()); }

  std::vector<uint64_t> memory_ = std::vector<uint64_t>(kGeometry.dispatch.slot_bytes() / 8);
};

TEST_F(WireMessage, AGoodDispatchPasses) {
  EXPECT_TRUE(validate().ok()) << validate();
}

TEST_F(WireMessage, TheHeaderIsChecked) {
  header().entry_count = 1'000'000;
  EXPECT_EQ(validate().code(), StatusCode::kDataLoss);
}

TEST_F(WireMessage, ATruncatedSlotIsRefused) {
  EXPECT_EQ(validate_message(slot().first(63), dispatch_expectation()).code(),
            StatusCode::kDataLoss);
}

TEST_F(WireMessage, EntriesNameRowsAndExpertsThatExist) {
  entries()[7].row = 4;
  EXPECT_NE(message_of(validate()).find("entry 7 names row 4"), std::string::npos) << validate();
  entries()[7] = {.row = 3, .expert = 8};
  EXPECT_NE(message_of(validate()).find("entry 7 names expert 8"), std::string::npos) << validate();
  header().entry_count = 7;  // The bad one is not part of the message any more.
  EXPECT_TRUE(validate().ok());
}

TEST_F(WireMessage, EntriesAscend) {
  std::swap(entries()[0], entries()[1]);
  EXPECT_NE(message_of(validate()).find("entry 1"), std::string::npos) << validate();
  std::swap(entries()[0], entries()[1]);
  entries()[5] = entries()[4];
  EXPECT_NE(message_of(validate()).find("entry 5"), std::string::npos) << validate();
}

}  // namespace
}  // namespace volley::protocol
