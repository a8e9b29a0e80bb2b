#include "volley/bench/kernel_bench.h"

#include <algorithm>
#include <cmath>
#include <regex>

#include "arithmetic_peak.h"
#include "kernel_cases.h"
#include "read_bandwidth.h"
#include "volley/base/clock.h"
#include "volley/bench/statistics.h"

namespace volley::bench {
namespace {

using Cases = std::vector<std::unique_ptr<KernelCase>>;

/// The arena is so many times the L3: at most an eighth of what is read could still be cached.
constexpr uint64_t kArenaPerL3 = 8;
/// Each limit is measured so many times as long as a repetition of a kernel, at least.
constexpr double kLimitTimes = 5;
/// Bandwidth as many times longer still: it varies more, and there are many ways to read.
constexpr double kMemoryLimitTimes = 4;
/// What a look at the bandwidth between two repetitions reads: some 3 ms.
constexpr size_t kBriefBytes = size_t{64} << 20;

Result<Cases> select_cases(const std::string& filter) {
  std::regex pattern;
  try {
    pattern = std::regex(filter, std::regex::ECMAScript);
  } catch (const std::regex_error& error) {
    return invalid_argument("filter '{}' is not a regular expression: {}", filter, error.what());
  }
  Cases all = make_kernel_cases();
  const size_t count = all.size();
  std::erase_if(all, [&](const auto& one) { return !std::regex_search(one->name(), pattern); });
  if (all.empty()) {
    return invalid_argument("filter '{}' selects none of the {} cases, such as {}", filter, count,
                            kernel_case_names().front());
  }
  return all;
}

Status check(const KernelBenchOptions& options, const Machine& machine) {
  if (options.threads.empty()) return invalid_argument("threads is empty");
  if (options.min_time_ms == 0) return invalid_argument("min_time_ms is 0");
  if (options.repetitions == 0) return invalid_argument("repetitions is 0");
  for (const uint32_t threads : options.threads) {
    if (threads == 0 || threads > machine.cores.size()) {
      return invalid_argument("threads is {}; this process may use {} cores", threads,
                              machine.cores.size());
    }
  }
  return ok_status();
}

Limits measure_limits(ThreadPool& pool, MemoryReader& reader, std::span<const std::byte> memory,
                      const Machine& machine, double seconds) {
  Limits limits = measure_arithmetic(pool, seconds);
  limits.memory_gbps = reader.measure(kMemoryLimitTimes * seconds);
  limits.cache_gbps = measure_cache_read(pool, memory, machine.l2_bytes / 2, seconds);
  return limits;
}

class Runner {
 public:
  Runner(const kernels::CpuKernels& kernels, Arena& arena, ThreadPool& pool, double min_time)
      : kernels_(kernels), arena_(arena), pool_(pool), min_time_(min_time) {}

  /// How many calls of the case last the minimal time, found out while it warms up.
  uint64_t calls_for(KernelCase& one) const {
    for (uint64_t calls = 1;; calls *= 2) {
      const double seconds = time(one, calls) * static_cast<double>(calls);
      if (seconds >= min_time_) return calls;
      // Twice: the first call of all pays for what is touched first.
      if (calls >= 2 && seconds >= min_time_ / 8) {
        return static_cast<uint64_t>(std::ceil(min_time_ / seconds * static_cast<double>(calls)));
      }
    }
  }
  /// Seconds per call.
  double time(KernelCase& one, uint64_t calls) const {
    const Nanos start = monotonic_now();
    for (uint64_t i = 0; i < calls; ++i) one.run(kernels_, arena_, pool_);
    return static_cast<double>(monotonic_now() - start) / static_cast<double>(calls) / kSecond;
  }

