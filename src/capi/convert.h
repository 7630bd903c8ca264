// C structs to C++ and back: sizes, null pointers and enumerations checked on the way.
//
// Layer: capi.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "pagedkv/attention.h"
#include "pagedkv/c/pagedkv.h"
#include "pagedkv/dense_cache.h"
#include "pagedkv/kv_cache.h"
#include "pagedkv/page_pool.h"
#include "pagedkv/result.h"
#include "pagedkv/types.h"

namespace pagedkv::capi {

/// Bytes of a struct in the first release that had it: no caller has a smaller one. A struct that grows names here
/// where its first version ended, for instance offsetof(pagedkv_x, first_new_member).
template <class T>
inline constexpr std::size_t kFirstVersionBytes = sizeof(T);
template <>
inline constexpr std::size_t kFirstVersionBytes<pagedkv_cache_options> =
    offsetof(pagedkv_cache_options, attention_flags);
template <>
inline constexpr std::size_t kFirstVersionBytes<pagedkv_cache_info> = offsetof(pagedkv_cache_info, attention_flags);
template <>
inline constexpr std::size_t kFirstVersionBytes<pagedkv_attention_config> =
    offsetof(pagedkv_attention_config, attention_flags);

/// A caller's struct that begins with `struct_size`, as this library knows it. Members that the caller does not have
/// are 0; members that the library does not have must be.
///
/// Errors: kInvalidArgument (null, or too small to be any version), kUnsupported (unknown members in use)
template <class T>
Result<T> read_sized(const T* given) noexcept {
  if (given == nullptr) return Error{Errc::kInvalidArgument, "a required struct is NULL"};
  std::size_t size = 0;
  std::memcpy(&size, given, sizeof(size));
  if (size < kFirstVersionBytes<T>) return Error{Errc::kInvalidArgument, "struct_size is too small; set it to sizeof"};
  if (size > 65536) return Error{Errc::kInvalidArgument, "struct_size is absurd; set it to sizeof"};
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (std::any_of(bytes + std::min(size, sizeof(T)), bytes + size, [](unsigned char b) { return b != 0; })) {
    return Error{Errc::kUnsupported, "a struct uses members that this version of the library does not know"};
  }
  T known{};
  std::memcpy(&known, given, std::min(size, sizeof(T)));
  return known;
}

/// Writes a result struct as far as the caller's version goes. Errors: kInvalidArgument
template <class T>
Result<void> write_sized(T value, T* to) noexcept {
  if (to == nullptr) return Error{Errc::kInvalidArgument, "a required struct is NULL"};
  std::size_t size = 0;
  std::memcpy(&size, to, sizeof(size));
  if (size < kFirstVersionBytes<T>) return Error{Errc::kInvalidArgument, "struct_size is too small; set it to sizeof"};
  std::memcpy(&value, &size, sizeof(size));
  std::memcpy(to, &value, std::min(size, sizeof(T)));
  return {};
}

/// A pointer and a count. Errors: kInvalidArgument (null with a count, or a count that no array has)
template <class T>
Result<std::span<T>> span_of(T* data, std::size_t count) noexcept {
  if (data == nullptr && count != 0) return Error{Errc::kInvalidArgument, "an array is NULL but its count is not 0"};
  if (count > PTRDIFF_MAX / sizeof(T)) return Error{Errc::kInvalidArgument, "the count of an array is absurd"};
  return std::span<T>(data, count);
}

/// Collects the first error of several conversions.
class Checks {
 public:
  template <class T>
  std::span<T> span(T* data, std::size_t count) noexcept {
    const Result<std::span<T>> made = span_of(data, count);
    if (!made) fail(made.error());
    return made ? *made : std::span<T>{};
  }
  std::string_view text(pagedkv_bytes bytes) noexcept {
    const std::span<const char> made = span(bytes.data, bytes.size);
    return {made.data(), made.size()};
  }
  DType dtype(pagedkv_dtype dtype) noexcept {
    if (dtype > PAGEDKV_BF16) fail({Errc::kInvalidArgument, "a dtype is unknown"});
    return static_cast<DType>(dtype > PAGEDKV_BF16 ? 0 : dtype);
  }
  ConstTensor tensor(pagedkv_const_tensor given) noexcept {
    check_count(given.data, given.num_elements);
    return {given.data, given.num_elements, dtype(given.dtype)};
  }
  Tensor tensor(pagedkv_tensor given) noexcept {
    check_count(given.data, given.num_elements);
    return {given.data, given.num_elements, dtype(given.dtype)};
  }
  AttentionVariant variant(const pagedkv_attention_variant& given, std::uint64_t attention_flags) noexcept;
  void fail(Error error) noexcept {
    if (error_ == Errc::kOk) error_ = error;
  }
  [[nodiscard]] Error error() const noexcept { return error_; }
  [[nodiscard]] bool failed() const noexcept { return error_.code != Errc::kOk; }

 private:
  void check_count(const void* data, std::size_t count) noexcept {
    if (data == nullptr && count != 0) fail({Errc::kInvalidArgument, "a tensor is NULL but its count is not 0"});
    if (count > PTRDIFF_MAX / 4) fail({Errc::kInvalidArgument, "the count of a tensor is absurd"});
  }
  Error error_{};
};

/// window (keys with the own one, 0 = all) as window_left (keys before it, -1 = all). Absurd windows see all keys.
std::int32_t window_left_of(std::uint32_t window) noexcept;
pagedkv_attention_variant variant_of(const AttentionVariant& given) noexcept;
std::uint64_t attention_flags_of(const AttentionVariant& given, bool cascade) noexcept;

KvView view_of(const pagedkv_kv_view& given) noexcept;
pagedkv_kv_view view_of(const KvView& given) noexcept;
pagedkv_pool_stats stats_of(const PoolStats& given) noexcept;

}  // namespace pagedkv::capi
