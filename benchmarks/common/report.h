#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "volley/base/status.h"

namespace volley::benchmarks {

/// What every report says about the run: command line, time, processor, cores.
nlohmann::json run_description(int argc, char** argv);

/// Errors: kUnavailable, naming the path.
Status write_text_file(const std::string& path, const std::string& text);

}  // namespace volley::benchmarks
