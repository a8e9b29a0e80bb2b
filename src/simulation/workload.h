#pragma once

#include "volley/base/random.h"
#include "volley/simulation/options.h"

namespace volley::simulation {

/// At least 1.
uint32_t draw_length(const LengthOptions& options, SplitMix64& random);
/// Seconds to the next of `rate` arrivals per second, independent of each other.
double draw_gap(double rate, SplitMix64& random);

}  // namespace volley::simulation
