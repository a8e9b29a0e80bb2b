#pragma once

#include <string>

#include "volley/v1/control.pb.h"

namespace volley::cli {

/// Takes the profiles of `before` off those of `status`, for nodes that are the same in both. A
/// node that has started anew between the two keeps its profile.
void subtract_profiles(v1::GetStatusResponse& status, const v1::GetStatusResponse& before);

/// A table for each node with a profile: the time by kind of span, in the order of the engine.
std::string format_profiles(const v1::GetStatusResponse& status);

}  // namespace volley::cli
