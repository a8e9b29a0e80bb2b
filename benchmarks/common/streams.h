#pragma once

// The load of the benchmarks: streams that start together, and the time of every token.

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "volley/engine/attention_engine.h"

namespace volley::benchmarks {

struct StreamOptions {
  uint32_t streams = 1;
  uint32_t prompt_tokens = 1;  ///< Of each stream.
  /// Measured tokens of each stream: those after the last stream's first one. Every stream is
  /// decoding all that time, because none ends before it. 0: each ends with its first token.
  uint32_t decode_tokens = 0;
  /// Tokens that a stream may get while others are still prefilled.
  uint32_t slack_tokens = 0;
  uint64_t seed = 1;
};

/// One round of streams on one attention node. Submits on construction; wait() ends the round.
class Streams {
 public:
  Streams(engine::AttentionEngine& engine, uint32_t vocab, const StreamOptions& options);
  ~Streams();

  /// Returns when the round is over and every stream has ended. Errors: a stream's own, kInternal
  /// (a stream ended too early), kDeadlineExceeded.
  Status wait(Nanos deadline);

  // After wait() has returned OK:
  Nanos submitted() const { return submitted_; }
  /// The last stream's first token.
  Nanos all_started() const { return all_started_; }
  /// The moment at which every stream had its measured tokens.
  Nanos round_over() const { return round_over_; }
  /// Tokens of all streams in (begin, end].
  uint64_t tokens_between(Nanos begin, Nanos end) const;

 private:
  struct Stream final : engine::OutputSink {
    void on_output(const scheduler::SequenceOutput& output) override;
    Streams* owner = nullptr;
    SequenceId id;
    std::vector<Nanos> times;
    size_t before = 0;  // Tokens up to all_started_.
    bool ended = false;
  };
  void on_token(Stream& stream);
  void on_end(Stream& stream, const scheduler::SequenceOutput& output);

  engine::AttentionEngine& engine_;
  const StreamOptions options_;
  Nanos submitted_ = 0;
  std::vector<std::unique_ptr<Stream>> streams_;

  // Of the engine's thread until the round is over.
  uint32_t started_ = 0, reached_ = 0;
  Nanos all_started_ = 0, round_over_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;  // Guarded by mutex_, as is what follows.
  uint32_t ended_ = 0;
  Status status_;
};

}  // namespace volley::benchmarks
