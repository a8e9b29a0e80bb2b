#pragma once

// The instruction sets that `<op>_cpu.cc` is compiled for. Included before any header of Highway.
//
// Only sets with a true fused multiply-add can keep the numerics contracts: on SSE, and on the
// targets that Highway emulates, MulAdd rounds twice. What the x86-64 baseline leaves as static
// target (an emulated one) compiles to nothing, see vector-inl.h. Other processors run the
// reference.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_NEON | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)

#include <hwy/targets.h>
