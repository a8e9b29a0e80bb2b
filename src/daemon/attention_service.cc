#include "attention_service.h"

#include <chrono>
#include <cmath>
#include <mutex>

#include "volley/base/clock.h"
#include "volley/control/grpc_status.h"

namespace volley::daemon {
namespace {

using scheduler::FinishReason;
using scheduler::SequenceOutput;

/// Streams one sequence. Lives until both gRPC (OnDone) and the engine (an ended() output) are
/// through.
///
/// Threads: on_output() on the engine thread, the rest on gRPC's; `mutex_` guards everything. What
/// a slow reader leaves behind is merged into one chunk, at most max_new_tokens tokens.
class RunReactor final : public grpc::ServerWriteReactor<v1::RunChunk>, public engine::OutputSink {
 public:
  RunReactor(engine::AttentionEngine& engine, engine::GenerationRequest request) : engine_(engine) {
    const Result<SequenceId> id = engine.submit(std::move(request), this);
    const std::lock_guard lock(mutex_);
    if (id.ok()) {
      id_ = *id;
      submitted_ = true;
    } else {
      engine_ended_ = true;
      Finish(control::to_grpc(id.status()));
    }
  }

  void on_output(const SequenceOutput& output) override {
    std::unique_lock lock(mutex_);
    if (output.token >= 0) {
      pending_.add_token_ids(output.token);
      pending_.add_logits_digests(output.logits_digest);
      pending_.add_logprobs(output.logprob);
    }
    if (output.ended()) {
      engine_ended_ = true;
      status_ = output.status;
      if (output.finish != FinishReason::kNone) {
        pending_.set_finish_reason(output.finish == FinishReason::kStop ? v1::FINISH_REASON_STOP
                                                                        : v1::FINISH_REASON_LENGTH);
      }
    }
    if (!writing_) advance();
    delete_if_over(lock);
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    broken_ = broken_ || !ok;
    advance();
  }

  void OnCancel() override {
    const std::lock_guard lock(mutex_);
    cancel();
  }

  void OnDone() override {
    std::unique_lock lock(mutex_);
    grpc_done_ = true;
    cancel();
    delete_if_over(lock);
  }

 private:
  /// Writes what is pending, or finishes. No write may be under way.
  void advance() {
    if (finished_) return;
    if (!broken_ && pending_.token_ids_size() + (pending_.finish_reason() != 0 ? 1 : 0) > 0) {
      chunk_.Swap(&pending_);
      pending_.Clear();
      writing_ = true;
      StartWrite(&chunk_);
    } else if (engine_ended_) {
      finished_ = true;
      Finish(control::to_grpc(status_));
    } else if (broken_) {
      cancel();  // The engine's end comes next and finishes the call.
    }
  }

  /// At most once: the engine's mailbox has room for one cancel per sequence.
  void cancel() {
    if (!submitted_ || engine_ended_ || cancelled_) return;
    cancelled_ = true;
    engine_.cancel(id_);
  }

  void delete_if_over(std::unique_lock<std::mutex>& lock) {
    if (!grpc_done_ || !engine_ended_) return;
    lock.unlock();
    delete this;
  }

  engine::AttentionEngine& engine_;
  std::mutex mutex_;
  SequenceId id_;
  bool submitted_ = false;
  bool engine_ended_ = false;
  bool cancelled_ = false;
  bool writing_ = false;
  bool broken_ = false;  // The peer reads no more.
  bool finished_ = false;
  bool grpc_done_ = false;
  Status status_;
  v1::RunChunk pending_, chunk_;
};

Status check_sampling(const v1::RunRequest& request) {
  if (!(request.temperature() >= 0) || !std::isfinite(request.temperature())) {
    return invalid_argument("temperature is {}; it must be finite and at least 0",
                            request.temperature());
  }
  if (!(request.top_p() > 0 && request.top_p() <= 1)) {
    return invalid_argument("top_p is {}; it must be in (0, 1]", request.top_p());
  }
  if (!(request.min_p() >= 0 && request.min_p() <= 1)) {
    return invalid_argument("min_p is {}; it must be in [0, 1]", request.min_p());
  }
  return ok_status();
}

/// Ends a call that was refused before it became a sequence.
class RefusedReactor final : public grpc::ServerWriteReactor<v1::RunChunk> {
 public:
  explicit RefusedReactor(const Status& status) { Finish(control::to_grpc(status)); }
  void OnDone() override { delete this; }
};

/// The call's deadline on the monotonic clock; 0 for none.
Nanos monotonic_deadline(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return 0;
  const Nanos left = std::chrono::duration_cast<std::chrono::nanoseconds>(
                         deadline - std::chrono::system_clock::now())
                         .count();
  return monotonic_now() + left;
}

}  // namespace

grpc::ServerWriteReactor<v1::RunChunk>* AttentionService::Run(grpc::CallbackServerContext* context,
                                                              const v1::RunRequest* request) {
  if (const Status status = check_sampling(*request); !status.ok())
    return new RefusedReactor(status);
  engine::GenerationRequest generation;
  generation.tokens.assign(request->token_ids().begin(), request->token_ids().end());
  generation.max_new_tokens = request->max_new_tokens();
  generation.stop_tokens.assign(request->stop_token_ids().begin(), request->stop_token_ids().end());
  generation.sampling = {.temperature = request->temperature(),
                         .top_k = request->top_k(),
                         .top_p = request->top_p(),
                         .min_p = request->min_p(),
                         .seed = request->seed()};
  generation.deadline = monotonic_deadline(*context);
  return new RunReactor(engine_, std::move(generation));
}

}  // namespace volley::daemon
