#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "volley/base/status.h"

namespace volley::benchmarks {

/// What every report says about the run: command line, time, processor, cores.
nlohmann::json run_description(int argc, char** argv);

/// Errors: kUnavailable, naming the path.
Status write_text_file(const std::string& path, const std::string& text);
/// Whether write_text_file() will be able to, before a long measurement; "" is no file. Errors:
/// kInvalidArgument.
Status check_writable(const std::string& path);

}  // namespace volley::benchmarks
