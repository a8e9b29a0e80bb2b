#include "common/streams.h"

#include <algorithm>
#include <chrono>

#include "volley/base/clock.h"
#include "volley/base/random.h"

namespace volley::benchmarks {

Streams::Streams(engine::AttentionEngine& engine, uint32_t vocab, const StreamOptions& options)
    : engine_(engine), options_(options) {
  const uint32_t new_tokens =
      options.decode_tokens == 0 ? 1 : 1 + options.decode_tokens + options.slack_tokens;
  SplitMix64 random(options.seed);
  std::vector<engine::GenerationRequest> requests(options.streams);
  for (engine::GenerationRequest& request : requests) {
    request.tokens.resize(options.prompt_tokens);
    for (int32_t& token : request.tokens) token = static_cast<int32_t>(random.below(vocab));
    request.max_new_tokens = new_tokens;
    request.sampling.temperature = 0;  // Greedy: what a stream says is not what is measured.
    // Modelled nodes draw by it: streams that say the same would choose the same experts.
    request.sampling.seed = streams_.size();
    streams_.push_back(std::make_unique<Stream>());
    streams_.back()->owner = this;
    streams_.back()->times.reserve(new_tokens);
  }
  submitted_ = monotonic_now();
  for (size_t i = 0; i < requests.size(); ++i) {
    const Result<SequenceId> id = engine_.submit(std::move(requests[i]), streams_[i].get());
    if (id.ok()) {
      streams_[i]->id = *id;
      continue;
    }
    const std::lock_guard lock(mutex_);
    streams_[i]->ended = true;
    ++ended_;
    over_ = true;
    status_.Update(id.status());
  }
}

Streams::~Streams() {
  // The engine calls the sinks until each has its end.
  std::unique_lock lock(mutex_);
  if (ended_ == streams_.size()) return;
  lock.unlock();
  for (const auto& stream : streams_) {
    if (stream->id.value != 0) engine_.cancel(stream->id);
  }
  lock.lock();
  changed_.wait(lock, [this] { return ended_ == streams_.size(); });
}

void Streams::Stream::on_output(const scheduler::SequenceOutput& output) {
  if (output.token >= 0) {
    times.push_back(monotonic_now());
    owner->on_token(*this);
  }
  if (output.ended()) owner->on_end(*this, output);
}

void Streams::on_token(Stream& stream) {
  if (round_over_ != 0) return;
  if (stream.times.size() == 1 && ++started_ == streams_.size()) {
    all_started_ = stream.times.back();
    for (const auto& each : streams_) each->before = each->times.size();
  }
  if (all_started_ == 0) return;
  if (options_.decode_tokens != 0 &&
      stream.times.size() != stream.before + options_.decode_tokens) {
    return;
  }
  reached_ = options_.decode_tokens == 0 ? started_ : reached_ + 1;
  if (reached_ < streams_.size()) return;
  round_over_ = stream.times.back();
  const std::lock_guard lock(mutex_);
  over_ = true;
  changed_.notify_all();
}

void Streams::on_end(Stream& stream, const scheduler::SequenceOutput& output) {
  const std::lock_guard lock(mutex_);
  stream.ended = true;
  ++ended_;
  if (!over_ && output.status.ok() && options_.decode_tokens != 0) {
    status_.Update(internal_error("a stream ended after {} tokens, before all had theirs",
                                  stream.times.size()));
    over_ = true;
  }
  if (!output.status.ok() && output.status.code() != StatusCode::kCancelled) {
    status_.Update(output.status);
    over_ = true;
  }
  changed_.notify_all();
}

Status Streams::wait(Nanos deadline) {
  const auto until = [deadline] {
    return std::chrono::nanoseconds(std::max<Nanos>(0, deadline - monotonic_now()));
  };
  std::unique_lock lock(mutex_);
  const bool over = changed_.wait_for(lock, until(), [this] { return over_; });
  if (!over) {
    return make_status(StatusCode::kDeadlineExceeded, "{} of {} streams have not ended in time",
                       streams_.size() - ended_, streams_.size());
  }
  // Ends are reported on the engine's thread, which must not be waited for with the lock held.
  lock.unlock();
  for (const auto& stream : streams_) {
    if (stream->id.value != 0) engine_.cancel(stream->id);
  }
  lock.lock();
  if (!changed_.wait_for(lock, until(), [this] { return ended_ == streams_.size(); })) {
    return make_status(StatusCode::kDeadlineExceeded, "cancelled streams did not end in time");
  }
  return status_;
}

uint64_t Streams::tokens_between(Nanos begin, Nanos end) const {
  uint64_t tokens = 0;
  for (const auto& stream : streams_) {
    tokens += static_cast<uint64_t>(std::ranges::count_if(
        stream->times, [&](Nanos time) { return time > begin && time <= end; }));
  }
  return tokens;
}

}  // namespace volley::benchmarks
