#include "generation.h"

#include <utility>

#include "volley/base/check.h"
#include "volley/control/grpc_status.h"

namespace volley::frontend {
namespace {

// After its deadline a client gets this long to read the status before it is cut off.
constexpr Nanos kLastWriteGrace = kSecond;

// A node that stops in order sends its last chunks before it leaves, but on another connection: what has
// arrived and is not read yet gets this long.
constexpr Nanos kLeftNodeGrace = 500 * kMillisecond;

gpr_timespec from_now(Nanos delay) {
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(delay, GPR_TIMESPAN));
}

}  // namespace

Generation::Generation(GenerationOwner& owner, Options options, ClientCall* client)
    : owner_(owner),
      options_(std::move(options)),
      client_(client),
      decoder_(*options_.tokenizer, options_.request.skip_special_tokens) {}

// An alarm keeps its function until the alarm itself goes, so the function must not own us.
void Generation::arm_deadline() {
  deadline_alarm_.Set(options_.deadline, [weak = weak_from_this()](bool fired) {
    if (const auto self = weak.lock(); self && fired) self->on_deadline();
  });
}

void Generation::run(const NodeDirectory::Node& node,
                     std::shared_ptr<v1::AttentionNode::Stub> stub) {
  const std::lock_guard lock(mutex_);
  node_ = node;
  if (end_.has_value() || cause_.has_value()) return;
  run_ = new RunCall(shared_from_this(), std::move(stub), options_.request.run, options_.deadline);
  run_->start();
  reading_ = true;
  run_->read();
}

void Generation::stop(const Status& cause) {
  VOLLEY_CHECK(!cause.ok());
  std::unique_lock lock(mutex_);
  if (cause_.has_value() || end_.has_value()) return;
  cause_ = cause;
  if (run_ != nullptr) {
    cancel_run();  // on_run_done() goes on.
    return;
  }
  end_ = cause;
  lock.unlock();
  owner_.withdraw(options_.id);
  lock.lock();
  pump();
}

void Generation::node_left(const Status& cause) {
  const std::lock_guard lock(mutex_);
  left_alarm_.Set(from_now(kLeftNodeGrace), [weak = weak_from_this(), cause](bool fired) {
    if (const auto self = weak.lock(); self && fired) self->stop(cause);
  });
}

void Generation::cancel_run() {
  run_->cancel();
  if (!reading_) run_->release();
}

bool Generation::deadline_passed() const {
  return gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), options_.deadline) >= 0;
}

void Generation::on_deadline() {
  stop(Status(StatusCode::kDeadlineExceeded, "the request's deadline has passed"));
  const std::lock_guard lock(mutex_);
  if (client_done_) return;
  cut_off_alarm_.Set(from_now(kLastWriteGrace), [weak = weak_from_this()](bool fired) {
    if (const auto self = weak.lock(); self && fired) self->on_cut_off();
  });
}

void Generation::on_cut_off() {
  const std::lock_guard lock(mutex_);
  if (!client_done_) client_->cut_off();
}

void Generation::on_client_gone() {
  {
    const std::lock_guard lock(mutex_);
    client_lost_ = true;
    chunks_.clear();
  }
  // gRPC also reports the client's deadline as a cancellation.
  stop(deadline_passed()
           ? Status(StatusCode::kDeadlineExceeded, "the request's deadline has passed")
           : Status(StatusCode::kCancelled, "the client cancelled the request"));
}

void Generation::on_client_done() {
  std::unique_lock lock(mutex_);
  client_done_ = true;
  client_ = nullptr;
  tell_if_ended(std::move(lock));
}

void Generation::on_written(bool ok) {
  std::unique_lock lock(mutex_);
  writing_ = false;
  if (!ok) {
    client_lost_ = true;
    chunks_.clear();
    lock.unlock();
    stop(Status(StatusCode::kCancelled, "the client is gone"));
    lock.lock();
  }
  pump();
}

void Generation::on_chunk(const v1::RunChunk* chunk) {
  const std::lock_guard lock(mutex_);
  reading_ = false;
  if (chunk == nullptr || cause_.has_value()) {
    run_read_to_end_ = true;
    run_->release();
    return;
  }
  if (!last_chunk_seen_) chunks_.push_back(translate(*chunk));
  pump();
}

