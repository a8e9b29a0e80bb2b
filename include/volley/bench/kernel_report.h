#pragma once

// What `volley bench kernels` has measured, and how it is judged and shown. Pure.

#include <string>
#include <vector>

#include "volley/bench/machine.h"

namespace volley::bench {

/// What the machine can do with some number of threads. GB and GFLOP are powers of ten; a fused
/// multiply-add counts as two operations. 0: the processor cannot do it.
struct Limits {
  double memory_gbps = 0;      ///< Streaming reads from memory.
  double cache_gbps = 0;       ///< Reads from the L2 caches.
  double bf16_dot_gflops = 0;  ///< VDPBF16PS on registers.
  double fma512_gflops = 0;    ///< f32 FMA on 512-bit registers.
  double fma256_gflops = 0;    ///< f32 FMA on 256-bit registers.
  double portable_gflops = 0;  ///< f32 multiplications and additions of the build's baseline.

  bool operator==(const Limits&) const = default;
};

/// The larger of each: machines are noisy, and noise only takes away.
Limits larger_of(const Limits& a, const Limits& b);

/// The arithmetic peak of an instruction set as CpuKernels names it.
double peak_gflops(const Limits& limits, const std::string& isa);

/// What one call must do at least.
struct KernelCost {
  /// Weights and KV that no cache can hold, as the caller rotates through more than fits.
  double memory_bytes = 0;
  /// These and every other input and output, each once.
  double total_bytes = 0;
  double flops = 0;
};

enum class Bound { kMemory, kCache, kCompute };
const char* bound_name(Bound bound);

struct BindingLimit {
  Bound bound = Bound::kMemory;
  double seconds = 0;  ///< No call can be faster.
};

/// The largest of memory_bytes / memory, total_bytes / cache and flops / peak.
BindingLimit binding_limit(const KernelCost& cost, const Limits& limits, const std::string& isa);

struct KernelResult {
  std::string kernel;  ///< "gemm"
  std::string shape;   ///< "ffn_up 2048x1024"
  uint32_t rows = 0;
  uint32_t threads = 0;
  KernelCost cost;
  std::vector<double> seconds;  ///< Of a call, one value per repetition.
  /// Per repetition the larger of the read bandwidths measured right before and right after it.
  std::vector<double> neighbour_gbps;

  double best_seconds() const;
  double median_seconds() const;
  /// The median over the repetitions of: bytes from memory, over what the memory gave at that very
  /// time. On a machine whose bandwidth changes with its neighbours this is the fair share. 0: the
  /// call reads nothing from memory.
  double paired_memory_share() const;
};

/// The limits with this number of threads, before the kernels and after them.
struct ThreadLimits {
  uint32_t threads = 0;
  Limits start, end;
  /// Median of the looks between the repetitions: what the machine gave while the kernels ran. It
  /// limits nothing; it shows whether `start` and `end` are fair.
  double memory_gbps_between = 0;

  Limits best() const { return larger_of(start, end); }
};

struct KernelReport {
  Machine machine;
  std::string date;  ///< UTC, ISO 8601.
  std::string isa;
  double min_time_seconds = 0;
  uint64_t rotation_bytes = 0;  ///< Memory that weights and KV are rotated through.
  std::vector<ThreadLimits> limits;
  std::vector<KernelResult> results;  ///< `threads` is one of those in `limits`.
};

/// Machine, limits and a line per result, for people. docs/benchmarks.md explains the columns.
std::string format_kernel_report(const KernelReport& report);
/// The same data as a JSON object.
std::string kernel_report_json(const KernelReport& report);

}  // namespace volley::bench
