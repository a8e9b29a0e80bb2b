#pragma once

#include <string>
#include <vector>

#include "trace_analysis.h"

namespace volley::benchmarks {

/// A stretch of one run to be drawn.
struct TimelinePanel {
  std::string title;
  const RunTrace* run = nullptr;
  Nanos begin = 0;
  Nanos end = 0;
};

/// An SVG picture with one panel per stretch: a lane per node, a colour per micro-batch, the layer
/// inside each block that has room for it, a time axis from the start of the stretch.
std::string timeline_svg(const std::vector<TimelinePanel>& panels);

}  // namespace volley::benchmarks
