// The page pool: allocation and release under one short lock, in memory that is committed as pages are first used.
#include "pool/pool_impl.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <new>
#include <utility>

#include "core/check.h"

namespace pagedkv {

namespace {

constexpr std::uint64_t kMaxPages = std::numeric_limits<std::int32_t>::max();

// Memory that one hold of the lock gives back: some 150 us of system calls.
constexpr std::uint64_t kTrimChunkBytes = std::uint64_t{64} << 20;

constexpr Error kTooFewPages{Errc::kOutOfPages, "fewer pages are unreferenced than were asked for"};

}  // namespace

Result<std::shared_ptr<PagePool::Impl>> PagePool::Impl::create(const PagePoolOptions& options,
                                                               memory::OsMemory& os) noexcept {
  if (options.page_bytes == 0) return Error{Errc::kInvalidArgument, "page_bytes is zero"};
  if (options.capacity_pages == 0) return Error{Errc::kInvalidArgument, "capacity_pages is zero"};
  const std::uint64_t num_pages = options.max_capacity_pages != 0 ? options.max_capacity_pages : options.capacity_pages;
  if (num_pages > kMaxPages) return Error{Errc::kInvalidArgument, "the capacity exceeds 2^31 - 1 pages"};
  if (num_pages < options.capacity_pages) {
    return Error{Errc::kInvalidArgument, "capacity_pages exceeds max_capacity_pages"};
  }
  if (options.watermark_pages > options.capacity_pages) {
    return Error{Errc::kInvalidArgument, "watermark_pages exceeds capacity_pages"};
  }
  if (static_cast<std::uint8_t>(options.huge_pages) > static_cast<std::uint8_t>(HugePages::kTransparent)) {
    return Error{Errc::kInvalidArgument, "huge_pages is no value of its enumeration"};
  }
  std::uint64_t padded_bytes = 0;
  std::uint64_t total_bytes = 0;
  if (!checked_add(options.page_bytes, kCacheLineBytes - 1, padded_bytes) ||
      !checked_mul(round_up(options.page_bytes, kCacheLineBytes), num_pages, total_bytes)) {
    return Error{Errc::kInvalidArgument, "page_bytes * capacity_pages overflows"};
  }

  std::shared_ptr<Impl> impl;
  try {
    impl = std::make_shared<Impl>();
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for the pool"};
  }
  auto data = memory::ReservedRange::create(os, total_bytes, options.huge_pages == HugePages::kTransparent);
  if (!data) return data.error();

  // Bookkeeping is reserved whole and touched as pages are: capacities of 2^31 pages cost address space alone.
  constexpr std::uint64_t kBytesAPage = sizeof(*impl->states_) + sizeof(*impl->free_list_);
  const std::uint64_t metadata_bytes = kBytesAPage * num_pages;
  auto metadata = memory::ReservedRange::create(os, metadata_bytes, false);
  if (!metadata) return metadata.error();
  Result<void> committed = metadata->commit_up_to(metadata_bytes);
  if (!committed) return committed.error();

  impl->states_ = reinterpret_cast<std::uint32_t*>(metadata->base());
  impl->free_list_ = reinterpret_cast<std::int32_t*>(metadata->base()) + num_pages;
  impl->page_bytes_ = round_up(options.page_bytes, kCacheLineBytes);
  impl->reserved_pages_ = num_pages;
  impl->capacity_pages_.store(options.capacity_pages, std::memory_order_relaxed);
  impl->watermark_pages_ = options.watermark_pages;
  impl->metadata_bytes_ = metadata_bytes + sizeof(Impl);
  impl->os_ = &os;
  impl->data_ = std::move(*data);
  impl->metadata_ = std::move(*metadata);
  return impl;
}

// Allocation ----------------------------------------------------------------------------------------------------------

Result<void> PagePool::Impl::refuse_impossible(std::uint64_t count) noexcept {
  if (count <= reserved_pages_) return {};
  const std::scoped_lock guard(lock_);
  ++failed_allocations_;
  return kTooFewPages;
}

Result<void> PagePool::Impl::allocate(std::span<PageId> ids) noexcept {
  const std::uint64_t count = ids.size();
  const std::scoped_lock guard(lock_);
  const std::uint64_t num_free = free_pages_locked();
  if (count > num_free + evictable_pages_) [[unlikely]] {
    ++failed_allocations_;
    return kTooFewPages;
  }
  const std::uint64_t num_victims = count > num_free ? count - num_free : 0;
  if (count > num_listed_ + num_victims) [[unlikely]] {
    Result<void> committed = commit_for_locked(count, num_victims);
    if (!committed) return committed;
  }
  while (free_pages_locked() < count) evict_one_locked();

  take_free_locked(ids);
  used_pages_ += count;
  peak_used_pages_ = std::max(peak_used_pages_, used_pages_);
  allocations_ += count;
  return {};
}

// Commits the memory of the never used pages that an allocation needs besides listed pages and victims.
Result<void> PagePool::Impl::commit_for_locked(std::uint64_t count, std::uint64_t num_victims) noexcept {
  const std::uint64_t num_fresh = count - num_listed_ - num_victims;
  return data_.commit_up_to((num_touched_ + num_fresh) * page_bytes_);
}

void PagePool::Impl::evict_one_locked() noexcept {
  const PageId victim = hook_->take_victim();
  PAGEDKV_ASSERT(is_evictable(victim));
  unpublish_locked(victim);
  ++evictions_;
}

void PagePool::Impl::take_free_locked(std::span<PageId> ids) noexcept {
  const std::uint64_t num_from_list = std::min<std::uint64_t>(ids.size(), num_listed_);
  const std::int32_t* top = free_list_ + num_listed_;
  std::uint64_t num_cold = 0;
  for (std::uint64_t i = 0; i < num_from_list; ++i) {
    const PageId id{*--top};
    num_cold += (load_state(id) & kCold) != 0 ? 1U : 0U;
    store_state(id, 1);
    ids[i] = id;
  }
  num_listed_ -= num_from_list;
  for (PageId& id : ids.subspan(num_from_list)) {
    id = PageId{static_cast<std::int32_t>(num_touched_++)};
    store_state(id, 1);
  }
  backed_pages_ += num_cold + (ids.size() - num_from_list);
}

void PagePool::Impl::push_free_locked(PageId id) noexcept {
  store_state(id, kIdle);
  free_list_[num_listed_++] = to_index(id);
}

// References ----------------------------------------------------------------------------------------------------------

Result<void> PagePool::Impl::retain(std::span<const PageId> ids) noexcept {
  const std::scoped_lock guard(lock_);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::uint32_t refs = ref_count(ids[i]);
    if (refs > 0 && refs < kRefMask) [[likely]] {
      shared_pages_ += refs == 1 ? 1U : 0U;
      store_state(ids[i], load_state(ids[i]) + 1);
      continue;
    }
    for (const PageId undone : ids.first(i)) {
      store_state(undone, load_state(undone) - 1);
      shared_pages_ -= ref_count(undone) == 1 ? 1U : 0U;
    }
    return Error{Errc::kInvalidArgument, "a page id to retain is not in use"};
  }
  return {};
}

