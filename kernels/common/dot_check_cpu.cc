#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/common/dot_check_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include <bit>

#include "kernels/common/implementations.h"
#include "kernels/common/pair_sums-inl.h"
#include "volley/base/random.h"

#if HWY_TARGET == HWY_AVX3
VOLLEY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

bool dot_instruction_keeps_contract() {
  constexpr uint64_t kSeed = 1;
  constexpr int kRounds = 256;
  SplitMix64 random(kSeed);
  for (int round = 0; round < kRounds; ++round) {
    // From near cancellation to the denormals: exponents spread more with every fourth round.
    const uint64_t spread = uint64_t{1} << (round % 8);
    const uint64_t lowest = round % 4 == 3 ? 0 : 120;
    const auto bf16 = [&] {
      const uint64_t bits = random.next();
      return Bf16{static_cast<uint16_t>((bits & 0x8000) | ((lowest + (bits >> 20) % spread) << 7) |
                                        (bits & 0x7f))};
    };
    alignas(64) Bf16 x[32];
    alignas(64) Bf16 y[32];
    alignas(64) float sum[16];
    for (int i = 0; i < 32; ++i) {
      x[i] = bf16();
      y[i] = bf16();
    }
    // Sums are never denormal: every step flushes.
    for (float& value : sum) {
      const uint32_t exponent = static_cast<uint32_t>(1 + lowest + (random.next() >> 20) % spread);
      value =
          std::bit_cast<float>(static_cast<uint32_t>(random.next() & 0x807fffff) | exponent << 23);
    }
    float actual[16];
    store16(add_dot_pairs(load16(sum), load_dot_pairs(x), load_dot_pairs(y)), actual);
    for (int lane = 0; lane < 16; ++lane) {
      const float expected = add_pair(sum[lane], to_f32(x[2 * lane]), to_f32(x[2 * lane + 1]),
                                      to_f32(y[2 * lane]), to_f32(y[2 * lane + 1]));
      if (std::bit_cast<uint32_t>(expected) != std::bit_cast<uint32_t>(actual[lane])) return false;
    }
  }
  return true;
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
