// The peak of each instruction set, by loops that do nothing but the instruction: operands and
// accumulators stay in registers, and there are more independent accumulators than the latency
// times the throughput of any processor so far (5 cycles x 2 per cycle) needs.

#include "arithmetic_peak.h"

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "volley/base/clock.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace volley::bench {
namespace {

/// What the loops computed: stored, so that they cannot be left out.
std::atomic<float> sink;

/// Keeps a value in a register and hides it from the optimiser, which could otherwise combine the
/// steps.
#define VOLLEY_OPAQUE(value) __asm__ volatile("" : "+v"(value))

struct Peak {
  void (*loop)(uint32_t steps);
  double flops_per_step;
  bool available;
  double Limits::*field;
};

#if defined(__x86_64__)

constexpr size_t kAccumulators512 = 24;  // Of 32 registers.
constexpr size_t kAccumulators256 = 12;  // Of 16.

__attribute__((target("avx512f,avx512bf16"))) void bf16_dot_loop(uint32_t steps) {
  __m512 acc[kAccumulators512];
#pragma GCC unroll 24
  for (__m512& one : acc) one = _mm512_setzero_ps();
  // Two bf16 of 2^-7 in each lane: the sums stay far from subnormal and from infinite numbers.
  __m512i bits = _mm512_set1_epi32(0x3c003c00);
  VOLLEY_OPAQUE(bits);
  const auto operand = reinterpret_cast<__m512bh&>(bits);
  for (uint32_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (__m512& one : acc) {
      one = _mm512_dpbf16_ps(one, operand, operand);
      VOLLEY_OPAQUE(one);
    }
  }
#pragma GCC unroll 24
  for (size_t i = 1; i < kAccumulators512; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  sink.store(_mm512_cvtss_f32(acc[0]), std::memory_order_relaxed);
}

__attribute__((target("avx512f"))) void fma512_loop(uint32_t steps) {
  __m512 acc[kAccumulators512];
#pragma GCC unroll 24
  for (__m512& one : acc) one = _mm512_setzero_ps();
  __m512 operand = _mm512_set1_ps(0x1p-7f);
  VOLLEY_OPAQUE(operand);
  for (uint32_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (__m512& one : acc) {
      one = _mm512_fmadd_ps(operand, operand, one);
      VOLLEY_OPAQUE(one);
    }
  }
#pragma GCC unroll 24
  for (size_t i = 1; i < kAccumulators512; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  sink.store(_mm512_cvtss_f32(acc[0]), std::memory_order_relaxed);
}

__attribute__((target("avx2,fma"))) void fma256_loop(uint32_t steps) {
  __m256 acc[kAccumulators256];
#pragma GCC unroll 12
  for (__m256& one : acc) one = _mm256_setzero_ps();
  __m256 operand = _mm256_set1_ps(0x1p-7f);
  VOLLEY_OPAQUE(operand);
  for (uint32_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (__m256& one : acc) {
      one = _mm256_fmadd_ps(operand, operand, one);
      VOLLEY_OPAQUE(one);
    }
  }
#pragma GCC unroll 12
  for (size_t i = 1; i < kAccumulators256; ++i) acc[0] = _mm256_add_ps(acc[0], acc[i]);
  sink.store(_mm256_cvtss_f32(acc[0]), std::memory_order_relaxed);
}

#endif

constexpr size_t kPortableLanes = 48;

/// Left to the compiler, which vectorises it for the build's baseline.
void portable_loop(uint32_t steps) {
  float acc[kPortableLanes];
  for (size_t i = 0; i < kPortableLanes; ++i) acc[i] = static_cast<float>(i);
  const float factor = 0x1.fffffep-1f;
  for (uint32_t step = 0; step < steps; ++step) {
    for (float& one : acc) one = one * factor + 0x1p-7f;
  }
  float sum = 0;
  for (const float one : acc) sum += one;
  sink.store(sum, std::memory_order_relaxed);
}

/// Steps of a tile: about 0.1 ms.
constexpr uint32_t kSteps = 10'000;
constexpr uint32_t kTilesPerThread = 16;

double measure(const Peak& peak, ThreadPool& pool, double seconds) {
  // More tiles than threads: a thread that loses its core for a moment costs one tile.
  const uint32_t tiles = kTilesPerThread * pool.thread_count();
  const double flops = tiles * (kSteps * peak.flops_per_step);
  const Nanos end = monotonic_now() + static_cast<Nanos>(seconds * kSecond);
  double best = 0;
  Nanos now = monotonic_now();
  do {
    const Nanos start = now;
    pool.parallel_for(tiles, [&](uint32_t) { peak.loop(kSteps); });
    now = monotonic_now();
    best = std::max(best, flops / static_cast<double>(now - start));
  } while (now < end);
  return best;
}

}  // namespace

Limits measure_arithmetic(ThreadPool& pool, double seconds) {
  const Peak peaks[] = {
#if defined(__x86_64__)
    {bf16_dot_loop, 64.0 * kAccumulators512, __builtin_cpu_supports("avx512bf16") != 0,
     &Limits::bf16_dot_gflops},
    {fma512_loop, 32.0 * kAccumulators512, __builtin_cpu_supports("avx512f") != 0,
     &Limits::fma512_gflops},
    {fma256_loop, 16.0 * kAccumulators256,
     __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0,
     &Limits::fma256_gflops},
#endif
    {portable_loop, 2.0 * kPortableLanes, true, &Limits::portable_gflops},
  };
  Limits limits;
  for (const Peak& peak : peaks) {
    if (peak.available) limits.*peak.field = measure(peak, pool, seconds);
  }
  return limits;
}

}  // namespace volley::bench
