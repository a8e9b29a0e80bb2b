// The lists, counts and deadlines that follow from where each sequence is. The lists have their
// memory from the start: what a step calls for sequences that go on allocates nothing.

#include "sequence_table.h"

#include <algorithm>

#include "volley/base/check.h"

namespace volley::scheduler {

namespace {

void insert_by_age(std::vector<Sequence*>& list, Sequence* sequence) {
  const auto place =
      std::upper_bound(list.begin(), list.end(), sequence,
                       [](const Sequence* a, const Sequence* b) { return a->order < b->order; });
  list.insert(place, sequence);
}

void erase_from(std::vector<Sequence*>& list, Sequence* sequence) {
  const auto place = std::find(list.begin(), list.end(), sequence);
  VOLLEY_CHECK(place != list.end());
  list.erase(place);
}

}  // namespace

SequenceTable::SequenceTable(uint32_t micro_batches, uint32_t running_max, uint32_t waiting_max)
    : counts_(micro_batches, 0) {
  running_.reserve(running_max);
  waiting_.reserve(size_t{waiting_max} + running_max);  // All that run may be preempted.
}

void SequenceTable::add(std::unique_ptr<Sequence> added) {
  VOLLEY_CHECK(!sequences_.contains(added->id));
  added->order = next_order_++;
  if (added->deadline != 0) deadlines_.insert({added->deadline, added->id});
  waiting_.push_back(added.get());
  const SequenceId id = added->id;
  sequences_.emplace(id, std::move(added));
}

Sequence* SequenceTable::find(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : found->second.get();
}

void SequenceTable::admit(Sequence& sequence, uint32_t micro_batch) {
  erase_from(waiting_, &sequence);
  insert_by_age(running_, &sequence);
  sequence.running = true;
  sequence.micro_batch = micro_batch;
  ++counts_[micro_batch];
}

void SequenceTable::send_back(Sequence& sequence) {
  VOLLEY_CHECK(sequence.running && !sequence.in_step);
  erase_from(running_, &sequence);
  --counts_[sequence.micro_batch];
  sequence.running = false;
  insert_by_age(waiting_, &sequence);
}

void SequenceTable::move(Sequence& sequence, uint32_t micro_batch) {
  --counts_[sequence.micro_batch];
  sequence.micro_batch = micro_batch;
  ++counts_[micro_batch];
}

void SequenceTable::enter_step(Sequence& sequence) {
  VOLLEY_CHECK(sequence.running && !sequence.in_step);
  sequence.in_step = true;
}

void SequenceTable::leave_step(Sequence& sequence) {
  VOLLEY_CHECK(sequence.in_step);
  sequence.in_step = false;
  if (sequence.ended) --ended_in_step_;
}

void SequenceTable::end(Sequence& sequence) {
  VOLLEY_CHECK(!sequence.ended);
  sequence.ended = true;
  if (sequence.deadline != 0) deadlines_.erase({sequence.deadline, sequence.id});
  if (sequence.running) {
    erase_from(running_, &sequence);
    --counts_[sequence.micro_batch];
    sequence.running = false;
  } else {
    erase_from(waiting_, &sequence);
  }
  if (sequence.in_step) ++ended_in_step_;
}

void SequenceTable::erase(const Sequence& sequence) {
  VOLLEY_CHECK(sequence.ended && !sequence.in_step);
  const SequenceId id = sequence.id;  // The argument ends with the entry.
  sequences_.erase(id);
}

void SequenceTable::find_expired(Nanos now, std::vector<SequenceId>& expired) const {
  expired.clear();
  for (const auto& [deadline, id] : deadlines_) {
    if (deadline > now) break;
    expired.push_back(id);
  }
}

}  // namespace volley::scheduler
