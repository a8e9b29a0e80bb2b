#include "volley/protocol/link.h"

#include "volley/base/check.h"

namespace volley::protocol {

DispatchLink::DispatchLink(uint32_t slot_count) : outstanding_(slot_count, 0) {
  VOLLEY_CHECK(slot_count > 0);
}

uint64_t DispatchLink::post(uint32_t slot) {
  VOLLEY_CHECK(slot < outstanding_.size() && slot_free(slot));
  outstanding_[slot] = ++last_sequence_;
  ++outstanding_count_;
  return last_sequence_;
}

DispatchLink::Answer DispatchLink::on_answer(uint32_t slot, uint64_t sequence) {
  if (!expects(slot, sequence)) return Answer::kStale;
  outstanding_[slot] = 0;
  --outstanding_count_;
  return Answer::kAccepted;
}

void DispatchLink::fail(std::vector<uint32_t>& lost_slots) {
  lost_slots.clear();
  for (uint32_t slot = 0; slot < outstanding_.size(); ++slot) {
    if (slot_free(slot)) continue;
    lost_slots.push_back(slot);
    outstanding_[slot] = 0;
  }
  VOLLEY_CHECK(lost_slots.size() == outstanding_count_);
  outstanding_count_ = 0;
}

AnswerLink::AnswerLink(uint32_t slot_count) : slots_(slot_count) {
  VOLLEY_CHECK(slot_count > 0);
}

AnswerLink::Dispatch AnswerLink::on_dispatch(uint32_t slot, uint64_t sequence) {
  VOLLEY_CHECK(slot < slots_.size());
  Slot& state = slots_[slot];
  // Sequences start at 1; 0 is what a slot that has seen nothing holds, and must not repeat "its"
  // answer.
  if (sequence == 0 || sequence < state.sequence) return Dispatch::kStale;
  if (sequence == state.sequence) {
    return state.answered ? Dispatch::kRepeat : Dispatch::kDuplicate;
  }
  if (!state.answered) return Dispatch::kViolation;
  state = {.sequence = sequence, .answered = false};
  return Dispatch::kCompute;
}

void AnswerLink::on_answered(uint32_t slot) {
  VOLLEY_CHECK(slot < slots_.size() && !slots_[slot].answered);
  slots_[slot].answered = true;
}

}  // namespace volley::protocol
