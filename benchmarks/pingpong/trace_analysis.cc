#include "trace_analysis.h"

#include <algorithm>
#include <map>

namespace volley::benchmarks {
namespace {

using engine::Span;
using engine::SpanRecord;

bool blocked(const SpanRecord& span) {
  return span.kind == Span::kWait || span.kind == Span::kIdle;
}

double share_inside(const SpanRecord& span, Nanos begin, Nanos end) {
  return static_cast<double>(
      std::max<Nanos>(0, std::min(span.end, end) - std::max(span.begin, begin)));
}

/// A message's way from one node to the other. Keys are (micro-batch, layer).
struct Handover {
  Nanos time = 0;
  uint32_t key = 0;
};

uint32_t key_of(const SpanRecord& span) {
  return uint32_t{span.micro_batch} << 16 | span.layer;
}

std::vector<Handover> posts_of(const Trace& trace) {
  std::vector<Handover> posts;
  for (const SpanRecord& span : trace) {
    if (span.kind == Span::kPost) posts.push_back({.time = span.end, .key = key_of(span)});
  }
  return posts;
}

/// When the attention node began to work on each answer.
std::vector<Handover> combines_of(const Trace& trace) {
  std::vector<Handover> combines;
  for (const SpanRecord& span : trace) {
    if (span.kind == Span::kCombine) combines.push_back({.time = span.begin, .key = key_of(span)});
  }
  return combines;
}

/// When the expert node began to work on each dispatch: a gather's posts name its dispatches.
std::vector<Handover> gathers_of(const Trace& trace) {
  std::vector<Handover> gathers;
  Nanos began = 0;
  for (const SpanRecord& span : trace) {
    if (span.kind == Span::kPrepare) began = span.begin;
    if (span.kind == Span::kPost) gathers.push_back({.time = began, .key = key_of(span)});
  }
  return gathers;
}

/// The times from a post to the receiver's work on it, for posts in (begin, end] at which the
/// receiver was blocked: else the message would have waited for the receiver and not for the wire.
void add_transfers(const std::vector<Handover>& sent, const std::vector<Handover>& taken,
                   const Trace& receiver, Nanos begin, Nanos end, double& sum, uint64_t& count) {
  std::map<uint32_t, std::vector<Nanos>> taken_by_key;
  for (const Handover& each : taken) taken_by_key[each.key].push_back(each.time);
  for (const Handover& post : sent) {
    if (post.time <= begin || post.time > end) continue;
    const std::vector<Nanos>& times = taken_by_key[post.key];
    const auto next = std::ranges::lower_bound(times, post.time);
    if (next == times.end()) continue;
    // The receiver did nothing but wait and look around from the post to its work on the message.
    const auto first = std::ranges::lower_bound(receiver, post.time, {}, &SpanRecord::end);
    bool waited = false, worked = false;
    for (auto span = first; span != receiver.end() && span->begin < *next; ++span) {
      waited = waited || blocked(*span);
      worked = worked || (!blocked(*span) && span->kind != Span::kSchedule);
    }
    if (!waited || worked) continue;
    sum += static_cast<double>(*next - post.time);
    ++count;
  }
}

/// Every step has as many rows as the run wants: right after the prompts, sequences may still move
/// between micro-batches.
bool has_even_steps(const RunTrace& run, Nanos begin, Nanos end) {
  return std::ranges::none_of(run.attention, [&](const SpanRecord& span) {
    return span.kind == Span::kAttention && span.end > begin && span.begin < end &&
           span.rows != run.rows;
  });
}

Window measure(const RunTrace& run, Nanos begin, Nanos end, uint32_t steps) {
  Window window{.begin = begin, .end = end};
  const double length = static_cast<double>(end - begin);
  const double passes = double{1} * steps * run.layers;
  double attention = 0, head = 0, expert = 0;
  for (const SpanRecord& span : run.attention) {
    if (blocked(span)) continue;
    const bool of_head = span.kind == Span::kHead || span.kind == Span::kSample;
    (of_head ? head : attention) += share_inside(span, begin, end);
  }
  uint64_t dispatches = 0, gathers = 0;
  for (const SpanRecord& span : run.expert) {
    if (!blocked(span)) expert += share_inside(span, begin, end);
    if (span.end <= begin || span.end > end) continue;
    dispatches += span.kind == Span::kPost ? 1 : 0;
    gathers += span.kind == Span::kFfn ? 1 : 0;
  }
  window.steps_per_s = steps / length * 1e9;
  window.times.attention = attention / passes;
  window.times.expert = expert / passes;
  window.times.head = head / steps;
  window.attention_busy = (attention + head) / length;
  window.expert_busy = expert / length;
  window.expert_runs =
      dispatches == 0 ? 0 : static_cast<double>(gathers) / static_cast<double>(dispatches);
  double sum = 0;
  add_transfers(posts_of(run.attention), gathers_of(run.expert), run.expert, begin, end, sum,
                window.transfers);
  add_transfers(posts_of(run.expert), combines_of(run.attention), run.attention, begin, end, sum,
                window.transfers);
  if (window.transfers > 0) window.times.transfer = sum / static_cast<double>(window.transfers);
  return window;
}

}  // namespace

Result<std::vector<Window>> find_windows(const RunTrace& run, uint32_t rounds) {
  std::vector<Nanos> completed;
  for (const SpanRecord& span : run.attention) {
    const bool inside = span.end > run.begin && span.end <= run.end;
    if (span.kind == Span::kSample && inside) completed.push_back(span.end);
  }
  const size_t steps = size_t{rounds} * run.micro_batches;
  std::vector<Window> windows;
  for (size_t first = 0; first + steps < completed.size(); first += steps) {
    const Nanos begin = completed[first], end = completed[first + steps];
    if (!has_even_steps(run, begin, end)) continue;
    windows.push_back(measure(run, begin, end, static_cast<uint32_t>(steps)));
  }
  if (windows.empty()) {
    return internal_error("{} steps were traced, none of {} in a row with {} rows each",
                          completed.size(), steps, run.rows);
  }
  return windows;
}

double predicted_period(const PhaseTimes& times, uint32_t micro_batches, uint32_t layers) {
  const double path = layers * (times.attention + times.expert + 2 * times.transfer) + times.head;
  const double attention = micro_batches * (layers * times.attention + times.head);
  const double expert = micro_batches * layers * times.expert;
  return std::max({path, attention, expert});
}

double predicted_steps_per_s(const PhaseTimes& times, uint32_t micro_batches, uint32_t layers) {
  return micro_batches * 1e9 / predicted_period(times, micro_batches, layers);
}

}  // namespace volley::benchmarks
