#include "micro_batch.h"

#include <algorithm>
#include <cstdlib>

#include "volley/base/check.h"

namespace volley::scheduler {

MicroBatch::MicroBatch(const StepShape& given, uint32_t rows_max)
    : shape(given),
      flights(given.fragment_rows_max, size_t{given.fragment_rows_max} * given.top_k) {
  expert.reserve(size_t{rows_max} * shape.top_k);
  row_ended.reserve(rows_max);
  answers.reserve(size_t{shape.fragment_rows_max} * shape.top_k);
}

void MicroBatch::start(const StepPlan& step, Routes& use) {
  VOLLEY_CHECK(state == State::kIdle && flights.empty());
  plan = &step;
  row_count = step.row_count;
  routes = &use;
  stage = Work::Stage::kAttention;
  layer = 0;
  fragment = 0;
  returned = false;
  row_ended.assign(row_count, false);
}

uint32_t MicroBatch::fragment_count() const {
  return (row_count + shape.fragment_rows_max - 1) / shape.fragment_rows_max;
}

Fragment MicroBatch::current_fragment() const {
  const uint32_t begin = fragment * shape.fragment_rows_max;
  return {.begin = begin,
          .end = std::min(begin + shape.fragment_rows_max, row_count),
          .top_k = shape.top_k,
          .expert = expert,
          .row_ended = row_ended};
}

void MicroBatch::note_returned() {
  const bool last_fragment = fragment + 1 == fragment_count();
  const bool last_layer = layer + 1 == shape.layers;
  stage = !last_fragment ? Work::Stage::kPack
          : last_layer   ? Work::Stage::kHead
                         : Work::Stage::kAttention;
  returned = true;
}

void MicroBatch::hand_out(Work& work) {
  work.stage = stage;
  work.plan = plan;
  if (returned) {
    const Fragment done = current_fragment();
    flights.note_answers(done, shape.combine, answers);
    work.combine_begin = done.begin;
    work.combine_end = done.end;
    work.answers = answers;
    flights.clear();
    returned = false;
    if (stage == Work::Stage::kPack) {
      ++fragment;
    } else {
      fragment = 0;
      if (stage == Work::Stage::kAttention) ++layer;
    }
  }
  work.layer = layer;
}

void MicroBatch::end() {
  VOLLEY_CHECK(flights.empty());
  state = State::kIdle;
  plan = nullptr;
  row_count = 0;
  routes = nullptr;
}

const char* state_name(MicroBatch::State state) {
  switch (state) {
    case MicroBatch::State::kIdle:
      return "idle";
    case MicroBatch::State::kReady:
    case MicroBatch::State::kComputing:
      return "ready";
    case MicroBatch::State::kDispatched:
      return "dispatched";
    case MicroBatch::State::kAborting:
      return "aborting";
  }
  std::abort();
}

}  // namespace volley::scheduler
