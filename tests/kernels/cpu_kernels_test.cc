// Goal: instruction sets are chosen by name, and a wrong name is an error that says so.
// Method: every name once; which sets this processor has is asked of the compiler's own detection.

#include "kernel_testing.h"

namespace volley::kernels::testing {
namespace {

TEST(SelectCpuKernels, FindsWhatTheProcessorHas) {
  EXPECT_STREQ((*select_cpu_kernels("reference"))->name, "reference");
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  EXPECT_EQ(select_cpu_kernels("avx2").ok(), has_avx2);
  EXPECT_EQ(select_cpu_kernels("avx512").ok(), has_avx512);
  // Every processor known to have the instruction rounds as the contract says.
  const bool has_dot = has_avx512 && __builtin_cpu_supports("avx512bf16");
  EXPECT_EQ(select_cpu_kernels("avx512_bf16").ok(), has_dot);
  EXPECT_STREQ((*select_cpu_kernels("auto"))->name, has_dot      ? "avx512_bf16"
                                                    : has_avx512 ? "avx512"
                                                    : has_avx2   ? "avx2"
                                                                 : "reference");
#else
  EXPECT_STREQ((*select_cpu_kernels("auto"))->name, "reference");
  EXPECT_EQ(select_cpu_kernels("avx2").status().code(), StatusCode::kFailedPrecondition);
#endif
}

TEST(SelectCpuKernels, RefusesUnknownNames) {
  for (const char* name : {"", "sse4", "AVX2", "avx512 "}) {
    const auto result = select_cpu_kernels(name);
    ASSERT_EQ(result.status().code(), StatusCode::kInvalidArgument) << name;
    EXPECT_NE(message_of(result.status()).find(fmt::format("'{}'", name)), std::string::npos);
  }
}

}  // namespace
}  // namespace volley::kernels::testing
