// One reserved address range that is committed from its beginning as it comes to be used.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory/os_memory.h"
#include "pagedkv/result.h"

namespace pagedkv::memory {

inline constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;

/// Owns the range. Not thread-safe: its owner locks.
class ReservedRange {
 public:
  ReservedRange() noexcept = default;
  /// Reserves at least `num_bytes`, aligned to a huge page. `os` must outlive the range.
  ///
  /// Errors: kInvalidArgument (zero or overflowing), kOsError
  static Result<ReservedRange> create(OsMemory& os, std::uint64_t num_bytes, bool want_huge_pages) noexcept;

  /// Makes the first `num_bytes` usable. Memory comes when it is touched. Errors: kOsError, nothing changed
  Result<void> commit_up_to(std::uint64_t num_bytes) noexcept {
    return num_bytes <= committed_bytes_ ? Result<void>{} : grow(num_bytes);
  }
  /// Gives the OS pages that lie wholly inside [begin, end) back; the range stays usable and reads as zero.
  ///
  /// Errors: kOsError  nothing was given back
  /// Result: begin and end of what was given back, in bytes from base(); begin == end if no OS page fits
  struct Extent {
    std::uint64_t begin = 0, end = 0;
  };
  Result<Extent> decommit(std::uint64_t begin, std::uint64_t end) noexcept;

  [[nodiscard]] std::byte* base() const noexcept { return base_; }
  [[nodiscard]] bool has_huge_pages() const noexcept { return has_huge_pages_; }
  [[nodiscard]] std::uint64_t os_page_bytes() const noexcept { return os_->os_page_bytes(); }

  ReservedRange(ReservedRange&& other) noexcept { swap(other); }
  ReservedRange& operator=(ReservedRange&& other) noexcept {
    swap(other);
    return *this;
  }
  ~ReservedRange() {
    if (base_ != nullptr) os_->unreserve(base_, reserved_bytes_);
  }

 private:
  Result<void> grow(std::uint64_t num_bytes) noexcept;
  void swap(ReservedRange& other) noexcept;

  OsMemory* os_ = nullptr;
  std::byte* base_ = nullptr;
  std::uint64_t reserved_bytes_ = 0;
  std::uint64_t committed_bytes_ = 0;
  bool has_huge_pages_ = false;
};

}  // namespace pagedkv::memory
