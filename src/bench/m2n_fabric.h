#pragma once

#include "volley/bench/m2n_system.h"

namespace volley::bench {

/// Volley itself: a peer is a node of transport::make_fabric(`fabric`).
M2nSystem m2n_fabric_system(const std::string& fabric);

}  // namespace volley::bench
