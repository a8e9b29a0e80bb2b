// Goal: every kernel of the engine is among the cases, wrong options are refused with the value,
// and a short run measures. Method: names; bad options; one small case of one repetition (no time
// is asserted: the machine may be busy).

#include "volley/bench/kernel_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

namespace volley::bench {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

void silent(const std::string&) {}

TEST(KernelBench, CoversTheShapesOfTheModels) {
  const std::vector<std::string> names = kernel_case_names();
  EXPECT_EQ(std::set(names.begin(), names.end()).size(), names.size());
  for (const char* name :
       {"gemm/qkv 1536x1024/rows=1", "gemm/output 1024x1024/rows=16",
        "gemm/ffn_up 2048x1024/rows=64", "gemm/ffn_down 1024x2048/rows=512",
        "gemm/lm_head 32000x1024/rows=8", "grouped_ffn/8 experts 2048x1024, 16 rows each/rows=128",
        "grouped_ffn/32 experts 512x1024, 1 rows each/rows=32",
        "attention/decode at 1024, 16/4 heads of 64/rows=16",
        "attention/prefill, 16/4 heads of 128/rows=512", "rms_norm/1024/rows=64",
        "rope_append/16/4 heads of 128/rows=1", "router/top 2 of 8/rows=512",
        "combine/top 4, 1024/rows=64", "embed/32000x1024/rows=512"}) {
    EXPECT_THAT(names, Contains(name));
  }
}

struct Refusal {
  std::function<void(KernelBenchOptions&)> change;
  const char* words;
};

TEST(KernelBench, RefusesWrongOptionsWithTheValue) {
  const Refusal refusals[] = {
      {[](auto& options) { options.isa = std::string("mmx"); }, "'mmx'"},
      {[](auto& options) { options.threads = {}; }, "threads is empty"},
      {[](auto& options) {
         options.threads = {1, 0};
       },
       "threads is 0"},
      {[](auto& options) { options.threads = {1'000'000}; }, "threads is 1000000"},
      {[](auto& options) { options.filter = std::string("("); }, "filter '('"},
      {[](auto& options) { options.filter = std::string("no such kernel"); },
       "selects none of the"},
      {[](auto& options) { options.min_time_ms = 0; }, "min_time_ms is 0"},
      {[](auto& options) { options.repetitions = 0; }, "repetitions is 0"},
  };
  for (const Refusal& refusal : refusals) {
    KernelBenchOptions options;
    refusal.change(options);
    const Status status = run_kernel_bench(options, silent).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << refusal.words;
    EXPECT_THAT(message_of(status), HasSubstr(refusal.words));
  }
}

TEST(KernelBench, MeasuresWhatTheFilterSelects) {
  KernelBenchOptions options;
  options.filter = "^(router/top 2 of 8|gemm/output 1024x1024|attention/decode at 1024, 16.*64)/rows=1$";
  options.min_time_ms = 1;
  options.repetitions = 2;
  const auto report = run_kernel_bench(options, silent);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->results.size(), 3u);
  EXPECT_EQ(report->results[0].kernel, "gemm");
  EXPECT_EQ(report->results[1].kernel, "attention");
  EXPECT_EQ(report->results[2].kernel, "router");
  for (const KernelResult& result : report->results) {
    ASSERT_EQ(result.seconds.size(), 2u);
    ASSERT_EQ(result.neighbour_gbps.size(), 2u);
    EXPECT_GT(result.best_seconds(), 0);
    EXPECT_TRUE(std::isfinite(result.median_seconds()));
  }
  ASSERT_EQ(report->limits.size(), 1u);
  const Limits limits = report->limits[0].best();
  EXPECT_GT(limits.memory_gbps, 0);
  EXPECT_GT(limits.cache_gbps, 0);
  EXPECT_GT(limits.portable_gflops, 0);
  EXPECT_GE(report->rotation_bytes, 8 * report->machine.l3_bytes);
}

}  // namespace
}  // namespace volley::bench