Result<void> PagePool::Impl::release(std::span<const PageId> ids) noexcept {
  const std::scoped_lock guard(lock_);
  // Plain pages become free at once: the free list is a stack, so that an error in the middle is undone by popping.
  // Published ones wait for the second pass, because their hook cannot undo.
  std::uint64_t num_listed = num_listed_;
  std::uint64_t num_unshared = 0;
  bool any_published = false;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const PageId id = ids[i];
    const std::uint32_t state = is_valid(id) ? load_state(id) : 0;
    if (state == 1) [[likely]] {
      store_state(id, kIdle);
      free_list_[num_listed++] = to_index(id);
    } else if ((state & kRefMask) != 0) {
      num_unshared += (state & kRefMask) == 2 ? 1U : 0U;
      any_published |= (state & kRefMask) == 1;
      store_state(id, state - 1);
    } else {
      undo_release_locked(ids.first(i));
      return Error{Errc::kInvalidArgument, "a page id to release is not in use"};
    }
  }
  used_pages_ -= num_listed - num_listed_;
  num_listed_ = num_listed;
  shared_pages_ -= num_unshared;
  if (!any_published) [[likely]] {
    return {};
  }
  for (const PageId id : ids) {
    if (load_state(id) == kPublished) drop_published_locked(id);  // idle by now if it is listed twice
  }
  return {};
}

