#include <cmath>

#include "kernels/rope/rope.h"

namespace volley::kernels {

void rope_angles(std::span<const uint32_t> positions, std::span<const float> inverse_frequency,
                 float* cosine, float* sine) {
  for (const uint32_t position : positions) {
    for (const float frequency : inverse_frequency) {
      const double angle = static_cast<float>(position) * frequency;
      *cosine++ = static_cast<float>(std::cos(angle));
      *sine++ = static_cast<float>(std::sin(angle));
    }
  }
}

}  // namespace volley::kernels
