#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace volley {

/// XXH3-64 of the bytes: the digest of logits rows, checkpoints and wire payloads.
/// It finds accidents; it is no signature.
uint64_t digest64(std::span<const std::byte> bytes, uint64_t seed = 0);

/// Sixteen lower-case hexadecimal digits.
std::string to_hex(uint64_t value);

}  // namespace volley
