// Growing and shrinking of one reserved address range.
#include "memory/reserved_range.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/align.h"

namespace pagedkv::memory {

namespace {
// Commit this much at a time: one system call for several pages, yet little accounted memory that nobody uses.
constexpr std::uint64_t kCommitStepBytes = 4 * kHugePageBytes;
}  // namespace

Result<ReservedRange> ReservedRange::create(OsMemory& os, std::uint64_t num_bytes, bool want_huge_pages) noexcept {
  if (num_bytes == 0) return Error{Errc::kInvalidArgument, "the memory range is empty"};
  if (num_bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) - kHugePageBytes) {
    return Error{Errc::kInvalidArgument, "the memory range overflows"};
  }
  const std::uint64_t reserved_bytes = round_up(num_bytes, kHugePageBytes);
  Result<std::byte*> base = os.reserve(reserved_bytes, kHugePageBytes);
  if (!base) return base.error();
  ReservedRange range;
  range.os_ = &os;
  range.base_ = *base;
  range.reserved_bytes_ = reserved_bytes;
  range.has_huge_pages_ = want_huge_pages && os.advise_huge_pages(*base, reserved_bytes);
  return range;
}

Result<void> ReservedRange::grow(std::uint64_t num_bytes) noexcept {
  const std::uint64_t target = std::min(round_up(num_bytes, kCommitStepBytes), reserved_bytes_);
  Result<void> done = os_->commit(base_ + committed_bytes_, target - committed_bytes_);
  if (done) committed_bytes_ = target;
  return done;
}

Result<ReservedRange::Extent> ReservedRange::decommit(std::uint64_t begin, std::uint64_t end) noexcept {
  const std::uint64_t os_page = os_->os_page_bytes();
  const Extent inside{round_up(begin, os_page), end & ~(os_page - 1)};
  if (inside.begin >= inside.end) return Extent{begin, begin};
  Result<void> done = os_->decommit(base_ + inside.begin, inside.end - inside.begin);
  if (!done) return done.error();
  return inside;
}

void ReservedRange::swap(ReservedRange& other) noexcept {
  std::swap(os_, other.os_);
  std::swap(base_, other.base_);
  std::swap(reserved_bytes_, other.reserved_bytes_);
  std::swap(committed_bytes_, other.committed_bytes_);
  std::swap(has_huge_pages_, other.has_huge_pages_);
}

}  // namespace pagedkv::memory
