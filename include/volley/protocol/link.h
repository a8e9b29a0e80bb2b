#pragma once

#include <cstdint>
#include <vector>

#include "volley/base/ids.h"
#include "volley/protocol/wire.h"

namespace volley::protocol {

/// The attention node's end of one link, as a pure state machine.
/// Invariant LINK-1: every posted dispatch ends exactly once: accepted answer, or lost with the link.
/// Invariant LINK-2: at most one dispatch per slot is outstanding; the answer is the credit.
/// Invariant LINK-3: an answer whose sequence is not the outstanding one is dropped.
class DispatchLink {
 public:
  explicit DispatchLink(uint32_t slot_count);

  bool slot_free(uint32_t slot) const { return outstanding_[slot] == 0; }
  /// Takes the slot, which must be free, and returns the sequence number for the header (from 1 up).
  uint64_t post(uint32_t slot);
  /// Whether an answer with this sequence is the one the slot waits for; changes nothing. An unknown slot
  /// expects nothing.
  bool expects(uint32_t slot, uint64_t sequence) const {
    return slot < outstanding_.size() && sequence != 0 && outstanding_[slot] == sequence;
  }
  enum class Answer : uint8_t { kAccepted, kStale };
  Answer on_answer(uint32_t slot, uint64_t sequence);
  /// The link failed: the slots whose dispatch is lost, ascending. Afterwards none is outstanding.
  void fail(std::vector<uint32_t>& lost_slots);
  uint32_t outstanding_count() const { return outstanding_count_; }

 private:
  std::vector<uint64_t> outstanding_;  ///< Per slot the sequence number; 0: free.
  uint64_t last_sequence_ = 0;
  uint32_t outstanding_count_ = 0;
};

/// The expert node's end of one link.
/// Invariant LINK-4: a dispatch is computed at most once at a time; a duplicate of one that is queued or
/// being computed is dropped, one of the last that was answered is told apart (a shell may answer it again; on
/// links that lose nothing it need not), anything older is dropped.
class AnswerLink {
 public:
  explicit AnswerLink(uint32_t slot_count);

  enum class Dispatch : uint8_t {
    kCompute,   ///< New: queue it.
    kDuplicate, ///< Known and not answered yet: nothing to do.
    kRepeat,    ///< The last one answered: post the same answer again.
    kStale,     ///< Older than what this slot has seen: nothing to do.
    kViolation, ///< Newer, although the last one is not answered: the peer breaks LINK-2, close the link.
  };
  /// `slot` must exist (validate_header() checks it).
  Dispatch on_dispatch(uint32_t slot, uint64_t sequence);
  /// The answer (or refusal) of the slot's kCompute dispatch has been posted. Not called for a kRepeat.
  void on_answered(uint32_t slot);

 private:
  struct Slot {
    uint64_t sequence = 0;
    bool answered = true;
  };
  std::vector<Slot> slots_;
};

}  // namespace volley::protocol
