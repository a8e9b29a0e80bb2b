// Goal: times are judged against the right limit, and table and JSON say what was measured.
// Method: limits, costs and times made up so that every figure is known.

#include "volley/bench/kernel_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "volley/bench/statistics.h"

namespace volley::bench {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr Limits kLimits{.memory_gbps = 20,
                         .cache_gbps = 100,
                         .bf16_dot_gflops = 200,
                         .fma512_gflops = 100,
                         .fma256_gflops = 80,
                         .portable_gflops = 40};

TEST(KernelReport, ThePeakIsThatOfTheInstructionSet) {
  EXPECT_EQ(peak_gflops(kLimits, "avx512_bf16"), 200);
  EXPECT_EQ(peak_gflops(kLimits, "avx512"), 100);
  EXPECT_EQ(peak_gflops(kLimits, "avx2"), 80);
  EXPECT_EQ(peak_gflops(kLimits, "reference"), 40);
}

TEST(KernelReport, TheLargestTimeBinds) {
  const KernelCost memory{.memory_bytes = 20e6, .total_bytes = 21e6, .flops = 40e6};
  EXPECT_EQ(binding_limit(memory, kLimits, "avx512").bound, Bound::kMemory);
  EXPECT_DOUBLE_EQ(binding_limit(memory, kLimits, "avx512").seconds, 1e-3);
  const KernelCost compute{.memory_bytes = 20e6, .total_bytes = 21e6, .flops = 300e6};
  EXPECT_EQ(binding_limit(compute, kLimits, "avx512_bf16").bound, Bound::kCompute);
  EXPECT_DOUBLE_EQ(binding_limit(compute, kLimits, "avx512_bf16").seconds, 1.5e-3);
  EXPECT_DOUBLE_EQ(binding_limit(compute, kLimits, "avx512").seconds, 3e-3);
  const KernelCost cache{.memory_bytes = 0, .total_bytes = 1e6, .flops = 0.5e6};
  EXPECT_EQ(binding_limit(cache, kLimits, "avx512").bound, Bound::kCache);
  EXPECT_DOUBLE_EQ(binding_limit(cache, kLimits, "avx512").seconds, 1e-5);
}

TEST(KernelReport, ALimitThatTheProcessorLacksDoesNotBind) {
  const KernelCost cost{.memory_bytes = 20e6, .total_bytes = 20e6, .flops = 1e12};
  EXPECT_EQ(binding_limit(cost, {.memory_gbps = 20}, "avx512_bf16").bound, Bound::kMemory);
}

TEST(KernelReport, TheLargerLimitIsUsedFieldByField) {
  const Limits a{.memory_gbps = 1, .cache_gbps = 6, .bf16_dot_gflops = 3};
  const Limits b{.memory_gbps = 2, .cache_gbps = 5, .portable_gflops = 4};
  EXPECT_EQ(
      larger_of(a, b),
      (Limits{.memory_gbps = 2, .cache_gbps = 6, .bf16_dot_gflops = 3, .portable_gflops = 4}));
}

TEST(KernelReport, QuantilesAreValuesThatWereMeasured) {
  std::vector<double> values = {5, 1, 4, 2, 3};
  EXPECT_EQ(quantile(values, 0), 1);
  EXPECT_EQ(quantile(values, 0.5), 3);
  EXPECT_EQ(quantile(values, 0.61), 4);
  EXPECT_EQ(quantile(values, 1), 5);
  std::vector<double> one = {7};
  EXPECT_EQ(quantile(one, 0.999), 7);
}

KernelReport example() {
  const KernelCost weights{.memory_bytes = 20e6, .total_bytes = 24e6, .flops = 40e6};
  KernelReport report{.machine = {.cpu_name = "Model \"X\"",
                                  .cores = {0, 1},
                                  .l2_bytes = 1 << 20,
                                  .l3_bytes = 32 << 20},
                      .date = "2026-01-02T03:04:05Z",
                      .isa = "avx512",
                      .min_time_seconds = 0.03,
                      .rotation_bytes = 256 << 20,
                      .limits = {},
                      .results = {}};
  ThreadLimits limits;
  limits.threads = 2;
  limits.start = kLimits;
  limits.start.memory_gbps = 15;
  limits.memory_gbps_between = 18;
  limits.end = kLimits;
  report.limits.push_back(limits);
  report.results.push_back({.kernel = "gemm",
                            .shape = "square 9x9",
                            .rows = 1,
                            .threads = 2,
                            .cost = weights,
                            .seconds = {4e-3, 1.25e-3, 2e-3},
                            .neighbour_gbps = {10, 20, 20}});
  report.results.push_back({.kernel = "copy",
                            .shape = "9",
                            .rows = 64,
                            .threads = 2,
                            .cost = {.total_bytes = 1e6},
                            .seconds = {2e-5},
                            .neighbour_gbps = {20}});
  return report;
}

TEST(KernelReport, APairedShareUsesTheBandwidthOfItsMoment) {
  // 20 MB at 10 GB/s are 2 ms of 4, at 20 GB/s 1 ms of 1.25 and of 2.
  EXPECT_DOUBLE_EQ(example().results[0].paired_memory_share(), 0.5);
  EXPECT_DOUBLE_EQ(example().results[1].paired_memory_share(), 0);
}

TEST(KernelReport, TheTableHoldsLimitsTimesAndShares) {
  const std::string table = format_kernel_report(example());
  EXPECT_THAT(table, HasSubstr("Model \"X\", 2 cores, L2 1024 KiB, L3 32 MiB"));
  EXPECT_THAT(table, ContainsRegex("memory read, GB/s +2 +15.0 +18.0 +20.0 +20.0\n"));
  EXPECT_THAT(table, HasSubstr("256 MiB, 8.0 times the L3"));
  EXPECT_THAT(table, ContainsRegex("gemm +square 9x9 +memory +memory +1 +2 +2000 +1250 +19.2 +32.0 "
                                   "+80% +50% +50%\n"));
  EXPECT_THAT(table, ContainsRegex("copy +9 +cache +cache +64 +2 +20.0 +20.0 +50.0 +- +50% +50% "
                                   "+-\n"));
}

TEST(KernelReport, ALimitThatTheProcessorLacksIsNotListed) {
  KernelReport report = example();
  report.limits[0].start.bf16_dot_gflops = report.limits[0].end.bf16_dot_gflops = 0;
  EXPECT_THAT(format_kernel_report(report), Not(HasSubstr("VDPBF16PS")));
}

TEST(KernelReport, TheJsonHoldsTheSame) {
  const auto json = nlohmann::json::parse(kernel_report_json(example()));
  EXPECT_EQ(json["cpu"], "Model \"X\"");
  EXPECT_EQ(json["cores"], 2);
  EXPECT_EQ(json["date"], "2026-01-02T03:04:05Z");
  EXPECT_EQ(json["limits"][0]["used"]["memory_gbps"], 20);
  EXPECT_EQ(json["limits"][0]["start"]["memory_gbps"], 15);
  EXPECT_EQ(json["limits"][0]["memory_gbps_between"], 18);
  const auto& gemm = json["results"][0];
  EXPECT_EQ(gemm["shape"], "square 9x9");
  EXPECT_EQ(gemm["seconds"].size(), 3u);
  EXPECT_DOUBLE_EQ(gemm["best_seconds"], 1.25e-3);
  EXPECT_DOUBLE_EQ(gemm["median_seconds"], 2e-3);
  EXPECT_DOUBLE_EQ(gemm["share_best"], 0.8);
  EXPECT_DOUBLE_EQ(gemm["gbps"], 19.2);
  EXPECT_EQ(gemm["bound"], "memory");
}

}  // namespace
}  // namespace volley::bench
