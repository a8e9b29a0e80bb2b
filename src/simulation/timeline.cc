// An SVG picture of who computed when.

#include "volley/simulation/timeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

namespace volley::simulation {
namespace {

constexpr double kWidth = 1240, kLabelWidth = 92, kMargin = 16;
constexpr double kPlotWidth = kWidth - kLabelWidth - 2 * kMargin;
constexpr double kTitleHeight = 26, kLaneHeight = 26, kLaneGap = 5, kAxisHeight = 36;
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

const char* colour_of(const TimelineBlock& block) {
  switch (block.kind) {
    case TimelineBlock::Kind::kHead:
      return kHeadColour;
    case TimelineBlock::Kind::kWindow:
      return kWindowColour;
    case TimelineBlock::Kind::kLayer:
      return kColours[block.micro_batch % kColours.size()];
  }
  return kHeadColour;
}

std::string hint_of(const TimelineBlock& block) {
  const double us = static_cast<double>(block.end - block.begin) / 1e3;
  switch (block.kind) {
    case TimelineBlock::Kind::kHead:
      return fmt::format("micro-batch {}, head, {:.1f} us", block.micro_batch, us);
    case TimelineBlock::Kind::kWindow:
      return fmt::format("gather window, {:.1f} us", us);
    case TimelineBlock::Kind::kLayer:
      return fmt::format("micro-batch {}, layer {}, {:.1f} us{}{}", block.micro_batch, block.layer,
                         us, block.more.empty() ? "" : ", ", escaped(block.more));
  }
  return "";
}

void draw_lane(Picture& picture, const TimelinePanel& panel, const TimelineLane& lane, double y,
               size_t& drawn) {
  const double scale = kPlotWidth / static_cast<double>(panel.end - panel.begin);
  const double left = kMargin + kLabelWidth;
  picture.text(kMargin, y + kLaneHeight / 2 + 4, "start", "#000000", lane.name);
  picture.rectangle(left, y, kPlotWidth, kLaneHeight, kLaneColour, "waiting");
  for (const TimelineBlock& block : lane.blocks) {
    const Nanos begin = std::max(block.begin, panel.begin), end = std::min(block.end, panel.end);
    if (end <= begin) continue;
    const double x = left + static_cast<double>(begin - panel.begin) * scale;
    const double width = static_cast<double>(end - begin) * scale;
    if (width < kBlockRoom || ++drawn > kBlocksMax) continue;
    picture.rectangle(x, y, width, kLaneHeight, colour_of(block), hint_of(block));
    if (block.kind == TimelineBlock::Kind::kLayer && width >= kLabelRoom) {
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

/// What occurs in the panels.
struct Legend {
  uint32_t micro_batches = 1;
  bool windows = false;
};

Legend legend_of(const std::vector<TimelinePanel>& panels) {
  Legend legend;
  for (const TimelinePanel& panel : panels) {
    for (const TimelineLane& lane : panel.lanes) {
      for (const TimelineBlock& block : lane.blocks) {
        const bool window = block.kind == TimelineBlock::Kind::kWindow;
        legend.windows |= window;
        if (!window) legend.micro_batches = std::max(legend.micro_batches, block.micro_batch + 1u);
      }
    }
  }
  legend.micro_batches = std::min(legend.micro_batches, static_cast<uint32_t>(kColours.size()));
  return legend;
}

void draw_legend(Picture& picture, const Legend& legend) {
  double x = kMargin;
  const auto entry = [&](const char* fill, const std::string& words, double width) {
    picture.rectangle(x, kMargin, 14, 14, fill, "");
    picture.text(x + 20, kMargin + 11, "start", "#000000", words);
    x += width;
  };
  for (uint32_t each = 0; each < legend.micro_batches; ++each) {
    entry(kColours[each], fmt::format("micro-batch {}", each), 112);
  }
  entry(kHeadColour, "head and sampling", 140);
  if (legend.windows) entry(kWindowColour, "gather window", 116);
  entry(kLaneColour, "waiting; numbers are layers", 0);
}

}  // namespace

std::string timeline_svg(const std::vector<TimelinePanel>& panels) {
  Picture picture;
  draw_legend(picture, legend_of(panels));
  double y = kMargin + kLegendHeight;
  size_t drawn = 0;
  for (const TimelinePanel& panel : panels) {
    if (panel.end <= panel.begin) continue;
    picture.text(kMargin, y + 16, "start", "#000000", panel.title);
    y += kTitleHeight;
    for (const TimelineLane& lane : panel.lanes) {
      draw_lane(picture, panel, lane, y, drawn);
      y += kLaneHeight + kLaneGap;
    }
    draw_axis(picture, panel, y);
    y += kAxisHeight;
  }
  return picture.finish(y + kMargin);
}

}  // namespace volley::simulation
