// The inside of PagePool: reference counts, the free list, and the hook through which published pages are kept.
//
// Every page is in one of three states:
//
//   used       referenced at least once
//   evictable  unreferenced, but published: a room above can still find it, until it is taken for something else
//   free       the rest: on the free list, or above `num_touched_`, never used
//
//   allocate: free, used before -> free, never used -> evictable, as the PublishedPages hook chooses
//
// One lock guards the pool and what the room above keeps about published pages, so that a page cannot be taken between
// being found and being retained. Functions that end in _locked require it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>

#include "core/align.h"
#include "core/spin_lock.h"
#include "memory/os_memory.h"
#include "memory/reserved_range.h"
#include "pagedkv/page_pool.h"

namespace pagedkv {

namespace pool {

/// What a room above is told about the pages that it published. All calls come under the pool's lock, from any thread:
/// be quick, never throw, call the pool's _locked functions only.
class PublishedPages {
 public:
  virtual ~PublishedPages() = default;
  /// The last reference of a published page was dropped: it may be chosen as a victim from now on.
  virtual void on_unreferenced(PageId page) noexcept = 0;
  /// An evictable page was referenced again.
  virtual void on_referenced(PageId page) noexcept = 0;
  /// Chooses an evictable page (there is one), forgets it and all that depends on it, and returns it. It may unpublish
  /// other pages meanwhile, but not the one it returns: the pool does that.
  virtual PageId take_victim() noexcept = 0;
};

}  // namespace pool

struct PAGEDKV_LOCAL PagePool::Impl {
  /// As PagePool::create, over memory calls of the caller's (which must outlive the pool).
  static Result<std::shared_ptr<Impl>> create(const PagePoolOptions& options, memory::OsMemory& os) noexcept;

  Result<void> allocate(std::span<PageId> ids) noexcept;
  /// Refuses, as `allocate` would, more pages than the pool can ever have: asked before there is room for their ids.
  Result<void> refuse_impossible(std::uint64_t count) noexcept;
  Result<void> retain(std::span<const PageId> ids) noexcept;
  Result<void> release(std::span<const PageId> ids) noexcept;
  Result<std::uint64_t> trim() noexcept;
  Result<void> set_capacity(std::uint64_t num_pages) noexcept;
  [[nodiscard]] PoolStats stats() noexcept;
  [[nodiscard]] std::uint64_t available_pages() noexcept;
  [[nodiscard]] bool can_allocate(std::uint64_t count) noexcept;

  [[nodiscard]] std::uint32_t ref_count(PageId id) const noexcept {
    return is_valid(id) ? load_state(id) & kRefMask : 0;
  }
  /// Whether the holder of a reference may write the page: nobody else refers to it or can find it. Without a lock:
  /// others can only drop their references, but for a caller's own PagePool::retain. What they read of the page
  /// before that has been read: the writes of the holder come after it.
  [[nodiscard]] bool is_exclusive(PageId id) const noexcept {
    return std::atomic_ref<std::uint32_t>(states_[to_index(id)]).load(std::memory_order_acquire) == 1;
  }
  [[nodiscard]] bool is_valid(PageId id) const noexcept {
    return to_index(id) >= 0 && static_cast<std::uint64_t>(to_index(id)) < reserved_pages_;
  }
  [[nodiscard]] std::byte* page_data(PageId id) const noexcept {
    return data_.base() + static_cast<std::uint64_t>(to_index(id)) * page_bytes_;
  }
  [[nodiscard]] std::byte* base() const noexcept { return data_.base(); }
  [[nodiscard]] std::uint64_t page_bytes() const noexcept { return page_bytes_; }
  /// Ids are below this for ever; capacity may vary below it.
  [[nodiscard]] std::uint64_t reserved_pages() const noexcept { return reserved_pages_; }
  [[nodiscard]] std::uint64_t capacity_pages() const noexcept {
    return capacity_pages_.load(std::memory_order_relaxed);
  }

  [[nodiscard]] memory::OsMemory& os() const noexcept { return *os_; }