void Generation::on_run_done(const Status& status) {
  std::unique_lock lock(mutex_);
  const Status end = cause_.has_value() ? *cause_ : run_result(status);
  if (!cause_.has_value() && end.code() == StatusCode::kUnavailable) {
    // While run_ stands the request cannot end, so the owner is still there.
    lock.unlock();
    owner_.node_failed(*node_);
    lock.lock();
  }
  run_ = nullptr;
  end_ = end;
  pump();
  tell_if_ended(std::move(lock));
}

Status Generation::run_result(const Status& status) const {
  const std::string place = "attention node " + node_->name + " at " + node_->address;
  if (status.ok()) {
    return last_chunk_seen_ ? status
                            : internal_error("{}: the run ended without a finish reason", place);
  }
  // Nobody here cancelled it: the node is going down.
  if (status.code() == StatusCode::kCancelled || status.code() == StatusCode::kUnknown) {
    return unavailable("{}: the run was cut off: {}", place, message_of(status));
  }
  return annotate(status, place);
}

v1::GenerateChunk Generation::translate(const v1::RunChunk& chunk) {
  v1::GenerateChunk result;
  *result.mutable_token_ids() = chunk.token_ids();
  if (options_.request.return_logits_digests)
    *result.mutable_logits_digests() = chunk.logits_digests();
  if (options_.request.return_logprobs) *result.mutable_logprobs() = chunk.logprobs();
  completion_tokens_ += static_cast<uint32_t>(chunk.token_ids_size());
  // The token that stops the generation belongs to the ids, not to the text.
  const int text_tokens =
      chunk.token_ids_size() - (chunk.finish_reason() == v1::FINISH_REASON_STOP ? 1 : 0);
  for (int i = 0; i < text_tokens; ++i) *result.mutable_text() += decoder_.push(chunk.token_ids(i));
  if (std::exchange(first_chunk_, false)) {
    result.set_seed(options_.request.run.seed());
    result.set_attention_node(node_->name);
  }
  if (chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    last_chunk_seen_ = true;
    *result.mutable_text() += decoder_.finish();
    result.set_finish_reason(chunk.finish_reason());
    result.mutable_usage()->set_prompt_tokens(
        static_cast<uint32_t>(options_.request.run.token_ids_size()));
    result.mutable_usage()->set_completion_tokens(completion_tokens_);
  }
  return result;
}

// Moves what can be moved: chunks to the client, then the status, and the next read when there is
// room.
void Generation::pump() {
  while (!client_lost_ && !writing_ && !chunks_.empty()) {
    v1::GenerateChunk chunk = std::move(chunks_.front());
    chunks_.pop_front();
    writing_ = client_->write(std::move(chunk));
  }
  if (client_lost_) chunks_.clear();
  if (end_.has_value() && !writing_ && chunks_.empty() && !std::exchange(finished_, true)) {
    client_->finish(*end_);
  }
  if (run_ != nullptr && !run_read_to_end_ && !reading_ && !cause_.has_value() &&
      chunks_.size() < options_.chunks_waiting_max) {
    reading_ = true;
    run_->read();
  }
}

void Generation::tell_if_ended(std::unique_lock<std::mutex> lock) {
  if (!client_done_ || run_ != nullptr || std::exchange(told_ended_, true)) return;
  const Status status = *end_;
  lock.unlock();
  owner_.ended(options_.id, status);
}

RunCall::RunCall(std::shared_ptr<Generation> generation,
                 std::shared_ptr<v1::AttentionNode::Stub> stub, const v1::RunRequest& request,
                 gpr_timespec deadline)
    : generation_(std::move(generation)), stub_(std::move(stub)), request_(request) {
  context_.set_deadline(deadline);
}

void RunCall::start() {
  stub_->async()->Run(&context_, &request_, this);
  AddHold();  // For the reads that a write to the client sets off.
  StartCall();
}

void RunCall::release() {
  if (!std::exchange(released_, true)) RemoveHold();
}

void RunCall::OnDone(const grpc::Status& status) {
  generation_->on_run_done(control::from_grpc(status));
  delete this;
}

}  // namespace volley::frontend
