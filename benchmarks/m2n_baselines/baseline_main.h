#pragma once

#include "volley/bench/m2n_system.h"

namespace volley::benchmarks {

/// main() of a baseline: reads the options of `volley bench m2n`, runs `system`, writes the report.
/// `--transport` must be one of `transports`; `make` turns it into the system. In a world only
/// process 0 prints.
int run_baseline(int argc, char** argv, const std::string& name,
                 const std::vector<std::string>& transports,
                 const std::function<Result<bench::M2nSystem>(const std::string&)>& make);

}  // namespace volley::benchmarks
