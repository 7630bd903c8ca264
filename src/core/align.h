// Arithmetic on sizes that cannot overflow in silence.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pagedkv {

inline constexpr std::size_t kCacheLineBytes = 64;

/// Rounds up to a multiple; `multiple` is a power of two.
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) noexcept {
  return (value + multiple - 1) & ~(multiple - 1);
}
constexpr std::uint64_t ceil_div(std::uint64_t value, std::uint64_t divisor) noexcept {
  return value / divisor + (value % divisor != 0 ? 1 : 0);
}
/// a * b, or false on overflow.
[[nodiscard]] inline bool checked_mul(std::uint64_t a, std::uint64_t b, std::uint64_t& product) noexcept {
  return !__builtin_mul_overflow(a, b, &product);
}
[[nodiscard]] inline bool checked_add(std::uint64_t a, std::uint64_t b, std::uint64_t& sum) noexcept {
  return !__builtin_add_overflow(a, b, &sum);
}

}  // namespace pagedkv
