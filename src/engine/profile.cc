#include "volley/engine/profile.h"

#include "volley/base/check.h"
#include "volley/base/clock.h"

namespace volley::engine {

std::string_view span_name(Span kind) {
  static constexpr std::array<std::string_view, kSpanKinds> kNames = {
      "schedule", "combine", "attention", "pack",  "post", "head",
      "sample",   "prepare", "ffn",       "check", "wait", "idle"};
  const auto index = static_cast<size_t>(kind);
  VOLLEY_CHECK(index < kSpanKinds);
  return kNames[index];
}

Profile::Profile(size_t trace_capacity) : ring_(trace_capacity) {}

void Profile::start(Nanos now) {
  totals_ = {};
  traced_ = 0;
  last_ = now;
}

Nanos Profile::record(Span kind, Nanos now, const SpanSubject& subject) {
  const Nanos begin = last_;
  const Nanos time = now - begin;
  SpanTotals& totals = totals_.spans[static_cast<size_t>(kind)];
  ++totals.count;
  totals.rows += subject.rows;
  totals.time += time;
  totals_.wall += time;
  last_ = now;
  if (!ring_.empty()) {
    ring_[traced_++ % ring_.size()] = {.begin = begin,
                                       .end = now,
                                       .rows = subject.rows,
                                       .micro_batch = static_cast<uint16_t>(subject.micro_batch),
                                       .layer = static_cast<uint16_t>(subject.layer),
                                       .kind = kind};
  }
  return time;
}

Nanos Profile::lap(Span kind, const SpanSubject& subject) {
  return record(kind, monotonic_now(), subject);
}

std::vector<SpanRecord> Profile::trace() const {
  if (traced_ <= ring_.size()) {
    return {ring_.begin(), ring_.begin() + static_cast<std::ptrdiff_t>(traced_)};
  }
  const auto oldest = ring_.begin() + static_cast<std::ptrdiff_t>(traced_ % ring_.size());
  std::vector<SpanRecord> spans(oldest, ring_.end());
  spans.insert(spans.end(), ring_.begin(), oldest);
  return spans;
}

uint64_t Profile::trace_dropped() const {
  return traced_ > ring_.size() ? traced_ - ring_.size() : 0;
}

}  // namespace volley::engine