// Takes back what the first pass of `release` did to these pages; the counts were not changed yet.
void PagePool::Impl::undo_release_locked(std::span<const PageId> ids) noexcept {
  for (std::size_t i = ids.size(); i-- > 0;) {
    const std::uint32_t state = load_state(ids[i]);
    store_state(ids[i], (state & kIdle) != 0 ? 1 : state + 1);
  }
}

// Makes a page evictable whose last reference is gone.
void PagePool::Impl::drop_published_locked(PageId id) noexcept {
  --used_pages_;
  store_state(id, kPublished | kIdle);
  ++evictable_pages_;
  hook_->on_unreferenced(id);
}

bool PagePool::Impl::retain_locked(PageId id) noexcept {
  const std::uint32_t state = load_state(id);
  if ((state & kIdle) != 0) {
    PAGEDKV_ASSERT((state & kPublished) != 0);
    store_state(id, kPublished | 1);
    --evictable_pages_;
    ++used_pages_;
    peak_used_pages_ = std::max(peak_used_pages_, used_pages_);
    hook_->on_referenced(id);
    return true;
  }
  const std::uint32_t refs = state & kRefMask;
  PAGEDKV_ASSERT(refs > 0);
  if (refs == kRefMask) return false;
  shared_pages_ += refs == 1 ? 1U : 0U;
  store_state(id, state + 1);
  return true;
}

void PagePool::Impl::release_locked(PageId id) noexcept {
  const std::uint32_t state = load_state(id) - 1;
  PAGEDKV_ASSERT((state & kIdle) == 0);
  shared_pages_ -= (state & kRefMask) == 1 ? 1U : 0U;
  store_state(id, state);
  if (state == kPublished) drop_published_locked(id);
  if (state == 0) {
    --used_pages_;
    push_free_locked(id);
  }
}

void PagePool::Impl::publish_locked(PageId id) noexcept {
  PAGEDKV_ASSERT(hook_ != nullptr && ref_count(id) > 0);
  store_state(id, load_state(id) | kPublished);
}

void PagePool::Impl::unpublish_locked(PageId id) noexcept {
  const std::uint32_t state = load_state(id);
  PAGEDKV_ASSERT((state & kPublished) != 0);
  if ((state & kIdle) == 0) {
    store_state(id, state & ~kPublished);
    return;
  }
  --evictable_pages_;
  push_free_locked(id);
}

// Questions -----------------------------------------------------------------------------------------------------------

PoolStats PagePool::Impl::stats() noexcept {
  const std::scoped_lock guard(lock_);
  return {.page_bytes = page_bytes_,
          .capacity_pages = capacity_pages(),
          .used_pages = used_pages_,
          .evictable_pages = evictable_pages_,
          .free_pages = free_pages_locked(),
          .shared_pages = shared_pages_,
          .committed_bytes = backed_pages_ * page_bytes_,
          .metadata_bytes = metadata_bytes_,
          .peak_used_pages = peak_used_pages_,
          .allocations = allocations_,
          .failed_allocations = failed_allocations_,
          .evictions = evictions_,
          .huge_pages = data_.has_huge_pages()};
}

std::uint64_t PagePool::Impl::available_pages() noexcept {
  const std::scoped_lock guard(lock_);
  return capacity_pages() - used_pages_;
}

bool PagePool::Impl::can_allocate(std::uint64_t count) noexcept {
  const std::uint64_t available = available_pages();
  return available >= watermark_pages_ && count <= available - watermark_pages_;
}

