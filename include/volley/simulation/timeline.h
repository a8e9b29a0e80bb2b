#pragma once

// The picture of a pipeline, of simulated clusters and of real runs (benchmarks/pingpong).

#include <cstdint>
#include <string>
#include <vector>

#include "volley/base/ids.h"

namespace volley::simulation {

/// What a node did without a pause.
struct TimelineBlock {
  enum class Kind : uint8_t {
    kLayer,   ///< Work of a micro-batch for a layer.
    kHead,    ///< Final norm, head and sampling.
    kWindow,  ///< An expert node waits to merge.
  };
  Kind kind = Kind::kLayer;
  Nanos begin = 0, end = 0;
  uint32_t micro_batch = 0;
  uint32_t layer = 0;
  std::string more = {};  ///< For the block's hint.
};

struct TimelineLane {
  std::string name;
  std::vector<TimelineBlock> blocks;
};

/// A stretch of time.
struct TimelinePanel {
  std::string title;
  Nanos begin = 0, end = 0;
  std::vector<TimelineLane> lanes;
};

/// A self-contained SVG picture with one panel per stretch: a lane per node, a colour per
/// micro-batch, the layer inside each block that has room for it, a time axis from the start of the
/// stretch. Bounded: blocks beyond some 20,000 are left out. An empty stretch is not drawn.
std::string timeline_svg(const std::vector<TimelinePanel>& panels);

}  // namespace volley::simulation
