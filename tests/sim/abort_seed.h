#pragma once

#include <cstdint>

namespace volley::sim {

/// A failed VOLLEY_CHECK ends the process: print which seed was running.
void announce_seed(uint64_t seed);

}  // namespace volley::sim
