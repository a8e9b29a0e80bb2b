#pragma once

// The subcommands: each adds itself to the application and, when it is the one that was called,
// runs and returns the exit code. 0 success, 1 failure, 2 wrong usage or configuration.

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "volley/base/status.h"

namespace volley::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

/// Flags that every subcommand has.
struct GlobalOptions {
  std::string log_level = "info";
  std::string log_format = "text";
};

/// What main() calls once the arguments are parsed.
using Run = std::function<int()>;

void add_node_commands(CLI::App& app, const GlobalOptions& global, Run& run);
void add_up_command(CLI::App& app, const GlobalOptions& global, Run& run);
void add_generate_command(CLI::App& app, const GlobalOptions& global, Run& run);
void add_status_command(CLI::App& app, const GlobalOptions& global, Run& run);
void add_plan_command(CLI::App& app, const GlobalOptions& global, Run& run);
void add_simulate_command(CLI::App& app, const GlobalOptions& global, Run& run);
void add_bench_command(CLI::App& app, const GlobalOptions& global, Run& run);
void add_profile_command(CLI::App& app, const GlobalOptions& global, Run& run);

/// Prints "volley: MESSAGE" to stderr; the exit code for the status: 2 for what the caller can mend
/// in arguments or configuration, else 1.
int report(const Status& status);

}  // namespace volley::cli
