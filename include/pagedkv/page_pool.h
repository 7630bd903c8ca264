// PagePool: fixed-size pages of one reserved address range, counted by reference, shared by all sequences.
//
// Layer: pool. Useful alone to an engine with kernels of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "pagedkv/export.h"
#include "pagedkv/result.h"
#include "pagedkv/types.h"

namespace pagedkv {

enum class HugePages : std::uint8_t {
  kNever = 0,        ///< Ordinary OS pages.
  kTransparent = 1,  ///< Ask for transparent huge pages; ordinary ones if the system says no (see PoolStats).
};

struct PagePoolOptions {
  std::uint64_t page_bytes = 0;      ///< Bytes of one page; pages are packed at this stride, 64-byte aligned.
  std::uint64_t capacity_pages = 0;  ///< 1 .. 2^31-1. Memory is committed on first use.
  /// What `set_capacity` may raise it to; 0 = capacity_pages. Address space is reserved for all of these.
  std::uint64_t max_capacity_pages = 0;
  /// Pages that admission keeps in hand: `can_allocate` says no below it, `allocate` may still take them.
  std::uint64_t watermark_pages = 0;
  HugePages huge_pages = HugePages::kTransparent;
};

/// Exact counts of one moment. used + evictable + free = capacity.
struct PoolStats {
  std::uint64_t page_bytes = 0;
  std::uint64_t capacity_pages = 0;
  std::uint64_t used_pages = 0;       ///< Referenced at least once.
  std::uint64_t evictable_pages = 0;  ///< Unreferenced, but hold a published prefix until they are taken.
  std::uint64_t free_pages = 0;       ///< Unreferenced and unpublished.
  std::uint64_t shared_pages = 0;     ///< Referenced more than once.
  std::uint64_t committed_bytes = 0;  ///< Memory asked of the OS and not given back.
  std::uint64_t metadata_bytes = 0;   ///< Bookkeeping of the pool itself.
  std::uint64_t peak_used_pages = 0;
  std::uint64_t allocations = 0;         ///< Pages ever handed out.
  std::uint64_t failed_allocations = 0;  ///< Calls refused with kOutOfPages.
  std::uint64_t evictions = 0;           ///< Published pages taken for something else.
  bool huge_pages = false;               ///< The OS accepted the request for huge pages.
};

/// A thread-safe pool. Page `p` lies at base() + p * page_bytes for ever.
///
/// Free pages are handed out first, those used before ahead of new ones; then published pages that nobody refers to, as
/// the eviction policy chooses.
class PAGEDKV_API PagePool {
 public:
  /// Errors: kInvalidArgument  zero or overflowing sizes
  ///         kOsError          address space could not be reserved
  ///         kOutOfMemory      no memory for the bookkeeping
  static Result<PagePool> create(const PagePoolOptions& options) noexcept;

  /// Takes `ids.size()` pages, each with one reference, or none at all.
  ///
  /// Errors:  kOutOfPages  fewer are unreferenced; nothing changed. Evict, preempt or wait.
  ///          kOsError     memory could not be committed; nothing changed
  /// Cost:    one lock for the batch; pages used before are handed out first.
  /// Threads: any.
  Result<void> allocate(std::span<PageId> ids) noexcept;
  Result<PageId> allocate() noexcept;

  /// Adds a reference to each page. Errors: kInvalidArgument (an id not in use; nothing changed), checked always.
  Result<void> retain(std::span<const PageId> ids) noexcept;

  /// Drops a reference from each page; the last one makes it allocatable, in the order given (give tails first).
  /// Errors: kInvalidArgument (an id not in use, or listed more often than referenced; nothing changed).
  Result<void> release(std::span<const PageId> ids) noexcept;

  [[nodiscard]] std::uint32_t ref_count(PageId id) const noexcept;  ///< 0 if unreferenced or out of range.
  /// Whether the page holds a published prefix that nobody refers to. Takes no lock: a hint under concurrency.
  [[nodiscard]] bool is_evictable(PageId id) const noexcept;
  /// Whether `count` pages could be had now without going below the watermark. A hint under concurrency.
  [[nodiscard]] bool can_allocate(std::uint64_t count) const noexcept;
  /// Pages that could be had now: free + evictable.
  [[nodiscard]] std::uint64_t available_pages() const noexcept;
  [[nodiscard]] PoolStats stats() const noexcept;

  [[nodiscard]] std::byte* base() const noexcept;
  /// [page_bytes]; nullptr if out of range. To be written by holders of a reference only; a page that was never handed
  /// out reads as zeros, and to write it ends the process: it has no memory.
  [[nodiscard]] std::byte* page_data(PageId id) const noexcept;
  [[nodiscard]] std::uint64_t page_bytes() const noexcept;
  [[nodiscard]] std::uint64_t capacity_pages() const noexcept;      ///< Pages that may be in use now.
  [[nodiscard]] std::uint64_t max_capacity_pages() const noexcept;  ///< Ids are below this for ever.

  /// Raises or lowers the capacity while others allocate. Lowering evicts published pages if it must, and gives the
  /// memory of all free pages back to the OS.
  ///
  /// Errors: kInvalidArgument  zero, above max_capacity_pages, below the watermark or below what is in use: no change
  ///         kOsError          the capacity is set, but memory could not be given back
  Result<void> set_capacity(std::uint64_t num_pages) noexcept;

  /// Gives the memory of free pages back to the OS; returns the bytes given. Published pages stay. Errors: kOsError
  Result<std::uint64_t> trim() noexcept;

  /// Another object of the same pool; either keeps it alive.
  [[nodiscard]] PagePool share() const noexcept { return PagePool(impl_); }

  PagePool() noexcept = default;  ///< A closed pool.
  PagePool(PagePool&&) noexcept;
  PagePool& operator=(PagePool&&) noexcept;
  ~PagePool();

  struct Impl;  ///< Defined in src/pool; shared with the rooms above.
  [[nodiscard]] const std::shared_ptr<Impl>& impl() const noexcept { return impl_; }

 private:
  explicit PagePool(std::shared_ptr<Impl>) noexcept;
  std::shared_ptr<Impl> impl_;
};

}  // namespace pagedkv