  // For the room that publishes pages. ------------------------------------------------------------------------------
  [[nodiscard]] SpinLock& lock() noexcept { return lock_; }
  /// Installs the hook, once, before anything is published; null removes it when nothing is published any more.
  void set_published_pages_locked(pool::PublishedPages* hook) noexcept { hook_ = hook; }
  [[nodiscard]] bool has_published_pages_locked() const noexcept { return hook_ != nullptr; }
  /// Ids that were ever handed out are below this.
  [[nodiscard]] std::uint64_t num_touched_locked() const noexcept { return num_touched_; }
  /// Marks a used page as published.
  void publish_locked(PageId id) noexcept;
  /// Undoes `publish_locked`; an evictable page becomes free (the hook has forgotten it already).
  void unpublish_locked(PageId id) noexcept;
  [[nodiscard]] bool is_published_locked(PageId id) const noexcept { return (load_state(id) & kPublished) != 0; }
  [[nodiscard]] bool is_evictable(PageId id) const noexcept {
    return (load_state(id) & (kPublished | kIdle)) == (kPublished | kIdle);
  }
  /// Adds a reference to a used or evictable page. False if it has as many as fit.
  [[nodiscard]] bool retain_locked(PageId id) noexcept;
  /// Drops a reference of a used page.
  void release_locked(PageId id) noexcept;

  Impl() noexcept = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

 private:
  // A page's state is one word: its reference count and three flags.
  static constexpr std::uint32_t kPublished = 1U << 31;  // a room above can find it
  static constexpr std::uint32_t kIdle = 1U << 30;       // unreferenced: on the free list, or evictable
  static constexpr std::uint32_t kCold = 1U << 29;       // on the free list, and its memory was given back
  static constexpr std::uint32_t kRefMask = kCold - 1;

  [[nodiscard]] std::uint32_t load_state(PageId id) const noexcept {
    return std::atomic_ref<std::uint32_t>(states_[to_index(id)]).load(std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint32_t load_state(std::uint64_t index) const noexcept {
    return load_state(PageId{static_cast<std::int32_t>(index)});
  }
  [[nodiscard]] bool is_free(std::uint64_t index) const noexcept { return (load_state(index) & ~kCold) == kIdle; }
  [[nodiscard]] bool is_cold(std::uint64_t index) const noexcept { return (load_state(index) & kCold) != 0; }
  // Written under the lock only; atomic because ref_count() and is_exclusive() read without it.
  void store_state(PageId id, std::uint32_t state) noexcept {
    std::atomic_ref<std::uint32_t>(states_[to_index(id)]).store(state, std::memory_order_release);
  }
  [[nodiscard]] std::uint64_t free_pages_locked() const noexcept {
    return capacity_pages() - used_pages_ - evictable_pages_;
  }
  Result<void> commit_for_locked(std::uint64_t count, std::uint64_t num_victims) noexcept;
  void evict_one_locked() noexcept;
  void take_free_locked(std::span<PageId> ids) noexcept;
  void push_free_locked(PageId id) noexcept;
  void undo_release_locked(std::span<const PageId> ids) noexcept;
  void drop_published_locked(PageId id) noexcept;
  struct PageRange {
    std::uint64_t begin = 0, end = 0;
  };
  Result<std::uint64_t> trim_chunk_locked(std::uint64_t first, std::uint64_t last) noexcept;
  Result<std::uint64_t> trim_run_locked(PageRange run, PageRange warm) noexcept;

  alignas(kCacheLineBytes) SpinLock lock_;
  std::uint32_t* states_ = nullptr;    // [reserved_pages]
  std::int32_t* free_list_ = nullptr;  // [reserved_pages] a stack of num_listed_ ids; the last in is the first out
  std::uint64_t num_listed_ = 0;
  std::uint64_t num_touched_ = 0;  // ids below this were handed out at least once
  std::uint64_t used_pages_ = 0, evictable_pages_ = 0, shared_pages_ = 0, backed_pages_ = 0;
  std::uint64_t peak_used_pages_ = 0, allocations_ = 0, failed_allocations_ = 0, evictions_ = 0;
  pool::PublishedPages* hook_ = nullptr;

  std::atomic<std::uint64_t> capacity_pages_{0};
  std::uint64_t page_bytes_ = 0, reserved_pages_ = 0, watermark_pages_ = 0, metadata_bytes_ = 0;
  memory::OsMemory* os_ = nullptr;
  memory::ReservedRange data_;
  memory::ReservedRange metadata_;
};

}  // namespace pagedkv
