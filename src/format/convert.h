// One element at a time: 16-bit floats to f32 and back, rounding to nearest even.
//
// Layer: format. Exact in one direction, correctly rounded in the other; vectors convert in codec-inl.h.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "pagedkv/types.h"

namespace pagedkv::format {

constexpr float to_f32(bf16_t value) noexcept { return std::bit_cast<float>(std::uint32_t{value.bits} << 16); }

constexpr float to_f32(f16_t value) noexcept {
  const std::uint32_t sign = (value.bits & 0x8000U) << 16, magnitude = value.bits & 0x7FFFU;
  if (magnitude >= 0x7C00U) return std::bit_cast<float>(sign | 0x7F800000U | (magnitude & 0x3FFU) << 13);
  // Scaling by 2^112 moves the exponent from bias 15 to bias 127 and normalises subnormals.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
}

constexpr float to_f32(float value) noexcept { return value; }

constexpr bf16_t to_bf16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return {static_cast<std::uint16_t>(bits >> 16 | 0x40U)};  // quiet NaN
  return {static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16)};
}

constexpr f16_t to_f16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value), magnitude = bits & 0x7FFFFFFFU;
  const std::uint32_t sign = bits >> 16 & 0x8000U;
  if (magnitude > 0x7F800000U) return {static_cast<std::uint16_t>(sign | 0x7E00U)};
  if (magnitude >= 0x477FF000U) return {static_cast<std::uint16_t>(sign | 0x7C00U)};  // from 65520 on: infinity
  if (magnitude < 0x38800000U) {  // below 2^-14: adding 0.5 leaves the rounded subnormal in the low bits of the sum
    const float sum = std::bit_cast<float>(magnitude) + 0.5F;
    return {static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(sum) - 0x3F000000U))};
  }
  const std::uint32_t rounded = magnitude + 0xFFFU + (magnitude >> 13 & 1U);
  return {static_cast<std::uint16_t>(sign | (rounded - 0x38000000U) >> 13)};
}

/// Element `index` of an array of `dtype` at `base`, which need not be aligned.
inline float load_element(const void* base, std::size_t index, DType dtype) noexcept {
  const auto read = [&]<class T>(T value) {
    std::memcpy(&value, static_cast<const std::byte*>(base) + index * sizeof(T), sizeof(T));
    return to_f32(value);
  };
  if (dtype == DType::f32) return read(float{});
  return dtype == DType::f16 ? read(f16_t{}) : read(bf16_t{});
}

/// Rounds `value` into element `index` of an array of `dtype` at `base`.
inline void store_element(void* base, std::size_t index, DType dtype, float value) noexcept {
  const auto write = [&]<class T>(T element) {
    std::memcpy(static_cast<std::byte*>(base) + index * sizeof(T), &element, sizeof(T));
  };
  if (dtype == DType::f32) return write(value);
  return dtype == DType::f16 ? write(to_f16(value)) : write(to_bf16(value));
}

}  // namespace pagedkv::format
