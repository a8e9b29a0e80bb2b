#pragma once

#include <functional>
#include <string>
#include <vector>

#include "volley/bench/kernel_report.h"

namespace volley::bench {

struct KernelBenchOptions {
  std::string isa = "auto";  ///< As kernels::select_cpu_kernels takes it.
  std::vector<uint32_t> threads = {1};
  std::string filter;         ///< ECMAScript regex, searched in case names; "": all.
  uint32_t min_time_ms = 30;  ///< Each repetition lasts at least so long.
  uint32_t repetitions = 7;   ///< Of each case, interleaved with those of the others.
};

/// The names of all cases: "gemm/ffn_up 2048x1024/rows=64". What a filter is matched with.
std::vector<std::string> kernel_case_names();

/// Measures the machine's limits and every case that the filter selects, per thread count. Blocks;
/// pins the calling thread meanwhile. `progress` gets a line now and then. Errors: kInvalidArgument
/// (instruction set, filter, more threads than cores, an option of 0), kFailedPrecondition (the
/// processor lacks the instruction set), kResourceExhausted (memory), kUnavailable (pinning).
Result<KernelReport> run_kernel_bench(const KernelBenchOptions& options,
                                      const std::function<void(const std::string&)>& progress);

}  // namespace volley::bench