// Giving memory back --------------------------------------------------------------------------------------------------

Result<std::uint64_t> PagePool::Impl::trim() noexcept {
  // Chunks begin at OS page boundaries: 2^16 pages of any multiple of 64 bytes span whole OS pages up to 4 MiB.
  const std::uint64_t granule = page_bytes_ % data_.os_page_bytes() == 0 ? 1 : std::uint64_t{1} << 16;
  const std::uint64_t chunk = std::max<std::uint64_t>(1, kTrimChunkBytes / page_bytes_ / granule) * granule;
  std::uint64_t trimmed_bytes = 0;
  for (std::uint64_t first = 0;; first += chunk) {
    const std::scoped_lock guard(lock_);
    if (first >= num_touched_) return trimmed_bytes;
    auto trimmed = trim_chunk_locked(first, std::min(first + chunk, num_touched_));
    if (!trimmed) return trimmed.error();
    trimmed_bytes += *trimmed;
  }
}

Result<void> PagePool::Impl::set_capacity(std::uint64_t num_pages) noexcept {
  {
    const std::scoped_lock guard(lock_);
    if (num_pages == 0) return Error{Errc::kInvalidArgument, "the capacity is zero"};
    if (num_pages > reserved_pages_) return Error{Errc::kInvalidArgument, "the capacity exceeds max_capacity_pages"};
    if (num_pages < watermark_pages_) return Error{Errc::kInvalidArgument, "the capacity is below the watermark"};
    if (num_pages < used_pages_) return Error{Errc::kInvalidArgument, "the capacity is below what is in use"};
    const bool is_lower = num_pages < capacity_pages();
    while (used_pages_ + evictable_pages_ > num_pages) evict_one_locked();
    capacity_pages_.store(num_pages, std::memory_order_relaxed);
    if (!is_lower) return {};
  }
  Result<std::uint64_t> trimmed = trim();
  return trimmed ? Result<void>{} : trimmed.error();
}

// Gives the memory of runs of free pages among first .. last-1 back.
Result<std::uint64_t> PagePool::Impl::trim_chunk_locked(std::uint64_t first, std::uint64_t last) noexcept {
  std::uint64_t num_trimmed = 0;
  for (std::uint64_t begin = first; begin < last; ++begin) {
    // Pages given back before belong to a run: an OS page may lie under one of them and one used since.
    std::uint64_t end = begin, first_warm = last, end_warm = begin;
    for (; end < last && is_free(end); ++end) {
      if (is_cold(end)) continue;
      first_warm = std::min(first_warm, end);
      end_warm = end + 1;
    }
    if (first_warm < end_warm) {
      const auto trimmed = trim_run_locked({begin, end}, {first_warm, end_warm});
      if (!trimmed) return trimmed.error();
      num_trimmed += *trimmed;
    }
    begin = end;
  }
  return num_trimmed * page_bytes_;
}

// Gives the OS pages under the pages `warm` back, as far as they lie in `run`, which is free; returns how many pages.
Result<std::uint64_t> PagePool::Impl::trim_run_locked(PageRange run, PageRange warm) noexcept {
  const std::uint64_t os_page = data_.os_page_bytes();
  const std::uint64_t begin = std::max(run.begin * page_bytes_, warm.begin * page_bytes_ & ~(os_page - 1));
  const std::uint64_t end = std::min(run.end * page_bytes_, round_up(warm.end * page_bytes_, os_page));
  const auto given = data_.decommit(begin, end);
  if (!given) return given.error();
  // Pages that share an OS page with a live neighbour keep their memory, and count as backed.
  std::uint64_t num_trimmed = 0;
  const std::uint64_t end_inside = given->end / page_bytes_;
  for (std::uint64_t i = ceil_div(given->begin, page_bytes_); i < end_inside; ++i) {
    if (is_cold(i)) continue;
    store_state(PageId{static_cast<std::int32_t>(i)}, kIdle | kCold);
    ++num_trimmed;
  }
  backed_pages_ -= num_trimmed;
  return num_trimmed;
}

}  // namespace pagedkv
