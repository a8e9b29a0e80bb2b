#pragma once

// Where an engine's thread spends its time: one total per kind of work, always on, and on request a
// trace of single spans. Both engines use it; docs/design.md says which kind covers what.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "volley/base/ids.h"

namespace volley::engine {

/// What an engine's thread was doing. A thread is always in exactly one of these.
enum class Span : uint8_t {
  kSchedule,   ///< Bookkeeping: commands, events, timers, core or gather policy, status, outputs.
  kCombine,    ///< Attention node: answers into the residual. Expert node: those of a row into one.
  kAttention,  ///< Attention node: norm to router of one layer, the embedding included.
  kPack,       ///< Attention node: rows into a slot.
  kPost,       ///< Header and entries of a message, publication, doorbell.
  kHead,       ///< Attention node: final norm and head.
  kSample,     ///< Attention node: sampling and digests.
  kPrepare,    ///< Expert node: a gather's rows grouped by expert, fp8 ones widened.
  kFfn,        ///< Expert node: the grouped FFN.
  kCheck,      ///< Expert node: whether the answers' values are finite.
  kWait,       ///< Blocked while a step is under way: for answers, or for dispatches.
  kIdle,       ///< Blocked, and no step is under way.
};
inline constexpr size_t kSpanKinds = static_cast<size_t>(Span::kIdle) + 1;

/// "schedule", "combine", ...
std::string_view span_name(Span kind);

struct SpanTotals {
  uint64_t count = 0;
  uint64_t rows = 0;
  Nanos time = 0;
};

/// Totals since start(). The kinds' times add up to `wall`.
struct ProfileSnapshot {
  Nanos wall = 0;
  std::array<SpanTotals, kSpanKinds> spans{};

  const SpanTotals& operator[](Span kind) const { return spans[static_cast<size_t>(kind)]; }
  Nanos busy() const { return wall - (*this)[Span::kWait].time - (*this)[Span::kIdle].time; }
};

/// One span of the trace. Times are CLOCK_MONOTONIC, comparable among the processes of a host.
struct SpanRecord {
  /// As `micro_batch` or `layer`: the span belongs to none.
  static constexpr uint16_t kNone = 0xffff;

  Nanos begin = 0;
  Nanos end = 0;
  uint32_t rows = 0;
  uint16_t micro_batch = kNone;  ///< Of a gather on an expert node: its first dispatch's.
  uint16_t layer = kNone;
  Span kind = Span::kSchedule;
};

/// What a span is about.
struct SpanSubject {
  uint32_t micro_batch = SpanRecord::kNone;
  uint32_t layer = SpanRecord::kNone;
  uint32_t rows = 0;
};

/// Divides a thread's time among the kinds, without a gap: a span ends where the next begins, so a
/// span costs one reading of the clock and a few additions. Allocates in the constructor only.
///
/// Thread: the engine's. Others see copies: the engine publishes totals() with its status.
class Profile {
 public:
  /// The trace keeps the last `trace_capacity` spans; 0: none.
  explicit Profile(size_t trace_capacity);

  /// The thread's time begins to count.
  void start(Nanos now);
  /// The time since the last span's end went into `kind`; returns it. `now` must not be before
  /// that.
  Nanos record(Span kind, Nanos now, const SpanSubject& subject = {});
  /// record() at this moment.
  Nanos lap(Span kind, const SpanSubject& subject = {});
  /// The last span's end.
  Nanos last() const { return last_; }

  const ProfileSnapshot& totals() const { return totals_; }
  /// The spans that the trace holds, oldest first.
  std::vector<SpanRecord> trace() const;
  /// Spans that the trace had no more room for: the oldest ones.
  uint64_t trace_dropped() const;

 private:
  ProfileSnapshot totals_;
  Nanos last_ = 0;
  std::vector<SpanRecord> ring_;
  uint64_t traced_ = 0;  // Spans that went into the ring, overwritten ones included.
};

}  // namespace volley::engine
