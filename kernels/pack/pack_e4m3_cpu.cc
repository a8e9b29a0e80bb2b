#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/pack/pack_e4m3_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "kernels/common/vector-inl.h"
#include "volley/base/e4m3.h"
#include "volley/base/thread_pool.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

using U8Tag = hn::Rebind<uint8_t, F32Tag>;

/// to_e4m3 of sixteen finite values.
HWY_INLINE void store_codes(F32x16 value, uint8_t* target) {
  const F32Tag f32;
  const I32Tag i32;
  const auto units = hn::Set(f32, 0x1p14f);
  for (size_t i = 0; i < kParts; ++i) {
    const auto bits = hn::BitCast(i32, value.part[i]);
    const auto magnitude = hn::And(bits, hn::Set(i32, 0x7fffffff));
    const auto sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(i32, 0x80));
    const auto odd = hn::And(hn::ShiftRight<20>(magnitude), hn::Set(i32, 1));
    const auto rounded = hn::Add(hn::Add(magnitude, hn::Set(i32, 0x7ffff)), odd);
    const auto normal = hn::Sub(hn::ShiftRight<20>(rounded), hn::Set(i32, 120 << 3));
    const auto small = hn::Sub(hn::BitCast(i32, hn::Add(hn::BitCast(f32, magnitude), units)),
                               hn::BitCast(i32, units));
    const auto is_small = hn::Lt(magnitude, hn::Set(i32, 0x3c800000));
    const auto code = hn::Min(hn::IfThenElse(is_small, small, normal), hn::Set(i32, 0x7e));
    hn::StoreU(hn::DemoteTo(U8Tag(), hn::Or(code, sign)), U8Tag(), target + i * kPartLanes);
  }
}

/// to_f32 of sixteen codes.
HWY_INLINE F32x16 load_codes(const uint8_t* source) {
  const F32Tag f32;
  const I32Tag i32;
  F32x16 result;
  for (size_t i = 0; i < kParts; ++i) {
    const auto code = hn::PromoteTo(i32, hn::LoadU(U8Tag(), source + i * kPartLanes));
    const auto magnitude = hn::And(code, hn::Set(i32, 0x7f));
    const auto sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(i32, 0x80)));
    const auto normal = hn::Add(hn::ShiftLeft<20>(magnitude), hn::Set(i32, 120 << 23));
    const auto small =
        hn::BitCast(i32, hn::Mul(hn::ConvertTo(f32, magnitude), hn::Set(f32, 0x1p-9f)));
    const auto finite = hn::IfThenElse(hn::Lt(magnitude, hn::Set(i32, 8)), small, normal);
    const auto bits =
        hn::IfThenElse(hn::Eq(magnitude, hn::Set(i32, 0x7f)), hn::Set(i32, 0x7fc00000), finite);
    result.part[i] = hn::BitCast(f32, hn::Or(bits, sign));
  }
  return result;
}

/// The largest of the lanes' magnitudes as bits.
HWY_INLINE uint32_t largest_magnitude(const F32x16& value) {
  uint32_t lane[16];
  std::memcpy(lane, &value, sizeof lane);
  return *std::max_element(lane, lane + 16);
}

template <class T>
void pack_e4m3_row(const PackE4m3Args& args, uint32_t row) {
  const T* input = static_cast<const T*>(args.input[row]);
  auto* output = static_cast<uint8_t*>(args.output[row]);
  const uint32_t whole = args.width / 16 * 16;
  const uint32_t rest = args.width - whole;
  const I32Tag i32;
  F32x16 largest = broadcast(0.0f);
  const auto note = [&](const F32x16& x) {
    for (size_t i = 0; i < kParts; ++i) {
      // As signed integers, without the sign, magnitudes compare like their bits.
      const auto magnitude = hn::And(hn::BitCast(i32, x.part[i]), hn::Set(i32, 0x7fffffff));
      largest.part[i] =
          hn::BitCast(F32Tag(), hn::Max(hn::BitCast(i32, largest.part[i]), magnitude));
    }
  };
  for (uint32_t i = 0; i < whole; i += 16) note(load16(input + i));
  if (rest != 0) note(load_first(input + whole, rest));
  const uint32_t amax = largest_magnitude(largest);
  const size_t scale_offset = args.row_bytes - sizeof(float);
  const bool finite = amax < 0x7f800000u;
  const float scale =
      finite ? std::max(std::bit_cast<float>(amax) / kE4m3Max, std::numeric_limits<float>::min())
             : std::numeric_limits<float>::quiet_NaN();
  if (finite) {
    const F32x16 inverse = broadcast(1.0f / scale);
    for (uint32_t i = 0; i < whole; i += 16) {
      store_codes(mul(load16(input + i), inverse), output + i);
    }
    if (rest != 0) {
      uint8_t codes[16];
      store_codes(mul(load_first(input + whole, rest), inverse), codes);
      std::memcpy(output + whole, codes, rest);
    }
  } else {
    std::memset(output, 0, args.width);
  }
  std::memset(output + args.width, 0, scale_offset - args.width);
  std::memcpy(output + scale_offset, &scale, sizeof scale);
}

template <class T>
void unpack_e4m3_row(const UnpackE4m3Args& args, uint32_t row) {
  const auto* input = static_cast<const uint8_t*>(args.input[row]);
  T* output = static_cast<T*>(args.output[row]);
  const uint32_t whole = args.width / 16 * 16;
  const uint32_t rest = args.width - whole;
  float scale;
  std::memcpy(&scale, input + args.row_bytes - sizeof scale, sizeof scale);
  const F32x16 factor = broadcast(scale);
  for (uint32_t i = 0; i < whole; i += 16) {
    store16(mul(load_codes(input + i), factor), output + i);
  }
  if (rest != 0) {
    uint8_t codes[16] = {};
    std::memcpy(codes, input + whole, rest);
    store_first(mul(load_codes(codes), factor), rest, output + whole);
  }
}

void pack_e4m3(const PackE4m3Args& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.input.size()), [&](uint32_t row) {
    args.dtype == DType::kF32 ? pack_e4m3_row<float>(args, row) : pack_e4m3_row<Bf16>(args, row);
  });
}

void unpack_e4m3(const UnpackE4m3Args& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.input.size()), [&](uint32_t row) {
    args.dtype == DType::kF32 ? unpack_e4m3_row<float>(args, row)
                              : unpack_e4m3_row<Bf16>(args, row);
  });
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