 private:
  const kernels::CpuKernels& kernels_;
  Arena& arena_;
  ThreadPool& pool_;
  double min_time_;
};

}  // namespace

std::vector<std::string> kernel_case_names() {
  std::vector<std::string> names;
  for (const auto& one : make_kernel_cases()) names.push_back(one->name());
  return names;
}

Result<KernelReport> run_kernel_bench(const KernelBenchOptions& options,
                                      const std::function<void(const std::string&)>& progress) {
  VOLLEY_ASSIGN_OR_RETURN(Machine machine, inspect_machine());
  VOLLEY_RETURN_IF_ERROR(check(options, machine));
  VOLLEY_ASSIGN_OR_RETURN(const kernels::CpuKernels* const kernels,
                          kernels::select_cpu_kernels(options.isa));
  VOLLEY_ASSIGN_OR_RETURN(const Cases cases, select_cases(options.filter));

  double largest_call = 0;
  for (const auto& one : cases) largest_call = std::max(largest_call, one->cost().memory_bytes);
  const uint64_t arena_bytes = kArenaPerL3 * machine.l3_bytes;
  VOLLEY_ASSIGN_OR_RETURN(
      Arena arena, Arena::create(std::max(arena_bytes, 2 * static_cast<uint64_t>(largest_call))));
  // The bandwidth is measured on other memory: a kernel may have left parts of its own in the L3.
  VOLLEY_ASSIGN_OR_RETURN(
      const Arena read_only,
      Arena::create(std::max(arena_bytes, machine.cores.size() * machine.l2_bytes)));
  for (const auto& one : cases) one->prepare(arena);

  const double min_time = 1e-3 * options.min_time_ms;
  KernelReport report{.machine = std::move(machine),
                      .date = utc_date(),
                      .isa = kernels->name,
                      .min_time_seconds = min_time,
                      .rotation_bytes = arena.bytes().size(),
                      .limits = {},
                      .results = {}};
  for (const uint32_t threads : options.threads) {
    VOLLEY_ASSIGN_OR_RETURN(const auto pinned,
                            PinnedPool::create(std::span(report.machine.cores).first(threads)));
    ThreadPool& pool = pinned->pool();
    progress(fmt::format("threads {}: limits", threads));
    ThreadLimits limits;
    limits.threads = threads;
    MemoryReader reader(pool, read_only.bytes());
    limits.start =
        measure_limits(pool, reader, read_only.bytes(), report.machine, kLimitTimes * min_time);

    const Runner runner(*kernels, arena, pool, min_time);
    std::vector<uint64_t> calls;
    const size_t first = report.results.size();
    for (const auto& one : cases) {
      progress(fmt::format("threads {}: warm-up, {}", threads, one->name()));
      calls.push_back(runner.calls_for(*one));
      report.results.push_back({.kernel = one->kernel(),
                                .shape = one->shape(),
                                .rows = one->rows(),
                                .threads = threads,
                                .cost = one->cost(),
                                .seconds = {},
                                .neighbour_gbps = {}});
    }
    // Interleaved, so that a noisy moment of the machine costs each case one repetition at most.
    std::vector<double> looks;
    for (uint32_t repetition = 0; repetition < options.repetitions; ++repetition) {
      progress(fmt::format("threads {}: repetition {} of {}", threads, repetition + 1,
                           options.repetitions));
      double before = reader.measure_briefly(kBriefBytes);
      for (size_t i = 0; i < cases.size(); ++i) {
        runner.time(*cases[i], 1);  // Brings code, inputs and outputs back into the caches.
        report.results[first + i].seconds.push_back(runner.time(*cases[i], calls[i]));
        const double after = reader.measure_briefly(kBriefBytes);
        report.results[first + i].neighbour_gbps.push_back(std::max(before, after));
        looks.push_back(after);
        before = after;
      }
    }
    limits.memory_gbps_between = quantile(looks, 0.5);
    progress(fmt::format("threads {}: limits again", threads));
    limits.end =
        measure_limits(pool, reader, read_only.bytes(), report.machine, kLimitTimes * min_time);
    report.limits.push_back(limits);
  }
  return report;
}

}  // namespace volley::bench
