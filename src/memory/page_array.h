// An array of bookkeeping with an element for each page: zero at first, and memory only where it was touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/align.h"
#include "memory/reserved_range.h"

namespace pagedkv::memory {

/// `T` must be valid (or be constructed by the user before use) when all its bytes are zero; nothing is destroyed.
template <class T>
class PageArray {
 public:
  PageArray() noexcept = default;
  /// `is_dense`: most of it will be touched, at random; large arrays then lie in huge pages, which spares a TLB miss an
  /// access. Errors: kInvalidArgument (overflow), kOsError
  static Result<PageArray> create(OsMemory& os, std::uint64_t num_elements, bool is_dense = true) noexcept {
    std::uint64_t num_bytes = 0;
    if (!checked_mul(num_elements, sizeof(T), num_bytes)) {
      return Error{Errc::kInvalidArgument, "an array of bookkeeping overflows"};
    }
    auto range = ReservedRange::create(os, num_bytes, is_dense && num_bytes >= 4 * kHugePageBytes);
    if (!range) return range.error();
    Result<void> committed = range->commit_up_to(num_bytes);
    if (!committed) return committed.error();
    PageArray array;
    array.range_ = std::move(*range);
    array.num_bytes_ = num_bytes;
    array.data_ = reinterpret_cast<T*>(array.range_.base());
    return array;
  }

  [[nodiscard]] T& operator[](std::int64_t index) noexcept { return data_[index]; }
  [[nodiscard]] const T& operator[](std::int64_t index) const noexcept { return data_[index]; }
  [[nodiscard]] std::uint64_t num_bytes() const noexcept { return num_bytes_; }

 private:
  ReservedRange range_;
  T* data_ = nullptr;
  std::uint64_t num_bytes_ = 0;
};

}  // namespace pagedkv::memory
