// Publishing pages: linking them into the tree of prefixes, merging those that hold the same tokens, unlinking.
#include <algorithm>
#include <mutex>
#include <new>

#include "core/check.h"
#include "prefix/batch.h"
#include "prefix/prefix_index.h"

namespace pagedkv::prefix {

namespace {
// Hash of a side page whose chain's page has `chain_hash`: others' side pages of the same tokens have other hashes.
std::uint64_t side_hash(std::uint64_t chain_hash, const Namespace& name_space) noexcept {
  std::uint64_t x = (chain_hash ^ name_space.seed) * 0x9e3779b97f4a7c15U;
  x ^= x >> 32;
  return x * 0xd6e8feb86659fd93U;
}
}  // namespace

// Whether the sequence still holds the page that its chain ends with, and the page is still published. If not (cleared,
// or released behind a window), that page id may stand for other tokens by now.
bool PrefixIndex::stands_locked(const PrefixChain& chain, std::span<const PageId> pages) const noexcept {
  if (chain.num_pages == 0) return true;
  return pages[chain.num_pages - 1] == chain.last && pool_->is_published_locked(chain.last);
}

std::uint64_t PrefixIndex::publish(PrefixChain& chain, std::span<const Token> tokens, std::span<PageId> pages,
                                   std::span<const RetentionRange> retention) noexcept {
  if (chain.name_space == nullptr) return 0;
  const std::uint64_t num_full = std::min<std::uint64_t>(tokens.size() / page_size_, pages.size());
  std::uint64_t num_merged = 0;
  bool is_restarted = false;
  Batch batch;
  while (chain.num_pages < num_full) {
    const std::uint64_t seed = chain.num_pages == 0 ? chain.name_space->seed : chain.hash;
    hash_batch(seed, tokens.data() + chain.num_pages * page_size_, num_full - chain.num_pages, batch);
    const std::scoped_lock guard(pool_->lock());
    if (!stands_locked(chain, pages)) {
      if (is_restarted) return num_merged;
      chain.restart();
      is_restarted = true;
      continue;
    }
    prefetch_locked(batch);
    for (const PageId page : pages.subspan(chain.num_pages, batch.num_pages)) {
      if (page == kNullPage) break;
      __builtin_prefetch(&entry(page), 1);
      __builtin_prefetch(tokens_of(page), 1);
    }
    const std::uint64_t num_before = chain.num_pages;
    num_merged += publish_batch_locked(chain, batch, pages, retention);
    if (chain.num_pages - num_before < batch.num_pages) break;
  }
  return num_merged;
}

std::uint64_t PrefixIndex::publish_batch_locked(PrefixChain& chain, const Batch& batch, std::span<PageId> pages,
                                                std::span<const RetentionRange> retention) noexcept {
  std::uint64_t num_merged = 0;
  for (std::uint64_t i = 0; i < batch.num_pages; ++i) {
    PageId& mine = pages[chain.num_pages];
    if (mine == kNullPage) break;  // released behind a window
    const Token* const tokens = batch.tokens + i * page_size_;
    const PageId known = find_locked(*chain.name_space, chain.last, batch.hashes[i], tokens);
    if (known == kNullPage) {
      if (pool_->is_published_locked(mine)) break;  // under another prefix, which cannot be unless ids were misstated
      if (is_full_locked(batch.hashes[i])) break;
      insert_locked({*chain.name_space, chain.last, batch.hashes[i], chain.num_pages, false}, mine, tokens);
    } else if (known != mine) {
      if (!pool_->retain_locked(known)) break;
      replace_locked(mine, known);
      ++num_merged;
    }
    if (!retention.empty()) apply_retention_locked(mine, chain.num_pages, retention);
    chain.last = mine;
    chain.hash = batch.hashes[i];
    ++chain.num_pages;
  }
  return num_merged;
}

// A page that holds the same tokens as a published one, which was retained, gives way to it.
void PrefixIndex::replace_locked(PageId& mine, PageId known) noexcept {
  pool_->release_locked(mine);
  mine = known;
  order_.policy().on_hit(known);
  ++stats_.merged_pages;
}

std::uint64_t PrefixIndex::publish_side(PrefixChain& side, const PrefixChain& chain, std::span<const Token> tokens,
                                        std::span<const PageId> chain_pages, std::span<PageId> pages,
                                        std::span<const RetentionRange> retention) noexcept {
  if (side.name_space == nullptr) return 0;
  if (side.num_restarts != chain.num_restarts) {
    side.restart();
    side.num_restarts = chain.num_restarts;
  }
  const std::uint64_t num_full = std::min<std::uint64_t>(chain.num_pages, pages.size());
  std::uint64_t num_merged = 0;
  while (side.num_pages < num_full) {
    const std::uint64_t end = std::min(num_full, side.num_pages + Batch::kMaxPages);
    const std::scoped_lock guard(pool_->lock());
    for (; side.num_pages < end; ++side.num_pages) {
      PageId& mine = pages[side.num_pages];
      const PageId beside = chain_pages[side.num_pages];
      // Released behind a window, or cleared.
      if (mine == kNullPage || beside == kNullPage || !pool_->is_published_locked(beside)) continue;
      const PageId known = find_side_locked(*side.name_space, beside);
      if (known == kNullPage) {
        if (pool_->is_published_locked(mine)) continue;  // which cannot be unless ids were misstated
        const std::uint64_t hash = side_hash(entry(beside).hash, *side.name_space);
        insert_locked({*side.name_space, beside, hash, side.num_pages, true}, mine,
                      tokens.data() + side.num_pages * page_size_);
      } else if (known != mine) {
        if (!pool_->retain_locked(known)) continue;
        replace_locked(mine, known);
        ++num_merged;
      }
      if (!retention.empty()) apply_retention_locked(mine, side.num_pages, retention);
    }
  }
  return num_merged;
}

void PrefixIndex::insert_locked(const Position& position, PageId page, const Token* tokens) noexcept {
  Namespace& name_space = position.name_space;
  const std::uint32_t num_pins = entry(page).num_pins;  // of pins that outlived a clear
  Entry& added = *::new (&entry(page)) Entry();
  added.num_pins = num_pins;
  added.hash = position.hash;
  added.name_space = &name_space;
  added.parent = to_index(position.parent);
  added.is_side = position.is_side;
  std::copy_n(tokens, page_size_, tokens_of(page));
  if (added.is_side) {
    std::int32_t& first = entries_[added.parent].first_side;
    added.next_side = first;
    if (first >= 0) entries_[first].previous_side = to_index(page);
    first = to_index(page);
  } else {
    std::int32_t& bucket = buckets_[bucket_of(added.hash)];
    added.next_in_bucket = bucket - 1;
    bucket = to_index(page) + 1;
    children(name_space, added.parent).insert(to_index(page));
  }

  name_space.num_pages.fetch_add(1, std::memory_order_relaxed);
  ++stats_.published_pages;
  pool_->publish_locked(page);
  order_.add(page);
  order_.policy().on_published({.page = page, .hash = added.hash, .index = position.index});
  events_.push(CacheEventKind::kStored, page, added.hash, parent_hash_locked(added), tokens);
}

// Of the page before, in the same page table; of the namespace for a first page.
std::uint64_t PrefixIndex::parent_hash_locked(const Entry& page) const noexcept {
  const std::int32_t before = page.is_side ? entries_[page.parent].parent : page.parent;
  if (before < 0) return page.name_space->seed;
  return page.is_side ? side_hash(entries_[before].hash, *page.name_space) : entries_[before].hash;
}

// Whether a bucket has so many pages that more would make others wait. Never by chance: it takes equal hashes.
bool PrefixIndex::is_full_locked(std::uint64_t hash) const noexcept {
  std::int32_t at = buckets_[bucket_of(hash)] - 1;
  for (std::uint32_t i = 1; i < kMaxBucketPages && at >= 0; ++i) at = entries_[at].next_in_bucket;
  return at >= 0;
}

void PrefixIndex::leave_bucket_locked(PageId page) noexcept {
  const Entry& gone = entry(page);
  std::int32_t& bucket = buckets_[bucket_of(gone.hash)];
  if (bucket == to_index(page) + 1) {
    bucket = gone.next_in_bucket + 1;
    return;
  }
  std::int32_t before = bucket - 1;
  while (entries_[before].next_in_bucket != to_index(page)) before = entries_[before].next_in_bucket;
  entries_[before].next_in_bucket = gone.next_in_bucket;
}

// Takes a leaf that is in no order out of the index. The pool unpublishes it.
void PrefixIndex::remove_locked(PageId page) noexcept {
  Entry& gone = entry(page);
  PAGEDKV_ASSERT(gone.is_leaf());
  const std::uint64_t parent_hash = parent_hash_locked(gone);
  if (gone.is_side) {
    if (gone.next_side >= 0) entries_[gone.next_side].previous_side = gone.previous_side;
    (gone.previous_side >= 0 ? entries_[gone.previous_side].next_side : entries_[gone.parent].first_side) =
        gone.next_side;
  } else {
    leave_bucket_locked(page);
    children(*gone.name_space, gone.parent).erase(to_index(page));
  }
  const PageId parent{gone.parent};
  if (parent != kNullPage && entry(parent).is_leaf() && order_.is_parked(parent)) order_.unpark(parent);
  // After this the namespace may be forgotten.
  gone.name_space->num_pages.fetch_sub(1, std::memory_order_release);
  --stats_.published_pages;
  events_.push(CacheEventKind::kEvicted, page, gone.hash, parent_hash, nullptr);
}

// The highest priority of all ranges that the page overlaps, and how long it holds.
void PrefixIndex::apply_retention_locked(PageId page, std::uint64_t index,
                                         std::span<const RetentionRange> retention) noexcept {
  const std::uint64_t begin = index * page_size_;
  const RetentionRange* chosen = nullptr;
  for (const RetentionRange& range : retention) {
    const bool overlaps = range.begin_token < begin + page_size_ && begin < range.end_token;
    if (overlaps && (chosen == nullptr || range.priority > chosen->priority)) chosen = &range;
  }
  if (chosen != nullptr) order_.set_priority(page, chosen->priority, chosen->duration_ms);
}

}  // namespace pagedkv::prefix
