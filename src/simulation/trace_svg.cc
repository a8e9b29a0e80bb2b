// The picture of a trace.

#include <fmt/format.h>

#include "volley/simulation/report.h"
#include "volley/simulation/timeline.h"

namespace volley::simulation {
namespace {

TimelineBlock block_of(const TraceSpan& span) {
  TimelineBlock block{
      .begin = span.begin, .end = span.end, .micro_batch = span.micro_batch, .layer = span.layer};
  switch (span.kind) {
    case TraceSpan::Kind::kHead:
      block.kind = TimelineBlock::Kind::kHead;
      break;
    case TraceSpan::Kind::kGatherWindow:
      block.kind = TimelineBlock::Kind::kWindow;
      break;
    case TraceSpan::Kind::kFfn:
      block.more = fmt::format("{} pairs of {} dispatches", span.rows, span.peers);
      break;
    case TraceSpan::Kind::kAttention:
    case TraceSpan::Kind::kSend:
      block.more = fmt::format("{} rows", span.rows);
      break;
  }
  return block;
}

}  // namespace

std::string trace_svg(const Trace& trace, const std::string& title) {
  TimelinePanel panel{.title = title, .begin = trace.begin, .end = trace.end, .lanes = {}};
  for (const std::string& name : trace.attention_names) panel.lanes.push_back({name, {}});
  for (const std::string& name : trace.expert_names) panel.lanes.push_back({name, {}});
  for (const TraceSpan& span : trace.spans) {
    if (span.kind == TraceSpan::Kind::kSend) continue;
    const size_t lane = span.node + (span.expert ? trace.attention_names.size() : 0);
    if (lane < panel.lanes.size()) panel.lanes[lane].blocks.push_back(block_of(span));
  }
  return timeline_svg({panel});
}

}  // namespace volley::simulation
