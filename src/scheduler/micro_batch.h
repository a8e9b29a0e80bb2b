#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flights.h"
#include "routes.h"
#include "volley/scheduler/attention_core.h"

namespace volley::scheduler {

/// What a micro-batch's step needs to know of the model and of the links.
struct StepShape {
  uint32_t layers = 0;
  uint32_t top_k = 0;
  uint32_t fragment_rows_max = 0;
  protocol::Combine combine = protocol::Combine::kExact;
};

/// One micro-batch on its way through the layers of a step. Owns the router's choice and the
/// flights; borrows the plan from the scheduler and the routes from the table, both until the step
/// is over. AttentionCore moves it from state to state, and does what concerns others than this
/// micro-batch.
///
/// Invariants: kIdle has no plan, routes and flights; kAborting has routes and flights but no plan;
/// kComputing has no flights; in kReady all flights, if any, are answered.
struct MicroBatch {
  enum class State : uint8_t {
    kIdle,
    kReady,       ///< In the ready queue.
    kComputing,   ///< Handed out as kAttention or kHead, until route() or finish_step().
    kDispatched,  ///< Waits for answers.
    kAborting,    ///< Its step is over; dispatches are still outstanding.
  };

  MicroBatch(const StepShape& shape, uint32_t rows_max);

  const StepShape shape;
  State state = State::kIdle;
  const StepPlan* plan = nullptr;
  uint32_t row_count = 0;
  Routes* routes = nullptr;  ///< The step's map.
  Work::Stage stage = Work::Stage::kAttention;
  uint32_t layer = 0;
  uint32_t fragment = 0;
  bool returned = false;         ///< kReady with a fragment whose answers are to be combined.
  std::vector<uint32_t> expert;  ///< [row_count * top_k], the router's choice in `layer`.
  std::vector<bool> row_ended;   ///< Rows that are not dispatched: their sequence ended in route().
  Flights flights;               ///< Of the current fragment.
  std::vector<AnswerRef> answers;  ///< Of the fragment that was handed out last.

  /// Sets everything but the state to the beginning of a step.
  void start(const StepPlan& step, Routes& use);
  uint32_t fragment_count() const;
  Fragment current_fragment() const;
  /// All answers of the fragment are in: chooses the next stage.
  void note_returned();
  /// Says in `work` what to do next; a returned fragment goes with it, to be combined, and the
  /// flights end.
  void hand_out(Work& work);
  /// Back to kIdle; there must be no flight.
  void end();
};

/// "idle", "ready", "dispatched" or "aborting".
const char* state_name(MicroBatch::State state);

}  // namespace volley::scheduler
