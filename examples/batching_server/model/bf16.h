// bf16, the upper half of an f32, to and from it.
#pragma once

#include <bit>
#include <cstdint>

namespace serving {

/// To nearest, ties to even. A NaN need not stay one.
inline std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}
inline float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

}  // namespace serving
