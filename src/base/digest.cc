#include "volley/base/digest.h"

#include <fmt/format.h>
#include <xxhash.h>

namespace volley {

uint64_t digest64(std::span<const std::byte> bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

std::string to_hex(uint64_t value) {
  return fmt::format("{:016x}", value);
}

}  // namespace volley
