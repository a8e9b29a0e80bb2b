#pragma once

// The command line of `volley bench m2n`, which the baselines of benchmarks/m2n_baselines share.

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "volley/bench/m2n_bench.h"

namespace volley::bench {

struct M2nCommand {
  M2nBenchOptions bench;  ///< Without its shapes.
  uint32_t senders = 1, receivers = 1;
  std::vector<uint64_t> bytes;
  uint64_t answer_bytes = kM2nRowBytes;
  std::string shape;
  std::string pattern = "round-trip";
  std::string json;

  /// Every option but --fabric. The command must outlive `app`'s parse.
  void add_options(CLI::App& app);
  /// After the parse. Errors: kInvalidArgument.
  Result<M2nBenchOptions> options() const;
};

}  // namespace volley::bench
