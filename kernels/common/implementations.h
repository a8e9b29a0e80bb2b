#pragma once

// The functions behind CpuKernels. `reference` is the definition of correct; the other namespaces
// are those that Highway gives to the targets of `<op>_cpu.cc`. Pack and embed only move data:
// every table has the same function.

#include "kernels/cpu_kernels.h"

namespace volley::kernels {

void pack(const PackArgs& args, ThreadPool& pool);
void embed(const EmbedArgs& args, ThreadPool& pool);

namespace reference {
void rms_norm(const RmsNormArgs& args, ThreadPool& pool);
void rope_append(const RopeAppendArgs& args, ThreadPool& pool);
void gemm(const GemmArgs& args, ThreadPool& pool);
void attention(const AttentionArgs& args, ThreadPool& pool);
void router(const RouterArgs& args, ThreadPool& pool);
void grouped_ffn(const GroupedFfnArgs& args, ThreadPool& pool);
void combine(const CombineArgs& args, ThreadPool& pool);
void reduce(const ReduceArgs& args, ThreadPool& pool);
void pack_e4m3(const PackE4m3Args& args, ThreadPool& pool);
void unpack_e4m3(const UnpackE4m3Args& args, ThreadPool& pool);
SampledToken sample_token(std::span<const float> logits, const SamplingParams& params,
                          uint64_t position, SampleScratch& scratch);
}  // namespace reference

namespace N_AVX2 {
void rms_norm(const RmsNormArgs& args, ThreadPool& pool);
void rope_append(const RopeAppendArgs& args, ThreadPool& pool);
void gemm(const GemmArgs& args, ThreadPool& pool);
void attention(const AttentionArgs& args, ThreadPool& pool);
void router(const RouterArgs& args, ThreadPool& pool);
void grouped_ffn(const GroupedFfnArgs& args, ThreadPool& pool);
void combine(const CombineArgs& args, ThreadPool& pool);
void reduce(const ReduceArgs& args, ThreadPool& pool);
void pack_e4m3(const PackE4m3Args& args, ThreadPool& pool);
void unpack_e4m3(const UnpackE4m3Args& args, ThreadPool& pool);
SampledToken sample_token(std::span<const float> logits, const SamplingParams& params,
                          uint64_t position, SampleScratch& scratch);
}  // namespace N_AVX2

namespace N_AVX3 {
void rms_norm(const RmsNormArgs& args, ThreadPool& pool);
void rope_append(const RopeAppendArgs& args, ThreadPool& pool);
void gemm(const GemmArgs& args, ThreadPool& pool);
void attention(const AttentionArgs& args, ThreadPool& pool);
void router(const RouterArgs& args, ThreadPool& pool);
void grouped_ffn(const GroupedFfnArgs& args, ThreadPool& pool);
void combine(const CombineArgs& args, ThreadPool& pool);
void reduce(const ReduceArgs& args, ThreadPool& pool);
void pack_e4m3(const PackE4m3Args& args, ThreadPool& pool);
void unpack_e4m3(const UnpackE4m3Args& args, ThreadPool& pool);
SampledToken sample_token(std::span<const float> logits, const SamplingParams& params,
                          uint64_t position, SampleScratch& scratch);
// By VDPBF16PS where the dtype is bf16; the caller has checked that the processor has it.
void gemm_dot(const GemmArgs& args, ThreadPool& pool);
void attention_dot(const AttentionArgs& args, ThreadPool& pool);
void grouped_ffn_dot(const GroupedFfnArgs& args, ThreadPool& pool);
/// Whether this processor's VDPBF16PS rounds like fma_flushed (math.h), tried on seeded numbers.
/// The manuals say so, and AMD's Zen 4 does; a processor that differs must not break equal bits.
bool dot_instruction_keeps_contract();
}  // namespace N_AVX3

}  // namespace volley::kernels
