// Goal: a profile divides a thread's time without gaps, and its trace keeps the last spans.
// Method: spans at given times.

#include "volley/engine/profile.h"

#include <gtest/gtest.h>

#include <set>
#include <string_view>

namespace volley::engine {
namespace {

TEST(Profile, DividesTheTimeWithoutGaps) {
  Profile profile(0);
  profile.start(1'000);
  EXPECT_EQ(profile.record(Span::kSchedule, 1'010), 10);
  EXPECT_EQ(profile.record(Span::kFfn, 1'110, {.micro_batch = 1, .layer = 3, .rows = 7}), 100);
  EXPECT_EQ(profile.record(Span::kFfn, 1'210, {.micro_batch = 0, .layer = 4, .rows = 8}), 100);
  EXPECT_EQ(profile.record(Span::kWait, 1'510), 300);
  EXPECT_EQ(profile.record(Span::kIdle, 2'000), 490);
  EXPECT_EQ(profile.last(), 2'000);

  const ProfileSnapshot& totals = profile.totals();
  EXPECT_EQ(totals.wall, 1'000);
  EXPECT_EQ(totals.busy(), 210);
  EXPECT_EQ(totals[Span::kFfn].count, 2u);
  EXPECT_EQ(totals[Span::kFfn].rows, 15u);
  EXPECT_EQ(totals[Span::kFfn].time, 200);
  EXPECT_EQ(totals[Span::kHead].count, 0u);
  EXPECT_TRUE(profile.trace().empty());
}

TEST(Profile, StartForgetsWhatWasBefore) {
  Profile profile(4);
  profile.start(0);
  profile.record(Span::kFfn, 50);
  profile.start(100);
  EXPECT_EQ(profile.totals().wall, 0);
  EXPECT_TRUE(profile.trace().empty());
  EXPECT_EQ(profile.record(Span::kFfn, 130), 30);
}

TEST(Profile, TraceKeepsTheLastSpans) {
  Profile profile(3);
  profile.start(0);
  profile.record(Span::kSchedule, 1);
  profile.record(Span::kCombine, 2, {.micro_batch = 2, .layer = 5, .rows = 9});
  ASSERT_EQ(profile.trace().size(), 2u);
  EXPECT_EQ(profile.trace()[0].micro_batch, SpanRecord::kNone);
  EXPECT_EQ(profile.trace()[0].layer, SpanRecord::kNone);
  profile.record(Span::kAttention, 3, {.micro_batch = 2, .layer = 6, .rows = 9});
  EXPECT_EQ(profile.trace_dropped(), 0u);
  profile.record(Span::kWait, 4);
  profile.record(Span::kIdle, 5);

  const std::vector<SpanRecord> trace = profile.trace();
  ASSERT_EQ(trace.size(), 3u);
  EXPECT_EQ(profile.trace_dropped(), 2u);
  EXPECT_EQ(trace[0].kind, Span::kAttention);
  EXPECT_EQ(trace[0].begin, 2);
  EXPECT_EQ(trace[0].end, 3);
  EXPECT_EQ(trace[0].micro_batch, 2);
  EXPECT_EQ(trace[0].layer, 6);
  EXPECT_EQ(trace[0].rows, 9u);
  EXPECT_EQ(trace[2].kind, Span::kIdle);
}

TEST(Profile, EveryKindHasAName) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < kSpanKinds; ++i) names.insert(span_name(static_cast<Span>(i)));
  EXPECT_EQ(names.size(), kSpanKinds);
  EXPECT_FALSE(names.contains(""));
}

}  // namespace
}  // namespace volley::engine
