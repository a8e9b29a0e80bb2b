// Goal: each rule of the scheduler by an example that can be read: chunking, admission, preemption,
// spread, ends. The rules under any interleaving are batch_scheduler_random_test's. Method: small
// limits, plans written out as "id:first position+rows", ! for chunks that emit.

#include "volley/scheduler/batch_scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>

namespace volley::scheduler {
namespace {

using testing::HasSubstr;

class BatchSchedulerTest : public testing::Test {
 protected:
  void make(SchedulerOptions options) { scheduler_ = std::make_unique<BatchScheduler>(options); }

  Status submit(uint64_t id, uint32_t prompt, uint32_t max_new, Nanos deadline = 0) {
    SequenceRequest request;
    request.id = {id};
    request.tokens.assign(prompt, 7);
    request.max_new_tokens = max_new;
    request.stop_tokens = {99};
    request.deadline = deadline;
    return scheduler_->submit(std::move(request), kNow);
  }

  std::string plan(uint32_t micro_batch) {
    const StepPlan& plan = scheduler_->plan(micro_batch);
    std::string text;
    for (const Chunk& chunk : plan.chunks) {
      text += fmt::format("{}{}:{}+{}{}", text.empty() ? "" : " ", chunk.sequence.value,
                          chunk.start_position, chunk.row_count, chunk.emits ? "!" : "");
    }
    emits_[micro_batch] = static_cast<size_t>(std::count_if(
        plan.chunks.begin(), plan.chunks.end(), [](const Chunk& c) { return c.emits; }));
    return text;
  }

  void complete(uint32_t micro_batch, int32_t token = 5) {
    scheduler_->complete(
        micro_batch, std::vector<BatchScheduler::Sampled>(emits_[micro_batch], {.token = token}));
  }

  /// "id=token", and the reason or status of an end.
  std::string outputs() {
    std::vector<SequenceOutput> list;
    scheduler_->take_outputs(list);
    std::string text;
    for (const SequenceOutput& output : list) {
      text += fmt::format("{}{}={}", text.empty() ? "" : " ", output.id.value, output.token);
      if (output.finish == FinishReason::kStop) text += " stop";
      if (output.finish == FinishReason::kLength) text += " length";
      if (!output.status.ok()) {
        text += fmt::format(" {}", absl::StatusCodeToString(output.status.code()));
      }
    }
    return text;
  }

