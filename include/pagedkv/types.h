// Ids, element types and array views that every other header speaks in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pagedkv/export.h"

namespace pagedkv {

/// One page of the pool. Signed and 32 bit wide, as the page tables of the field are; valid ids are 0..num_pages-1.
enum class PageId : std::int32_t {};
inline constexpr PageId kNullPage{-1};
constexpr std::int32_t to_index(PageId id) noexcept { return static_cast<std::int32_t>(id); }

/// One vocabulary entry. Only compared and hashed, never interpreted.
using Token = std::int32_t;

/// How one element of K, V, Q or the output is stored. Frozen values: the C ABI shares them.
enum class DType : std::uint8_t { f32 = 0, f16 = 1, bf16 = 2 };

constexpr bool is_valid(DType dtype) noexcept { return static_cast<std::uint8_t>(dtype) <= 2; }
/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) noexcept { return dtype == DType::f32 ? 4 : 2; }
/// "f32", "f16" or "bf16"; "?" if invalid. Static storage.
PAGEDKV_API const char* to_string(DType dtype) noexcept;

/// Storage of one 16-bit float, without arithmetic. Bits as IEEE 754 binary16 and bfloat16.
struct f16_t {
  std::uint16_t bits;
};
struct bf16_t {
  std::uint16_t bits;
};

template <class T>
inline constexpr bool is_element_v = false;
template <>
inline constexpr bool is_element_v<float> = true;
template <>
inline constexpr bool is_element_v<f16_t> = true;
template <>
inline constexpr bool is_element_v<bf16_t> = true;
template <class T>
  requires is_element_v<T>
inline constexpr DType dtype_of_v = DType::f32;
template <>
inline constexpr DType dtype_of_v<f16_t> = DType::f16;
template <>
inline constexpr DType dtype_of_v<bf16_t> = DType::bf16;

/// A dense row-major array of elements, borrowed. The function that takes it says the shape and checks the count.
struct ConstTensor {
  const void* data = nullptr;
  std::size_t num_elements = 0;
  DType dtype = DType::f32;

  constexpr ConstTensor() noexcept = default;
  constexpr ConstTensor(const void* p, std::size_t count, DType type) noexcept
      : data(p), num_elements(count), dtype(type) {}
  template <class T>
    requires is_element_v<T>
  constexpr ConstTensor(std::span<const T> s) noexcept  // NOLINT(*-explicit-*)
      : data(s.data()), num_elements(s.size()), dtype(dtype_of_v<T>) {}
  template <class T>
    requires is_element_v<T>
  constexpr ConstTensor(std::span<T> s) noexcept  // NOLINT(*-explicit-*)
      : data(s.data()), num_elements(s.size()), dtype(dtype_of_v<T>) {}
  template <class T>
    requires is_element_v<T>
  ConstTensor(const std::vector<T>& v) noexcept  // NOLINT(*-explicit-*)
      : data(v.data()), num_elements(v.size()), dtype(dtype_of_v<T>) {}
};

/// The same, writable.
struct Tensor {
  void* data = nullptr;
  std::size_t num_elements = 0;
  DType dtype = DType::f32;

  constexpr Tensor() noexcept = default;
  constexpr Tensor(void* p, std::size_t count, DType type) noexcept : data(p), num_elements(count), dtype(type) {}
  template <class T>
    requires is_element_v<T>
  constexpr Tensor(std::span<T> s) noexcept  // NOLINT(*-explicit-*)
      : data(s.data()), num_elements(s.size()), dtype(dtype_of_v<T>) {}
  template <class T>
    requires is_element_v<T>
  Tensor(std::vector<T>& v) noexcept  // NOLINT(*-explicit-*)
      : data(v.data()), num_elements(v.size()), dtype(dtype_of_v<T>) {}
};

/// Most tokens of a sequence, wherever one is held or attended: positions and lengths are 32 bit in kernels.
inline constexpr std::uint64_t kMaxSequenceTokens = std::uint64_t{1} << 30;
/// Most query rows of a batch times its kv heads: a million rows of 64 heads. One wrong number must not cost gigabytes.
inline constexpr std::uint64_t kMaxHeadRows = std::uint64_t{1} << 26;

}  // namespace pagedkv
