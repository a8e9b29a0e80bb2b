#include "timeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

namespace volley::benchmarks {
namespace {

using engine::Span;
using engine::SpanRecord;

constexpr double kWidth = 1240, kLabelWidth = 84, kMargin = 16;
constexpr double kPlotWidth = kWidth - kLabelWidth - 2 * kMargin;
constexpr double kTitleHeight = 26, kLaneHeight = 30, kLaneGap = 6, kAxisHeight = 36;
constexpr double kLegendHeight = 34;
constexpr double kLabelRoom = 18;  // A narrower block has no label.
constexpr int kTicksMax = 10;

// Told apart by most colour-blind people too, and in grey.
constexpr std::array<const char*, 8> kColours = {"#0072b2", "#e69f00", "#009e73", "#cc79a7",
                                                 "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f"};
constexpr const char* kBookkeepingColour = "#444444";

const char* colour_of(uint32_t micro_batch) {
  return kColours[micro_batch % kColours.size()];
}

/// What is drawn as one block: the pieces of work of one micro-batch that follow each other.
struct Block {
  Nanos begin = 0, end = 0;
  uint16_t micro_batch = SpanRecord::kNone;
  uint16_t layer = SpanRecord::kNone;
  bool head = false;
};

bool computes(Span kind) {
  return kind != Span::kSchedule && kind != Span::kWait && kind != Span::kIdle;
}

std::vector<Block> blocks_of(const Trace& trace, Nanos begin, Nanos end) {
  std::vector<Block> blocks;
  for (const SpanRecord& span : trace) {
    if (!computes(span.kind) || span.end <= begin || span.begin >= end) continue;
    const bool head = span.kind == Span::kHead || span.kind == Span::kSample;
    // The answers of a layer are combined where the next layer's attention begins.
    const auto layer =
        static_cast<uint16_t>(span.kind == Span::kCombine ? span.layer + 1 : span.layer);
    Block block{.begin = std::max(span.begin, begin),
                .end = std::min(span.end, end),
                .micro_batch = span.micro_batch,
                .layer = layer,
                .head = head};
    Block* last = blocks.empty() ? nullptr : &blocks.back();
    // Between the pieces lies bookkeeping of a few microseconds at most.
    const bool joins = last != nullptr && last->micro_batch == block.micro_batch &&
                       last->layer == block.layer && last->head == head &&
                       block.begin - last->end < 20 * kMicrosecond;
    if (joins) {
      last->end = block.end;
    } else {
      blocks.push_back(block);
    }
  }
  return blocks;
}

/// The largest of 1, 2, 5 times a power of ten that gives few ticks.
double tick_us(double length_us) {
  double step = 1;
  while (true) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (length_us / (step * factor) <= kTicksMax) return step * factor;
    }
    step *= 10;
  }
}

class Picture {
 public:
  void rectangle(double x, double y, double width, double height, const char* fill,
                 const std::string& hint) {
    fmt::format_to(std::back_inserter(out_),
                   "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" "
                   "fill=\"{}\"><title>{}</title></rect>\n",
                   x, y, width, height, fill, hint);
  }
  void line(double x1, double y1, double x2, double y2) {
    fmt::format_to(std::back_inserter(out_),
                   "<line x1=\"{:.2f}\" y1=\"{:.2f}\" x2=\"{:.2f}\" y2=\"{:.2f}\" "
                   "stroke=\"#999999\"/>\n",
                   x1, y1, x2, y2);
  }
  void text(double x, double y, const char* anchor, const char* fill, const std::string& words) {
    fmt::format_to(std::back_inserter(out_),
                   "<text x=\"{:.2f}\" y=\"{:.2f}\" text-anchor=\"{}\" fill=\"{}\">{}</text>\n", x,
                   y, anchor, fill, words);
  }
  std::string finish(double height) const {
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
        "viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
        "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n{2}</svg>\n",
        kWidth, height, out_);
  }

 private:
  std::string out_;
};

void draw_lane(Picture& picture, const Trace& trace, const TimelinePanel& panel, double y) {
  const double scale = kPlotWidth / static_cast<double>(panel.end - panel.begin);
  const double left = kMargin + kLabelWidth;
  picture.rectangle(left, y, kPlotWidth, kLaneHeight, "#f2f2f2", "waiting");
  for (const Block& block : blocks_of(trace, panel.begin, panel.end)) {
    const double x = left + static_cast<double>(block.begin - panel.begin) * scale;
    const double width = static_cast<double>(block.end - block.begin) * scale;
    const std::string what = block.head ? "head" : fmt::format("layer {}", block.layer);
    picture.rectangle(x, y, width, kLaneHeight,
                      block.head ? kBookkeepingColour : colour_of(block.micro_batch),
                      fmt::format("micro-batch {}, {}, {:.1f} us", block.micro_batch, what,
                                  static_cast<double>(block.end - block.begin) / 1e3));
    if (width >= kLabelRoom && !block.head) {
      picture.text(x + width / 2, y + kLaneHeight / 2 + 4, "middle", "#ffffff",
                   fmt::format("{}", block.layer));
    }
  }
}

void draw_axis(Picture& picture, const TimelinePanel& panel, double y) {
  const double length_us = static_cast<double>(panel.end - panel.begin) / 1e3;
  const double left = kMargin + kLabelWidth, step = tick_us(length_us);
  picture.line(left, y, left + kPlotWidth, y);
  for (int tick = 0; tick * step <= length_us; ++tick) {
    const double x = left + tick * step / length_us * kPlotWidth;
    picture.line(x, y, x, y + 4);
    picture.text(x, y + 16, "middle", "#333333", fmt::format("{:g}", tick * step));
  }
  picture.text(kMargin, y + 16, "start", "#333333", "time, us");
}

void draw_legend(Picture& picture, uint32_t micro_batches) {
  double x = kMargin;
  for (uint32_t each = 0; each < micro_batches; ++each, x += 120) {
    picture.rectangle(x, kMargin, 14, 14, colour_of(each), "");
    picture.text(x + 20, kMargin + 11, "start", "#000000", fmt::format("micro-batch {}", each));
  }
  picture.rectangle(x, kMargin, 14, 14, kBookkeepingColour, "");
  picture.text(x + 20, kMargin + 11, "start", "#000000", "head and sampling");
  x += 150;
  picture.rectangle(x, kMargin, 14, 14, "#f2f2f2", "");
  picture.text(x + 20, kMargin + 11, "start", "#000000", "waiting; numbers are layers");
}

}  // namespace

std::string timeline_svg(const std::vector<TimelinePanel>& panels) {
  Picture picture;
  uint32_t micro_batches = 1;
  for (const TimelinePanel& panel : panels) {
    micro_batches = std::max(micro_batches, panel.run->micro_batches);
  }
  draw_legend(picture, micro_batches);
  double y = kMargin + kLegendHeight;
  for (const TimelinePanel& panel : panels) {
    picture.text(kMargin, y + 16, "start", "#000000", panel.title);
    y += kTitleHeight;
    picture.text(kMargin, y + kLaneHeight / 2 + 4, "start", "#000000", "attention");
    draw_lane(picture, panel.run->attention, panel, y);
    y += kLaneHeight + kLaneGap;
    picture.text(kMargin, y + kLaneHeight / 2 + 4, "start", "#000000", "experts");
    draw_lane(picture, panel.run->expert, panel, y);
    y += kLaneHeight + kLaneGap;
    draw_axis(picture, panel, y);
    y += kAxisHeight;
  }
  return picture.finish(y + kMargin);
}

}  // namespace volley::benchmarks
