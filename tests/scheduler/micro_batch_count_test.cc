// Goal: m is the smallest that keeps the slower pool busy.
// Method: cases worked out by hand, and the defining inequality over a grid of times.

#include "volley/scheduler/micro_batch_count.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace volley::scheduler {
namespace {

TEST(MicroBatchCount, KnownCases) {
  EXPECT_EQ(micro_batches_for({.attention = 10, .expert = 10, .transfer = 0}, 8), 2u);
  // The paper: m >= 2 (1 + T_c / T_f); 3 while T_c < T_f / 2, 4 up to T_f.
  EXPECT_EQ(micro_batches_for({.attention = 10, .expert = 10, .transfer = 5}, 8), 3u);
  EXPECT_EQ(micro_batches_for({.attention = 10, .expert = 10, .transfer = 6}, 8), 4u);
  EXPECT_EQ(micro_batches_for({.attention = 100, .expert = 1, .transfer = 0}, 8), 2u);
  EXPECT_EQ(micro_batches_for({.attention = 1, .expert = 1, .transfer = 1'000}, 8), 8u);
  EXPECT_EQ(micro_batches_for({}, 8), 1u);
  EXPECT_EQ(micro_batches_for({.attention = 0, .expert = 0, .transfer = 5}, 8), 1u);
}

TEST(MicroBatchCount, IsTheSmallestThatHolds) {
  for (Nanos attention = 0; attention <= 12; ++attention) {
    for (Nanos expert = attention == 0 ? 1 : 0; expert <= 12; ++expert) {
      for (Nanos transfer = 0; transfer <= 12; ++transfer) {
        const Nanos slower = std::max(attention, expert);
        const Nanos round = attention + expert + 2 * transfer;
        const Nanos count = micro_batches_for(
            {.attention = attention, .expert = expert, .transfer = transfer}, 1'000);
        EXPECT_GE(count * slower, round);
        EXPECT_LT((count - 1) * slower, round);
      }
    }
  }
}

}  // namespace
}  // namespace volley::scheduler
