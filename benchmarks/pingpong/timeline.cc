#include "timeline.h"

#include "volley/simulation/timeline.h"

namespace volley::benchmarks {
namespace {

using engine::Span;
using engine::SpanRecord;
using simulation::TimelineBlock;

// Between the pieces of one block lies bookkeeping of a few microseconds at most.
constexpr Nanos kGapMax = 20 * kMicrosecond;

bool computes(Span kind) {
  return kind != Span::kSchedule && kind != Span::kWait && kind != Span::kIdle;
}

/// What is drawn as one block: the pieces of work of one micro-batch that follow each other.
std::vector<TimelineBlock> blocks_of(const Trace& trace, Nanos begin, Nanos end) {
  std::vector<TimelineBlock> blocks;
  for (const SpanRecord& span : trace) {
    if (!computes(span.kind) || span.end <= begin || span.begin >= end) continue;
    const bool head = span.kind == Span::kHead || span.kind == Span::kSample;
    // The answers of a layer are combined where the next layer's attention begins.
    const auto layer =
        static_cast<uint16_t>(span.kind == Span::kCombine ? span.layer + 1 : span.layer);
    const TimelineBlock block{
        .kind = head ? TimelineBlock::Kind::kHead : TimelineBlock::Kind::kLayer,
        .begin = span.begin,
        .end = span.end,
        .micro_batch = span.micro_batch,
        .layer = layer};
    TimelineBlock* last = blocks.empty() ? nullptr : &blocks.back();
    const bool joins = last != nullptr && last->micro_batch == block.micro_batch &&
                       last->layer == block.layer && last->kind == block.kind &&
                       block.begin - last->end < kGapMax;
    if (joins) {
      last->end = block.end;
    } else {
      blocks.push_back(block);
    }
  }
  return blocks;
}

}  // namespace

std::string timeline_svg(const std::vector<TimelinePanel>& panels) {
  std::vector<simulation::TimelinePanel> drawn;
  for (const TimelinePanel& panel : panels) {
    const Nanos begin = panel.begin, end = panel.end;
    drawn.push_back({.title = panel.title,
                     .begin = begin,
                     .end = end,
                     .lanes = {{"attention", blocks_of(panel.run->attention, begin, end)},
                               {"experts", blocks_of(panel.run->expert, begin, end)}}});
  }
  return simulation::timeline_svg(drawn);
}

}  // namespace volley::benchmarks
