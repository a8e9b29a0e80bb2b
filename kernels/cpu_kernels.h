#pragma once

#include <string>

#include "kernels/attention/attention.h"
#include "kernels/combine/combine.h"
#include "kernels/embed/embed.h"
#include "kernels/gemm/gemm.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/pack/pack.h"
#include "kernels/reduce/reduce.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/router/router.h"
#include "kernels/sample/sample.h"
#include "volley/base/status.h"

namespace volley {
class ThreadPool;
}

namespace volley::kernels {

/// The kernels of the CPU backend for one instruction set. All sets give the same bits: the
/// numerics contracts fix every lane and every order (each `<op>.h` states its own), so a cluster
/// may mix them. Only which NaN an operation returns is left open. Every function may be called by
/// one thread at a time per pool, and allocates nothing; sample.h states its own rules.
struct CpuKernels {
  const char* name;  ///< "reference", "avx2", "avx512" or "avx512_bf16".
  void (*rms_norm)(const RmsNormArgs&, ThreadPool&);
  void (*rope_append)(const RopeAppendArgs&, ThreadPool&);
  void (*gemm)(const GemmArgs&, ThreadPool&);
  void (*attention)(const AttentionArgs&, ThreadPool&);
  void (*router)(const RouterArgs&, ThreadPool&);
  void (*pack)(const PackArgs&, ThreadPool&);
  void (*pack_e4m3)(const PackE4m3Args&, ThreadPool&);
  void (*unpack_e4m3)(const UnpackE4m3Args&, ThreadPool&);
  void (*grouped_ffn)(const GroupedFfnArgs&, ThreadPool&);
  void (*combine)(const CombineArgs&, ThreadPool&);
  void (*reduce)(const ReduceArgs&, ThreadPool&);
  void (*embed)(const EmbedArgs&, ThreadPool&);
  SampleFunction sample_token;  ///< One row; the caller spreads rows over threads.
};

/// `isa` is "auto" (the best this processor has), "reference", "avx2", "avx512" or "avx512_bf16"
/// (its bf16 products by VDPBF16PS: twice the speed, the same bits). Errors: kInvalidArgument
/// (unknown name), kFailedPrecondition (the processor lacks it, or its bf16 instruction rounds
/// differently).
Result<const CpuKernels*> select_cpu_kernels(const std::string& isa);

}  // namespace volley::kernels
