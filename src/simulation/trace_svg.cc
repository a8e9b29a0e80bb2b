// The picture of a trace, in the manner of benchmarks/pingpong: a lane per node, a colour per
// micro-batch, the layer inside each block that has room for it.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

#include "volley/simulation/report.h"

namespace volley::simulation {
namespace {

constexpr double kWidth = 1240, kLabelWidth = 92, kMargin = 16;
constexpr double kPlotWidth = kWidth - kLabelWidth - 2 * kMargin;
constexpr double kTitleHeight = 26, kLaneHeight = 22, kLaneGap = 4, kAxisHeight = 36;
constexpr double kLegendHeight = 28;
constexpr double kLabelRoom = 18;      // A narrower block has no label.
constexpr double kBlockRoom = 0.05;    // A narrower one is not drawn.
constexpr size_t kBlocksMax = 20'000;  // Bounds the file.
constexpr int kTicksMax = 10;

// Told apart by most colour-blind people too, and in grey.
constexpr std::array<const char*, 8> kColours = {"#0072b2", "#e69f00", "#009e73", "#cc79a7",
                                                 "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f"};
constexpr const char* kHeadColour = "#444444";
constexpr const char* kWindowColour = "#d9c7e8";
constexpr const char* kLaneColour = "#f2f2f2";

/// The largest of 1, 2, 5 times a power of ten that gives few ticks.
double tick_us(double length_us) {
  double step = 1e-3;
  while (true) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (length_us / (step * factor) <= kTicksMax) return step * factor;
    }
    step *= 10;
  }
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char each : text) {
    switch (each) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      default:
        out += each;
    }
  }
  return out;
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
                   y, anchor, fill, escaped(words));
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

const char* colour_of(const TraceSpan& span) {
  if (span.kind == TraceSpan::Kind::kHead) return kHeadColour;
  if (span.kind == TraceSpan::Kind::kGatherWindow) return kWindowColour;
  return kColours[span.micro_batch % kColours.size()];
}

std::string hint_of(const TraceSpan& span) {
  const double us = static_cast<double>(span.end - span.begin) / 1e3;
  switch (span.kind) {
    case TraceSpan::Kind::kHead:
      return fmt::format("micro-batch {}, head, {:.1f} us", span.micro_batch, us);
    case TraceSpan::Kind::kGatherWindow:
      return fmt::format("gather window, {:.1f} us", us);
    case TraceSpan::Kind::kFfn:
      return fmt::format("micro-batch {}, layer {}, {} pairs of {} dispatches, {:.1f} us",
                         span.micro_batch, span.layer, span.rows, span.peers, us);
    default:
      return fmt::format("micro-batch {}, layer {}, {} rows, {:.1f} us", span.micro_batch,
                         span.layer, span.rows, us);
  }
}

void draw_lane(Picture& picture, const Trace& trace, bool expert, uint32_t node, double y,
               size_t& blocks) {
  const double scale = kPlotWidth / static_cast<double>(trace.end - trace.begin);
  const double left = kMargin + kLabelWidth;
  picture.rectangle(left, y, kPlotWidth, kLaneHeight, kLaneColour, "waiting");
  for (const TraceSpan& span : trace.spans) {
    if (span.expert != expert || span.node != node || span.kind == TraceSpan::Kind::kSend) continue;
    const Nanos begin = std::max(span.begin, trace.begin), end = std::min(span.end, trace.end);
    const double x = left + static_cast<double>(begin - trace.begin) * scale;
    const double width = static_cast<double>(end - begin) * scale;
    if (width < kBlockRoom || ++blocks > kBlocksMax) continue;
    picture.rectangle(x, y, width, kLaneHeight, colour_of(span), hint_of(span));
    const bool numbered =
        span.kind == TraceSpan::Kind::kAttention || span.kind == TraceSpan::Kind::kFfn;
    if (numbered && width >= kLabelRoom) {
      picture.text(x + width / 2, y + kLaneHeight / 2 + 4, "middle", "#ffffff",
                   fmt::format("{}", span.layer));
    }
  }
}

void draw_axis(Picture& picture, const Trace& trace, double y) {
  const double length_us = static_cast<double>(trace.end - trace.begin) / 1e3;
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
  const auto entry = [&](const char* fill, const std::string& words, double width) {
    picture.rectangle(x, kMargin, 14, 14, fill, "");
    picture.text(x + 20, kMargin + 11, "start", "#000000", words);
    x += width;
  };
  for (uint32_t each = 0; each < micro_batches; ++each) {
    entry(kColours[each % kColours.size()], fmt::format("micro-batch {}", each), 112);
  }
  entry(kHeadColour, "head and sampling", 140);
  entry(kWindowColour, "gather window", 116);
  entry(kLaneColour, "waiting; numbers are layers", 0);
}

}  // namespace

std::string trace_svg(const Trace& trace, const std::string& title) {
  Picture picture;
  if (trace.end <= trace.begin) return picture.finish(2 * kMargin);
  uint32_t micro_batches = 1;
  for (const TraceSpan& span : trace.spans) {
    micro_batches = std::max(micro_batches, std::min(8u, span.micro_batch + 1u));
  }
  draw_legend(picture, micro_batches);
  double y = kMargin + kLegendHeight;
  picture.text(kMargin, y + 16, "start", "#000000", title);
  y += kTitleHeight;
  size_t blocks = 0;
  const auto draw_pool = [&](const std::vector<std::string>& names, bool expert) {
    for (uint32_t node = 0; node < names.size(); ++node) {
      picture.text(kMargin, y + kLaneHeight / 2 + 4, "start", "#000000", names[node]);
      draw_lane(picture, trace, expert, node, y, blocks);
      y += kLaneHeight + kLaneGap;
    }
  };
  draw_pool(trace.attention_names, false);
  draw_pool(trace.expert_names, true);
  draw_axis(picture, trace, y);
  return picture.finish(y + kAxisHeight + kMargin);
}

}  // namespace volley::simulation
