#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/cache/block_allocator.h"
#include "volley/scheduler/sequence.h"

namespace volley::scheduler {

struct SchedulerOptions {
  uint32_t micro_batches = 2;        ///< m, at least 1.
  uint32_t tokens_per_step_max = 256;///< Token budget of one micro-batch step, decode and prefill together.
  uint32_t sequences_max = 256;      ///< Running at once on the node.
  uint32_t waiting_max = 1024;       ///< Bounded queue in front of them.
  uint32_t block_count = 0;          ///< KV blocks of the node.
  uint32_t block_tokens = 16;
  uint32_t sequence_tokens_max = 0;  ///< Prompt + new tokens; needs at most block_count blocks.
};

/// A run of consecutive tokens of one sequence inside a step.
struct Chunk {
  SequenceId sequence;
  uint32_t first_row = 0;
  uint32_t row_count = 0;
  uint32_t start_position = 0;
  bool emits = false;                        ///< Its last row's logits yield the next token.
  std::span<const int32_t> tokens;           ///< [row_count]
  std::span<const uint32_t> blocks;          ///< The sequence's block table, covering the chunk.
};

/// One step of one micro-batch. The spans stay valid until the step is completed.
struct StepPlan {
  std::vector<Chunk> chunks;                 ///< Oldest sequence first.
  uint32_t row_count = 0;
  bool empty() const { return chunks.empty(); }
};

/// Iteration-level batching over m micro-batches: admission, chunked prefill, decode, preemption by
/// recomputation, cancellation and deadlines. Pure: no clock, no threads, no unordered iteration.
///
/// Rules
/// - A step of a micro-batch takes its decoding sequences first, then prefill chunks, oldest first, within
///   the token budget; when the oldest is not decoding, one row of the budget is kept for it. A sequence is
///   in at most one step at a time.
/// - Admission is by age, and with blocks for all known tokens: nobody overtakes one that waits for blocks.
/// - Blocks run out: the youngest sequence that is in no step loses its blocks and waits, ahead of all
///   that never ran; its tokens are kept and computed again. An older sequence is never preempted for a
///   younger one, so the oldest always advances (SCHED-1). When all candidates are inside steps, the
///   chunk is left out of this step; until it has its blocks no younger sequence takes any, and younger ones
///   are preempted for it as their steps complete.
/// - Sequences are spread evenly over the active micro-batches: one admits new sequences up to its share of
///   all that may run, and plan() hands over surplus sequences that are in no step, youngest first.
/// - Every accepted sequence ends with exactly one ended() output (SCHED-2).
/// - A cancelled or expired sequence ends at once; its blocks are freed when its step, if it is in one,
///   completes (SCHED-3).
class BatchScheduler {
 public:
  explicit BatchScheduler(SchedulerOptions options);
  ~BatchScheduler();

  /// Errors: kInvalidArgument (no token, max_new_tokens 0, too long: values in the message),
  /// kResourceExhausted (queue full), kDeadlineExceeded.
  Status submit(SequenceRequest request, Nanos now);
  /// Ends the sequence with `status`; unknown or ended ids are ignored.
  void cancel(SequenceId id, const Status& status);
  void cancel_all(const Status& status);
  /// Ends what is past its deadline.
  void tick(Nanos now);
  /// The earliest deadline among live sequences; 0: none.
  Nanos next_deadline() const;

  /// How many micro-batches take new steps, in [1, options.micro_batches]; others finish what they run.
  void set_active_micro_batches(uint32_t count);
  uint32_t active_micro_batches() const;

  /// Makes the next step of a micro-batch that is in none. Empty when there is nothing for it.
  const StepPlan& plan(uint32_t micro_batch);
  /// The step's results: one per emitting chunk, in chunk order.
  struct Sampled {
    int32_t token = -1;     ///< -1: the logits were not finite; the sequence ends with kInternal.
    float logprob = 0;
    uint64_t logits_digest = 0;
  };
  void complete(uint32_t micro_batch, std::span<const Sampled> sampled);
  /// The step could not be finished (an expert has no holder): its sequences end with `status`.
  void abort_step(uint32_t micro_batch, const Status& status);

  /// Replaces `out` by the outputs since the last call, in order of creation.
  void take_outputs(std::vector<SequenceOutput>& out);

  /// Test hook and operator's knob: preempts a running sequence that is in no step, or as soon as its step
  /// completes. Unknown ids are ignored.
  void preempt(SequenceId id);

  struct Stats {
    uint32_t waiting = 0, running = 0, blocks_free = 0, blocks_total = 0;
    uint64_t accepted = 0, finished = 0, failed = 0, preemptions = 0, steps = 0;
    uint64_t prefill_tokens = 0, decode_tokens = 0;
  };
  Stats stats() const;
  bool idle() const;  ///< Nothing waiting, running or in a step.

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley::scheduler