  static constexpr Nanos kNow = 1'000;
  std::unique_ptr<BatchScheduler> scheduler_;
  std::map<uint32_t, size_t> emits_;
};

SchedulerOptions small() {
  return {.micro_batches = 1,
          .tokens_per_step_max = 8,
          .sequences_max = 4,
          .waiting_max = 4,
          .block_count = 8,
          .block_tokens = 4,
          .sequence_tokens_max = 32};
}

TEST_F(BatchSchedulerTest, PrefillsInChunksThenDecodes) {
  make(small());
  ASSERT_TRUE(submit(1, 10, 2).ok());
  EXPECT_EQ(plan(0), "1:0+8");
  complete(0);
  EXPECT_EQ(plan(0), "1:8+2!");
  complete(0, 41);
  EXPECT_EQ(outputs(), "1=41");
  EXPECT_EQ(plan(0), "1:10+1!");
  EXPECT_FALSE(scheduler_->idle());
  complete(0, 42);
  EXPECT_EQ(outputs(), "1=42 length");
  EXPECT_EQ(plan(0), "");
  EXPECT_TRUE(scheduler_->idle());
  const auto stats = scheduler_->stats();
  EXPECT_EQ(stats.prefill_tokens, 10u);
  EXPECT_EQ(stats.decode_tokens, 1u);
  EXPECT_EQ(stats.steps, 3u);
  EXPECT_EQ(stats.finished, 1u);
  EXPECT_EQ(stats.blocks_free, 8u);
}

TEST_F(BatchSchedulerTest, StopTokenIsEmittedAndEnds) {
  make(small());
  ASSERT_TRUE(submit(1, 3, 9).ok());
  EXPECT_EQ(plan(0), "1:0+3!");
  complete(0, 99);
  EXPECT_EQ(outputs(), "1=99 stop");
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(BatchSchedulerTest, DecodesComeBeforePrefills) {
  make(small());
  ASSERT_TRUE(submit(1, 2, 9).ok());
  EXPECT_EQ(plan(0), "1:0+2!");
  complete(0);
  ASSERT_TRUE(submit(2, 20, 2).ok());
  EXPECT_EQ(plan(0), "1:2+1! 2:0+7");
  complete(0);
  EXPECT_EQ(plan(0), "1:3+1! 2:7+7");
}

TEST_F(BatchSchedulerTest, OldestPrefillIsNotStarvedByYoungerDecodes) {
  SchedulerOptions options = small();
  options.tokens_per_step_max = 2;
  make(options);
  ASSERT_TRUE(submit(1, 1, 9).ok());
  ASSERT_TRUE(submit(2, 1, 9).ok());
  EXPECT_EQ(plan(0), "1:0+1! 2:0+1!");
  complete(0);
  ASSERT_TRUE(submit(3, 1, 9).ok());
  EXPECT_EQ(plan(0), "1:1+1! 2:1+1!");
  complete(0);
  scheduler_->preempt({1});
  EXPECT_EQ(plan(0), "1:0+1 2:2+1!");
}

TEST_F(BatchSchedulerTest, AdmissionIsFirstInFirstOut) {
  SchedulerOptions options = small();
  options.sequences_max = 2;
  options.tokens_per_step_max = 32;
  make(options);
  for (uint64_t id = 1; id <= 4; ++id) ASSERT_TRUE(submit(id, 2, 1).ok());
  EXPECT_EQ(plan(0), "1:0+2! 2:0+2!");
  EXPECT_EQ(scheduler_->stats().waiting, 2u);
  complete(0);
  EXPECT_EQ(plan(0), "3:0+2! 4:0+2!");
}

TEST_F(BatchSchedulerTest, NobodyOvertakesALongPromptThatWaitsForBlocks) {
  SchedulerOptions options = small();
  options.tokens_per_step_max = 64;
  make(options);
  ASSERT_TRUE(submit(1, 8, 5).ok());
  ASSERT_TRUE(submit(2, 28, 1).ok());  // 7 blocks; 6 are free.
  ASSERT_TRUE(submit(3, 1, 1).ok());
  EXPECT_EQ(plan(0), "1:0+8!");
  complete(0);
  EXPECT_EQ(plan(0), "1:8+1!");
}

TEST_F(BatchSchedulerTest, RefusesWhatCannotBeServed) {
  make(small());
  EXPECT_EQ(submit(1, 0, 1).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(submit(1, 1, 0).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(submit(1, 30, 2).ok());
  const Status too_long = submit(2, 30, 3);
  EXPECT_EQ(too_long.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(message_of(too_long), "30 tokens and 3 new ones are 33, more than the limit of 32");
  EXPECT_EQ(submit(2, 4'000'000, 4'294'967'295u).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(submit(2, 1, 1, kNow).code(), StatusCode::kDeadlineExceeded);
  for (uint64_t id = 2; id <= 4; ++id) ASSERT_TRUE(submit(id, 1, 1).ok());
  const Status full = submit(5, 1, 1);
  EXPECT_EQ(full.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(message_of(full), "4 sequences wait, the limit is 4");
  EXPECT_EQ(outputs(), "");
}

TEST_F(BatchSchedulerTest, YoungestLosesItsBlocksAndIsComputedAgain) {
  SchedulerOptions options = small();
  options.block_count = 4;
  options.sequence_tokens_max = 16;
  make(options);
  ASSERT_TRUE(submit(1, 4, 8).ok());
  ASSERT_TRUE(submit(2, 4, 8).ok());
  ASSERT_TRUE(submit(3, 1, 8).ok());
  EXPECT_EQ(plan(0), "1:0+4! 2:0+4!");
  complete(0);
  EXPECT_EQ(plan(0), "1:4+1! 2:4+1!");  // Both take a second block: none is left for 3.
  complete(0);
  for (uint32_t position = 5; position < 8; ++position) {
    EXPECT_EQ(plan(0), fmt::format("1:{0}+1! 2:{0}+1!", position));
    complete(0);
  }
  EXPECT_EQ(plan(0),
            "1:8+1!");  // 2 is preempted, and its two free blocks are not enough to return.
  EXPECT_EQ(scheduler_->stats().preemptions, 1u);
  EXPECT_EQ(scheduler_->stats().waiting, 2u);
  complete(0);
  EXPECT_EQ(plan(0), "1:9+1!");
  complete(0);
  EXPECT_EQ(plan(0), "1:10+1!");
  complete(0);
  EXPECT_THAT(outputs(), HasSubstr("1=5 length"));
  EXPECT_EQ(plan(0), "2:0+8");  // All it knew, its own five tokens among them, ahead of 3.
  complete(0);
  EXPECT_EQ(plan(0), "2:8+1! 3:0+1!");
}

TEST_F(BatchSchedulerTest, VictimsInsideStepsAreWaitedFor) {
  SchedulerOptions options = small();
  options.micro_batches = 2;
  options.block_count = 4;
  options.sequence_tokens_max = 16;
  make(options);
  ASSERT_TRUE(submit(1, 8, 8).ok());
  ASSERT_TRUE(submit(2, 8, 8).ok());
  EXPECT_EQ(plan(0), "1:0+8!");
  EXPECT_EQ(plan(1), "2:0+8!");
  complete(0);
  EXPECT_EQ(plan(0), "");  // 1 needs a third block; 2 is inside its step and keeps its own.
  complete(1);
  EXPECT_EQ(scheduler_->stats().preemptions, 1u);  // Now they are 1's, whoever plans first.
  EXPECT_EQ(plan(1), "");
  EXPECT_EQ(plan(0), "1:8+1!");
}

TEST_F(BatchSchedulerTest, SpreadsOverTheActiveMicroBatches) {
  SchedulerOptions options = small();
  options.micro_batches = 2;
  options.tokens_per_step_max = 32;
  make(options);
  for (uint64_t id = 1; id <= 4; ++id) ASSERT_TRUE(submit(id, 1, 20).ok());
  EXPECT_EQ(plan(0), "1:0+1! 2:0+1!");
  EXPECT_EQ(plan(1), "3:0+1! 4:0+1!");
  scheduler_->cancel({1}, Status(StatusCode::kCancelled, "gone"));
  scheduler_->cancel({2}, Status(StatusCode::kCancelled, "gone"));
  complete(0);
  EXPECT_EQ(plan(0), "");  // Both others are inside a step.
  complete(1);
  EXPECT_EQ(plan(0), "4:1+1!");
  EXPECT_EQ(plan(1), "3:1+1!");
}

TEST_F(BatchSchedulerTest, InactiveMicroBatchesFinishAndHandOver) {
  SchedulerOptions options = small();
  options.micro_batches = 2;
  options.tokens_per_step_max = 32;
  make(options);
  for (uint64_t id = 1; id <= 2; ++id) ASSERT_TRUE(submit(id, 1, 20).ok());
  EXPECT_EQ(plan(0), "1:0+1!");
  EXPECT_EQ(plan(1), "2:0+1!");
  scheduler_->set_active_micro_batches(1);
  complete(1);
  EXPECT_EQ(plan(1), "");
  complete(0);
  EXPECT_EQ(plan(0), "1:1+1! 2:1+1!");
  complete(0);
  scheduler_->set_active_micro_batches(2);
  EXPECT_EQ(plan(0), "1:2+1!");
  EXPECT_EQ(plan(1), "2:2+1!");
}

TEST_F(BatchSchedulerTest, CancelEndsAtOnceInEachState) {
  SchedulerOptions options = small();
  options.sequences_max = 2;
  make(options);
  for (uint64_t id = 1; id <= 3; ++id) ASSERT_TRUE(submit(id, 4, 8).ok());
  EXPECT_EQ(plan(0), "1:0+4! 2:0+4!");
  scheduler_->cancel({1}, Status(StatusCode::kCancelled, "in a step"));
  scheduler_->cancel({3}, Status(StatusCode::kCancelled, "waiting"));
  scheduler_->cancel({8}, Status(StatusCode::kCancelled, "unknown"));
  EXPECT_EQ(outputs(), "1=-1 CANCELLED 3=-1 CANCELLED");
  scheduler_->cancel({1}, Status(StatusCode::kCancelled, "again"));
  EXPECT_EQ(scheduler_->stats().blocks_free, 6u);  // 1's block is in use until its step is over.
  complete(0);
  EXPECT_EQ(outputs(), "2=5");
  EXPECT_EQ(scheduler_->stats().blocks_free, 7u);
  scheduler_->cancel({2}, Status(StatusCode::kCancelled, "between steps"));
  EXPECT_EQ(outputs(), "2=-1 CANCELLED");
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_EQ(scheduler_->stats().blocks_free, 8u);
  EXPECT_EQ(scheduler_->stats().failed, 3u);
}

TEST_F(BatchSchedulerTest, DeadlinesEndWaitingAndRunning) {
  SchedulerOptions options = small();
  options.sequences_max = 1;
  make(options);
  ASSERT_TRUE(submit(1, 4, 8, kNow + 20).ok());
  ASSERT_TRUE(submit(2, 4, 8, kNow + 10).ok());
  ASSERT_TRUE(submit(3, 4, 8).ok());
  EXPECT_EQ(scheduler_->next_deadline(), kNow + 10);
  EXPECT_EQ(plan(0), "1:0+4!");
  scheduler_->tick(kNow + 9);
  EXPECT_EQ(outputs(), "");
  scheduler_->tick(kNow + 10);
  EXPECT_EQ(outputs(), "2=-1 DEADLINE_EXCEEDED");
  EXPECT_EQ(scheduler_->next_deadline(), kNow + 20);
  scheduler_->tick(kNow + 30);
  EXPECT_EQ(outputs(), "1=-1 DEADLINE_EXCEEDED");
  EXPECT_EQ(scheduler_->next_deadline(), 0);
  complete(0);
  EXPECT_EQ(outputs(), "");
  EXPECT_EQ(plan(0), "3:0+4!");
}

TEST_F(BatchSchedulerTest, AbortEndsTheStepsSequencesOnly) {
  SchedulerOptions options = small();
  options.sequences_max = 1;
  make(options);
  ASSERT_TRUE(submit(1, 4, 8).ok());
  ASSERT_TRUE(submit(2, 4, 8).ok());
  EXPECT_EQ(plan(0), "1:0+4!");
  scheduler_->abort_step(0, unavailable("layer 3 expert 5 has no live holder"));
  EXPECT_EQ(outputs(), "1=-1 UNAVAILABLE");
  EXPECT_EQ(plan(0), "2:0+4!");
  scheduler_->cancel_all(unavailable("stopping"));
  EXPECT_EQ(outputs(), "2=-1 UNAVAILABLE");
  complete(0);
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(BatchSchedulerTest, LogitsThatAreNotFiniteEndWithInternal) {
  make(small());
  ASSERT_TRUE(submit(1, 4, 8).ok());
  EXPECT_EQ(plan(0), "1:0+4!");
  complete(0, -1);
  EXPECT_EQ(outputs(), "1=-1 INTERNAL");
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(BatchSchedulerTest, PreemptedInAStepRestartsAfterIt) {
  make(small());
  ASSERT_TRUE(submit(1, 4, 8).ok());
  EXPECT_EQ(plan(0), "1:0+4!");
  scheduler_->preempt({1});
  EXPECT_EQ(scheduler_->stats().preemptions, 0u);
  complete(0);
  EXPECT_EQ(outputs(), "1=5");
  EXPECT_EQ(scheduler_->stats().preemptions, 1u);
  EXPECT_EQ(plan(0), "1:0+5!");
}

TEST_F(BatchSchedulerTest, PlanningTwiceIsABug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  make(small());
  ASSERT_TRUE(submit(1, 4, 8).ok());
  EXPECT_EQ(plan(0), "1:0+4!");
  EXPECT_DEATH(scheduler_->plan(0), "check failed");
  EXPECT_DEATH(scheduler_->complete(0, {}), "check failed");
}

}  // namespace
}  // namespace volley::scheduler
