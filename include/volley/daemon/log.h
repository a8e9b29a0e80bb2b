#pragma once

#include <string>

#include "volley/base/status.h"

namespace volley::daemon {

/// Sends spdlog to stderr, one line per event. `level`: trace, debug, info, warn, error. `format`:
/// text, or json (one object per line: time, level, node, message). `node` is in every line.
/// Errors: kInvalidArgument.
Status set_up_logging(const std::string& level, const std::string& format, const std::string& node);

}  // namespace volley::daemon
