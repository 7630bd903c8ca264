// The prefix index as a whole: creation, pins, clearing, eviction.
#include "prefix/prefix_index.h"

#include <xxhash.h>

#include <bit>
#include <chrono>
#include <new>
#include <random>
#include <stdexcept>
#include <utility>

#include "core/check.h"

namespace pagedkv::prefix {

namespace {

std::uint64_t hash_tokens(const Token* tokens, std::size_t count, std::uint64_t seed) noexcept {
  return XXH3_64bits_withSeed(tokens, count * sizeof(Token), seed);
}

// Odd. Throws what std::random_device does, if the system has no random numbers.
std::uint64_t secret_factor() {
  std::random_device random;
  static_assert(std::random_device::min() == 0 && std::random_device::max() == 0xFFFFFFFF);
  return std::uint64_t{random()} << 32 | random() | 1;
}

std::uint64_t steady_now_ms() noexcept {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

}  // namespace

PrefixIndex::PrefixIndex(std::shared_ptr<PagePool::Impl> pool, std::uint32_t page_size,
                         const PrefixCacheOptions& options)
    : pool_(std::move(pool)),
      page_size_(page_size),
      hash_(options.hash != nullptr ? options.hash : &hash_tokens),
      bucket_factor_(secret_factor()) {}

Result<std::unique_ptr<PrefixIndex>> PrefixIndex::create(std::shared_ptr<PagePool::Impl> pool, std::uint32_t page_size,
                                                         const PrefixCacheOptions& options) noexcept {
  if (page_size < 1 || page_size > 256) return Error{Errc::kInvalidArgument, "page_size is not in 1..256"};
  if (options.event_capacity > kMaxEvents) return Error{Errc::kInvalidArgument, "event_capacity exceeds 2^24"};
  try {
    std::unique_ptr<PrefixIndex> index(new PrefixIndex(std::move(pool), page_size, options));
    index->events_.allocate(options.event_capacity, page_size);
    Result<void> done = index->allocate(options);
    if (!done) return done.error();
    const std::scoped_lock guard(index->pool_->lock());
    if (index->pool_->has_published_pages_locked()) {
      return Error{Errc::kBusy, "the pool serves another prefix cache"};
    }
    index->pool_->set_published_pages_locked(index.get());
    index->is_installed_ = true;
    return index;
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for the prefix cache"};
  } catch (const std::runtime_error&) {
    return Error{Errc::kOsError, "the system gave no random number"};
  }
}

Result<void> PrefixIndex::allocate(const PrefixCacheOptions& options) noexcept {
  const std::uint64_t num_pages = pool_->reserved_pages();
  const std::uint64_t num_buckets = std::bit_ceil(num_pages);
  auto buckets = memory::PageArray<std::int32_t>::create(pool_->os(), num_buckets);
  if (!buckets) return buckets.error();
  auto entries = memory::PageArray<Entry>::create(pool_->os(), num_pages);
  if (!entries) return entries.error();
  auto tokens = memory::PageArray<Token>::create(pool_->os(), num_pages * page_size_);
  if (!tokens) return tokens.error();
  buckets_ = std::move(*buckets);
  bucket_shift_ = 63U - static_cast<unsigned>(std::countr_zero(num_buckets));
  entries_ = std::move(*entries);
  tokens_ = std::move(*tokens);

  std::shared_ptr<EvictionPolicy> policy = options.policy;
  if (policy == nullptr) {
    auto lru = make_lru_policy();
    if (!lru) return lru.error();
    policy = std::move(*lru);
  }
  Result<void> attached = order_.attach(std::move(policy), pool_->os(), num_pages,
                                        options.now_ms != nullptr ? options.now_ms : &steady_now_ms);
  if (!attached) return attached;
  stats_.metadata_bytes =
      buckets_.num_bytes() + entries_.num_bytes() + tokens_.num_bytes() + order_.num_bytes() + events_.num_bytes();
  return {};
}

PrefixIndex::~PrefixIndex() {
  if (!is_installed_) return;
  for (const auto& [id, pages] : pins_) {
    [[maybe_unused]] const Result<void> released = pool_->release(pages);
    PAGEDKV_ASSERT(released.has_value());
  }
  const std::scoped_lock guard(pool_->lock());
  clear_locked();
  pool_->set_published_pages_locked(nullptr);
}

Result<std::shared_ptr<Namespace>> PrefixIndex::acquire(std::string_view cache_salt, std::string_view extra_key,
                                                        std::uint64_t page_table) noexcept {
  return namespaces_.acquire(cache_salt, extra_key, page_table);
}

Result<void> PrefixIndex::check(std::span<const RetentionRange> retention) noexcept {
  if (retention.size() > kMaxRetentionRanges) {
    return Error{Errc::kInvalidArgument, "more than 256 retention ranges"};
  }
  for (const RetentionRange& range : retention) {
    if (range.priority > kMaxRetentionPriority)
      return Error{Errc::kInvalidArgument, "a retention priority exceeds 100"};
    if (range.begin_token >= range.end_token) return Error{Errc::kInvalidArgument, "a retention range is empty"};
  }
  return {};
}

// Pins ----------------------------------------------------------------------------------------------------------------

Result<PinId> PrefixIndex::pin(std::vector<PageId> pages) noexcept {
  if (pages.empty()) return Error{Errc::kNotFound, "no page of this prefix is published"};
  const std::scoped_lock pins_guard(pins_mutex_);
  try {
    pins_.try_emplace(next_pin_);
  } catch (const std::bad_alloc&) {
    [[maybe_unused]] const Result<void> released = pool_->release(pages);
    PAGEDKV_ASSERT(released.has_value());
    return Error{Errc::kOutOfMemory, "no memory for a pin"};
  }
  const std::scoped_lock guard(pool_->lock());
  for (const PageId page : pages) stats_.pinned_pages += entry(page).num_pins++ == 0 ? 1U : 0U;
  pins_[next_pin_] = std::move(pages);
  return PinId{next_pin_++};
}

Result<void> PrefixIndex::unpin(PinId pin) noexcept {
  const std::scoped_lock pins_guard(pins_mutex_);
  const auto known = pins_.find(static_cast<std::uint64_t>(pin));
  if (known == pins_.end()) return Error{Errc::kNotFound, "nothing is pinned under this id"};
  unpin_pages(known->second);
  pins_.erase(known);
  return {};
}

void PrefixIndex::unpin_pages(std::span<const PageId> pages) noexcept {
  const std::scoped_lock guard(pool_->lock());
  for (const PageId page : pages) {
    stats_.pinned_pages -= --entry(page).num_pins == 0 ? 1U : 0U;
    pool_->release_locked(page);
  }
}

// Eviction ------------------------------------------------------------------------------------------------------------

void PrefixIndex::on_unreferenced(PageId page) noexcept { order_.insert(page); }
void PrefixIndex::on_referenced(PageId page) noexcept { order_.withdraw(page); }

PageId PrefixIndex::take_victim() noexcept {
  for (;;) {
    const PageId chosen = order_.choose();
    if (chosen == kNullPage) {
      // Every evictable page is continued by pages in use, as windows leave them, or a sequence that has not published
      // what its fork has: those cannot be found any more then.
      PAGEDKV_ASSERT(order_.any_parked() != kNullPage);
      drop_children_locked(order_.any_parked());
    } else if (!entry(chosen).is_leaf()) {
      order_.park(chosen);
    } else {
      remove_locked(chosen);
      return chosen;
    }
  }
}

// Unpublishes all that continues a page and all side pages, leaves first.
void PrefixIndex::drop_children_locked(PageId page) noexcept {
  PageId at = page;
  for (;;) {
    if (!entry(at).is_leaf()) {
      at = PageId{entry(at).first_side >= 0 ? entry(at).first_side : entry(at).children};
      continue;
    }
    if (at == page) return;
    const PageId parent{entry(at).parent};
    order_.withdraw(at);
    remove_locked(at);
    pool_->unpublish_locked(at);
    at = parent;
  }
}

void PrefixIndex::clear() noexcept {
  const std::scoped_lock guard(pool_->lock());
  clear_locked();
  events_.push(CacheEventKind::kCleared, kNullPage, 0, 0, nullptr);
}

void PrefixIndex::clear_locked() noexcept {
  const auto num_touched = static_cast<std::int32_t>(pool_->num_touched_locked());
  for (std::int32_t i = 0; i < num_touched && stats_.published_pages > 0; ++i) {
    const PageId page{i};
    if (!pool_->is_published_locked(page)) continue;
    order_.withdraw(page);
    // All links go under one hold of the lock, so that their order does not matter.
    buckets_[bucket_of(entry(page).hash)] = 0;
    entry(page).name_space->children = -1;
    entry(page).name_space->num_pages.fetch_sub(1, std::memory_order_release);  // it may be forgotten after the last
    pool_->unpublish_locked(page);
    --stats_.published_pages;
  }
}

PrefixStats PrefixIndex::stats() noexcept {
  PrefixStats stats;
  {
    const std::scoped_lock guard(pool_->lock());
    stats = stats_;
  }
  stats.namespaces = namespaces_.count();
  stats.lost_events = events_.num_lost();
  return stats;
}

}  // namespace pagedkv::prefix
