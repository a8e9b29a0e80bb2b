#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "volley/base/e4m3.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {

void pack_e4m3(const PackE4m3Args& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.input.size()), [&](uint32_t row) {
    const void* input = args.input[row];
    auto* output = static_cast<uint8_t*>(args.output[row]);
    // Magnitudes compare like their bits, and whatever is not finite is above the rest.
    uint32_t largest = 0;
    for (uint32_t i = 0; i < args.width; ++i) {
      const float x = load_element(input, args.dtype, i);
      largest = std::max(largest, std::bit_cast<uint32_t>(x) & 0x7fffffffu);
    }
    const bool finite = largest < 0x7f800000u;
    const float scale = finite ? std::max(std::bit_cast<float>(largest) / kE4m3Max,
                                          std::numeric_limits<float>::min())
                               : std::numeric_limits<float>::quiet_NaN();
    const float inverse = 1.0f / scale;
    for (uint32_t i = 0; i < args.width; ++i) {
      output[i] = finite ? to_e4m3(load_element(input, args.dtype, i) * inverse).bits : 0;
    }
    const size_t scale_offset = args.row_bytes - sizeof scale;
    std::memset(output + args.width, 0, scale_offset - args.width);
    std::memcpy(output + scale_offset, &scale, sizeof scale);
  });
}

void unpack_e4m3(const UnpackE4m3Args& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.input.size()), [&](uint32_t row) {
    const auto* input = static_cast<const uint8_t*>(args.input[row]);
    float scale;
    std::memcpy(&scale, input + args.row_bytes - sizeof scale, sizeof scale);
    for (uint32_t i = 0; i < args.width; ++i) {
      store_element(args.output[row], args.dtype, i, to_f32(E4m3{input[i]}) * scale);
    }
  });
}

}  // namespace volley::kernels::reference
