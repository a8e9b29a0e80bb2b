#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "volley/base/ids.h"

namespace volley::scheduler {

/// An accepted sequence. SequenceTable writes what says where it is; the rest is the scheduler's.
struct Sequence {
  SequenceId id;
  uint64_t order = 0;  ///< Ascending with acceptance: smaller is older.
  std::vector<int32_t> tokens;
  uint32_t new_tokens = 0;
  uint32_t new_tokens_max = 0;
  std::vector<int32_t> stop_tokens;
  Nanos deadline = 0;  ///< 0: none.

  std::vector<uint32_t> blocks;
  uint32_t computed = 0;     ///< Tokens whose keys and values are in the blocks.
  uint32_t prefill_end = 0;  ///< Tokens that were known at admission: up to here it is prefill.
  bool preempt_after_step = false;

  // Where it is.
  uint32_t micro_batch = 0;  ///< While running.
  bool running = false;      ///< Else waiting, or ended inside its step.
  bool in_step = false;
  bool ended = false;  ///< Its last output is out; only its step keeps it.

  uint32_t known() const { return static_cast<uint32_t>(tokens.size()); }
  uint32_t remaining() const { return known() - computed; }
  bool decoding() const { return computed >= prefill_end; }
};

/// The accepted sequences and where each of them is. Owns them; knows nothing of blocks and
/// outputs.
///
/// Invariants: a sequence that has not ended is in exactly one of waiting() and running(), both
/// oldest first; one that has ended is in neither and is kept only by its step. The deadlines are
/// those of the sequences that have not ended.
class SequenceTable {
 public:
  SequenceTable(uint32_t micro_batches, uint32_t running_max, uint32_t waiting_max);

  /// The youngest of all, at the end of waiting(). Its id must be new.
  void add(std::unique_ptr<Sequence> added);
  /// nullptr: unknown, or ended and gone.
  Sequence* find(SequenceId id) const;

  /// Preempted sequences are ahead of those that never ran, as they are older.
  const std::vector<Sequence*>& waiting() const { return waiting_; }
  const std::vector<Sequence*>& running() const { return running_; }
  /// Running sequences per micro-batch.
  std::span<const uint32_t> counts() const { return counts_; }
  /// Running ones, and those that have ended but are still held by a step.
  size_t held_count() const { return running_.size() + ended_in_step_; }

  /// From waiting to running.
  void admit(Sequence& sequence, uint32_t micro_batch);
  /// From running to waiting; it must be in no step.
  void send_back(Sequence& sequence);
  void move(Sequence& sequence, uint32_t micro_batch);
  void enter_step(Sequence& sequence);
  void leave_step(Sequence& sequence);
  /// Takes it out of the lists; it stays until erase().
  void end(Sequence& sequence);
  /// It must have ended and be in no step.
  void erase(const Sequence& sequence);

  /// 0: none.
  Nanos next_deadline() const { return deadlines_.empty() ? 0 : deadlines_.begin()->first; }
  /// Replaces `expired` by the sequences whose deadline has come, the earliest first.
  void find_expired(Nanos now, std::vector<SequenceId>& expired) const;

 private:
  uint64_t next_order_ = 1;
  std::map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> waiting_;
  std::vector<Sequence*> running_;
  std::vector<uint32_t> counts_;
  uint32_t ended_in_step_ = 0;
  std::set<std::pair<Nanos, SequenceId>> deadlines_;
};

}  // namespace volley::scheduler
