// Goal: never more in flight than allowed, never more waiting than allowed, first come first
// served. Method: single steps, then random steps by seed against a plain model.

#include "volley/frontend/admission.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <string>

#include "volley/base/random.h"

namespace volley::frontend {
namespace {

TEST(Admission, RunsWaitsAndRefuses) {
  Admission admission(1, 1);
  EXPECT_EQ(admission.arrive({1}), Admission::Decision::kRun);
  EXPECT_EQ(admission.arrive({2}), Admission::Decision::kWait);
  EXPECT_EQ(admission.arrive({3}), Admission::Decision::kFull);
  EXPECT_FALSE(admission.next().has_value());
  admission.leave(kSecond);
  // Who comes now stands behind who waits.
  EXPECT_EQ(admission.arrive({4}), Admission::Decision::kFull);
  EXPECT_EQ(admission.next(), RequestId{2});
  EXPECT_FALSE(admission.withdraw({2}));
}

TEST(Admission, TheRetryHintFollowsTheDurationsWithinItsBounds) {
  Admission admission(2, 100);
  EXPECT_EQ(admission.retry_after(), 100 * kMillisecond);
  const auto run_one = [&](Nanos duration) {
    ASSERT_EQ(admission.arrive({1}), Admission::Decision::kRun);
    admission.leave(duration);
  };
  run_one(kSecond);
  EXPECT_EQ(admission.retry_after(), 5 * kSecond);  // Ten places at one second on two runners.
  for (int i = 0; i < 100; ++i) run_one(3600 * kSecond);
  EXPECT_EQ(admission.retry_after(), 30 * kSecond);
}

TEST(Admission, RandomStepsAgreeWithAPlainModel) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SplitMix64 random(seed);
    const auto in_flight_max = static_cast<uint32_t>(1 + random.below(4));
    const auto queue_max = static_cast<uint32_t>(random.below(5));
    Admission admission(in_flight_max, queue_max);
    std::deque<RequestId> queue;
    uint32_t running = 0;
    for (uint64_t step = 1; step < 300; ++step) {
      switch (random.below(4)) {
        case 0:
        case 1: {
          const RequestId id{step};
          const auto decision = admission.arrive(id);
          if (running < in_flight_max && queue.empty()) {
            ASSERT_EQ(decision, Admission::Decision::kRun);
            ++running;
          } else if (queue.size() < queue_max) {
            ASSERT_EQ(decision, Admission::Decision::kWait);
            queue.push_back(id);
          } else {
            ASSERT_EQ(decision, Admission::Decision::kFull);
          }
          break;
        }
        case 2: {
          const RequestId id{1 + random.below(step)};
          const auto found = std::find(queue.begin(), queue.end(), id);
          ASSERT_EQ(admission.withdraw(id), found != queue.end());
          if (found != queue.end()) queue.erase(found);
          break;
        }
        default:
          if (running > 0) {
            admission.leave(kMillisecond);
            --running;
          }
          while (running < in_flight_max && !queue.empty()) {
            ASSERT_EQ(admission.next(), queue.front());
            queue.pop_front();
            ++running;
          }
          ASSERT_FALSE(admission.next().has_value());
      }
      ASSERT_EQ(admission.in_flight(), running);
      ASSERT_EQ(admission.waiting(), queue.size());
    }
  }
}

}  // namespace
}  // namespace volley::frontend
