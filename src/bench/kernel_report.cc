#include "volley/bench/kernel_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "table.h"
#include "volley/base/check.h"
#include "volley/bench/statistics.h"

namespace volley::bench {
namespace {

constexpr double kGiga = 1e9;
constexpr double kMicro = 1e-6;

struct LimitRow {
  const char* name;
  const char* json_name;
  double Limits::*field;
};

constexpr LimitRow kLimitRows[] = {
    {"memory read, GB/s", "memory_gbps", &Limits::memory_gbps},
    {"L2 read, GB/s", "cache_gbps", &Limits::cache_gbps},
    {"bf16 dot (VDPBF16PS), GFLOP/s", "bf16_dot_gflops", &Limits::bf16_dot_gflops},
    {"f32 FMA 512 bit, GFLOP/s", "fma512_gflops", &Limits::fma512_gflops},
    {"f32 FMA 256 bit, GFLOP/s", "fma256_gflops", &Limits::fma256_gflops},
    {"f32 portable, GFLOP/s", "portable_gflops", &Limits::portable_gflops},
};

Limits limits_for(const KernelReport& report, uint32_t threads) {
  const auto found = std::find_if(report.limits.begin(), report.limits.end(),
                                  [&](const ThreadLimits& one) { return one.threads == threads; });
  VOLLEY_CHECK(found != report.limits.end());
  return found->best();
}

std::string format_limits(const KernelReport& report) {
  std::vector<std::vector<std::string>> rows = {
      {"LIMIT", "THREADS", "START", "BETWEEN", "END", "USED"}};
  for (const ThreadLimits& limits : report.limits) {
    for (const LimitRow& row : kLimitRows) {
      const double used = limits.best().*row.field;
      if (used == 0) continue;
      rows.push_back(
          {row.name, std::to_string(limits.threads), three_digits(limits.start.*row.field),
           row.field == &Limits::memory_gbps ? three_digits(limits.memory_gbps_between) : "-",
           three_digits(limits.end.*row.field), three_digits(used)});
    }
  }
  return format_table(rows, 1);
}

nlohmann::json limits_json(const Limits& limits) {
  nlohmann::json json;
  for (const LimitRow& row : kLimitRows) json[row.json_name] = limits.*row.field;
  return json;
}

nlohmann::json result_json(const KernelReport& report, const KernelResult& result) {
  const BindingLimit limit =
      binding_limit(result.cost, limits_for(report, result.threads), report.isa);
  const double best = result.best_seconds();
  const double median = result.median_seconds();
  return {{"kernel", result.kernel},
          {"shape", result.shape},
          {"rows", result.rows},
          {"threads", result.threads},
          {"data", result.cost.memory_bytes > 0 ? "memory" : "cache"},
          {"memory_bytes", result.cost.memory_bytes},
          {"total_bytes", result.cost.total_bytes},
          {"flops", result.cost.flops},
          {"seconds", result.seconds},
          {"neighbour_gbps", result.neighbour_gbps},
          {"best_seconds", best},
          {"median_seconds", median},
          {"gbps", result.cost.total_bytes / best / kGiga},
          {"gflops", result.cost.flops / best / kGiga},
          {"bound", bound_name(limit.bound)},
          {"limit_seconds", limit.seconds},
          {"share_best", limit.seconds / best},
          {"share_median", limit.seconds / median},
          {"paired_memory_share", result.paired_memory_share()}};
}

}  // namespace

Limits larger_of(const Limits& a, const Limits& b) {
  Limits larger;
  for (const LimitRow& row : kLimitRows) {
    larger.*row.field = std::max(a.*row.field, b.*row.field);
  }
  return larger;
}

double peak_gflops(const Limits& limits, const std::string& isa) {
  if (isa == "avx512_bf16") return limits.bf16_dot_gflops;
  if (isa == "avx512") return limits.fma512_gflops;
  if (isa == "avx2") return limits.fma256_gflops;
  return limits.portable_gflops;
}

const char* bound_name(Bound bound) {
  switch (bound) {
    case Bound::kMemory:
      return "memory";
    case Bound::kCache:
      return "cache";
    case Bound::kCompute:
      return "compute";
  }
  return "unknown";
}

BindingLimit binding_limit(const KernelCost& cost, const Limits& limits, const std::string& isa) {
  BindingLimit binding;
  const auto consider = [&](Bound bound, double amount, double giga_per_second) {
    if (amount <= 0 || giga_per_second <= 0) return;
    const double seconds = amount / (giga_per_second * kGiga);
    if (seconds > binding.seconds) binding = {.bound = bound, .seconds = seconds};
  };
  consider(Bound::kMemory, cost.memory_bytes, limits.memory_gbps);
  consider(Bound::kCache, cost.total_bytes, limits.cache_gbps);
  consider(Bound::kCompute, cost.flops, peak_gflops(limits, isa));
  return binding;
}

double KernelResult::best_seconds() const {
  VOLLEY_CHECK(!seconds.empty());
  return *std::min_element(seconds.begin(), seconds.end());
}

double KernelResult::median_seconds() const {
  std::vector<double> sorted = seconds;
  return quantile(sorted, 0.5);
}

double KernelResult::paired_memory_share() const {
  VOLLEY_CHECK(!seconds.empty() && seconds.size() == neighbour_gbps.size());
  std::vector<double> shares;
  for (size_t i = 0; i < seconds.size(); ++i) {
    shares.push_back(cost.memory_bytes / (neighbour_gbps[i] * kGiga) / seconds[i]);
  }
  return quantile(shares, 0.5);
}

std::string format_kernel_report(const KernelReport& report) {
  std::string out = fmt::format(
      "{}, {} cores, L2 {} KiB, L3 {} MiB, {}\nkernels: {}; repetitions of {:.0f} ms\n\n",
      report.machine.cpu_name, report.machine.cores.size(), report.machine.l2_bytes >> 10,
      report.machine.l3_bytes >> 20, report.date, report.isa, 1e3 * report.min_time_seconds);
  out += format_limits(report);
  out += fmt::format(
      "\nThe limits were measured before and after the kernels; the larger is used. BETWEEN: the "
      "median "
      "of looks between\nrepetitions. DATA memory: weights and KV rotate through {} MiB, {:.1f} "
      "times "
      "the L3, and come from memory; cache:\neverything stays in the caches. PAIRED SHARE is held "
      "against the bandwidth right before and after each repetition.\n\n",
      report.rotation_bytes >> 20,
      static_cast<double>(report.rotation_bytes) / static_cast<double>(report.machine.l3_bytes));

  std::vector<std::vector<std::string>> rows = {
      {"KERNEL", "SHAPE", "DATA", "BOUND", "ROWS", "THREADS", "MEDIAN us", "BEST us", "GB/s",
       "GFLOP/s", "SHARE", "MEDIAN SHARE", "PAIRED SHARE"}};
  for (const KernelResult& result : report.results) {
    const BindingLimit limit =
        binding_limit(result.cost, limits_for(report, result.threads), report.isa);
    const double best = result.best_seconds();
    const double median = result.median_seconds();
    rows.push_back({result.kernel, result.shape, result.cost.memory_bytes > 0 ? "memory" : "cache",
                    bound_name(limit.bound), std::to_string(result.rows),
                    std::to_string(result.threads), three_digits(median / kMicro),
                    three_digits(best / kMicro),
                    three_digits(result.cost.total_bytes / best / kGiga),
                    result.cost.flops > 0 ? three_digits(result.cost.flops / best / kGiga) : "-",
                    percent(limit.seconds / best), percent(limit.seconds / median),
                    limit.bound == Bound::kMemory ? percent(result.paired_memory_share()) : "-"});
  }
  return out + format_table(rows, 4);
}

std::string kernel_report_json(const KernelReport& report) {
  nlohmann::json json = {
      {"bench", "kernels"},
      {"date", report.date},
      {"cpu", report.machine.cpu_name},
      {"cores", report.machine.cores.size()},
      {"l2_bytes", report.machine.l2_bytes},
      {"l3_bytes", report.machine.l3_bytes},
      {"isa", report.isa},
      {"min_time_seconds", report.min_time_seconds},
      {"rotation_bytes", report.rotation_bytes},
      {"limits", nlohmann::json::array()},
      {"results", nlohmann::json::array()},
  };
  for (const ThreadLimits& limits : report.limits) {
    json["limits"].push_back({{"threads", limits.threads},
                              {"start", limits_json(limits.start)},
                              {"memory_gbps_between", limits.memory_gbps_between},
                              {"end", limits_json(limits.end)},
                              {"used", limits_json(limits.best())}});
  }
  for (const KernelResult& result : report.results) {
    json["results"].push_back(result_json(report, result));
  }
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace volley::bench
