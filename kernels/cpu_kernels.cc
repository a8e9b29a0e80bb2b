#include "kernels/cpu_kernels.h"

#include "kernels/common/implementations.h"
#include "kernels/common/targets.h"

namespace volley::kernels {
namespace {

constexpr CpuKernels kReference = {
    .name = "reference",
    .rms_norm = reference::rms_norm,
    .rope_append = reference::rope_append,
    .gemm = reference::gemm,
    .attention = reference::attention,
    .router = reference::router,
    .pack = pack,
    .pack_e4m3 = reference::pack_e4m3,
    .unpack_e4m3 = reference::unpack_e4m3,
    .grouped_ffn = reference::grouped_ffn,
    .combine = reference::combine,
    .reduce = reference::reduce,
    .embed = embed,
    .sample_token = reference::sample_token,
};

#if HWY_TARGETS & HWY_AVX2
constexpr CpuKernels kAvx2 = {
    .name = "avx2",
    .rms_norm = N_AVX2::rms_norm,
    .rope_append = N_AVX2::rope_append,
    .gemm = N_AVX2::gemm,
    .attention = N_AVX2::attention,
    .router = N_AVX2::router,
    .pack = pack,
    .pack_e4m3 = N_AVX2::pack_e4m3,
    .unpack_e4m3 = N_AVX2::unpack_e4m3,
    .grouped_ffn = N_AVX2::grouped_ffn,
    .combine = N_AVX2::combine,
    .reduce = N_AVX2::reduce,
    .embed = embed,
    .sample_token = N_AVX2::sample_token,
};
#endif

#if HWY_TARGETS & HWY_AVX3
constexpr CpuKernels kAvx512 = {
    .name = "avx512",
    .rms_norm = N_AVX3::rms_norm,
    .rope_append = N_AVX3::rope_append,
    .gemm = N_AVX3::gemm,
    .attention = N_AVX3::attention,
    .router = N_AVX3::router,
    .pack = pack,
    .pack_e4m3 = N_AVX3::pack_e4m3,
    .unpack_e4m3 = N_AVX3::unpack_e4m3,
    .grouped_ffn = N_AVX3::grouped_ffn,
    .combine = N_AVX3::combine,
    .reduce = N_AVX3::reduce,
    .embed = embed,
    .sample_token = N_AVX3::sample_token,
};
#endif

#if HWY_TARGETS & HWY_AVX3
constexpr CpuKernels kAvx512Bf16 = {
    .name = "avx512_bf16",
    .rms_norm = N_AVX3::rms_norm,
    .rope_append = N_AVX3::rope_append,
    .gemm = N_AVX3::gemm_dot,
    .attention = N_AVX3::attention_dot,
    .router = N_AVX3::router,
    .pack = pack,
    .pack_e4m3 = N_AVX3::pack_e4m3,
    .unpack_e4m3 = N_AVX3::unpack_e4m3,
    .grouped_ffn = N_AVX3::grouped_ffn_dot,
    .combine = N_AVX3::combine,
    .reduce = N_AVX3::reduce,
    .embed = embed,
    .sample_token = N_AVX3::sample_token,
};

bool has_exact_bf16_dot() {
  static const bool has =
      __builtin_cpu_supports("avx512bf16") != 0 && N_AVX3::dot_instruction_keeps_contract();
  return has;
}
#endif

struct Candidate {
  const CpuKernels* kernels;
  bool available;
};

}  // namespace

Result<const CpuKernels*> select_cpu_kernels(const std::string& isa) {
  [[maybe_unused]] const int64_t supported = hwy::SupportedTargets();
  // Best first. The reference is always available, so "auto" always finds one.
  const Candidate candidates[] = {
#if HWY_TARGETS & HWY_AVX3
    {&kAvx512Bf16, (supported & HWY_AVX3) != 0 && has_exact_bf16_dot()},
    {&kAvx512, (supported & HWY_AVX3) != 0},
#endif
#if HWY_TARGETS & HWY_AVX2
    {&kAvx2, (supported & HWY_AVX2) != 0},
#endif
    {&kReference, true},
  };
  for (const auto& [kernels, available] : candidates) {
    if (isa == kernels->name && !available) {
      return failed_precondition("this processor lacks the instruction set '{}'", isa);
    }
    if (available && (isa == "auto" || isa == kernels->name)) return kernels;
  }
  if (isa == "avx2" || isa == "avx512" || isa == "avx512_bf16") {
    return failed_precondition("this build has no kernels for the instruction set '{}'", isa);
  }
  return invalid_argument(
      "unknown instruction set '{}': it must be auto, reference, avx2, avx512 or avx512_bf16", isa);
}

}  // namespace volley::kernels
