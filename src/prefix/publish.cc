// Publishing pages: linking them into the tree of prefixes, merging those that hold the same tokens, unlinking.
#include <algorithm>
#include <mutex>
#include <new>

#include "core/check.h"
#include "prefix/batch.h"
#include "prefix/prefix_index.h"

namespace pagedkv::prefix {

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
      insert_locked(chain, mine, batch.hashes[i], tokens);
    } else if (known != mine) {
      if (!pool_->retain_locked(known)) break;
      pool_->release_locked(mine);
      mine = known;
      order_.policy().on_hit(known);
      ++num_merged;
      ++stats_.merged_pages;
    }
    if (!retention.empty()) apply_retention_locked(mine, chain.num_pages, retention);
    chain.last = mine;
    chain.hash = batch.hashes[i];
    ++chain.num_pages;
  }
  return num_merged;
}

void PrefixIndex::insert_locked(const PrefixChain& chain, PageId page, std::uint64_t hash,
                                const Token* tokens) noexcept {
  Namespace& name_space = *chain.name_space;
  std::int32_t& bucket = buckets_[static_cast<std::int64_t>(hash & bucket_mask_)];
  std::int32_t& first = first_child(name_space, to_index(chain.last));
  const std::uint32_t num_pins = entry(page).num_pins;  // of pins that outlived a clear
  Entry& added = *::new (&entry(page)) Entry();
  added.num_pins = num_pins;
  added.hash = hash;
  added.name_space = &name_space;
  added.parent = to_index(chain.last);
  added.next_in_bucket = bucket - 1;
  bucket = to_index(page) + 1;
  added.next_sibling = first;
  if (first >= 0) entries_[first].previous_sibling = to_index(page);
  first = to_index(page);
  std::copy_n(tokens, page_size_, tokens_of(page));

  name_space.num_pages.fetch_add(1, std::memory_order_relaxed);
  ++stats_.published_pages;
  pool_->publish_locked(page);
  order_.add(page);
  order_.policy().on_published({.page = page, .hash = hash, .index = chain.num_pages});
  events_.push(CacheEventKind::kStored, page, hash, chain.num_pages == 0 ? name_space.seed : chain.hash, tokens);
}

// Takes a leaf that is in no order out of the index. The pool unpublishes it.
void PrefixIndex::remove_locked(PageId page) noexcept {
  Entry& gone = entry(page);
  PAGEDKV_ASSERT(gone.first_child < 0);
  std::int32_t& bucket = buckets_[static_cast<std::int64_t>(gone.hash & bucket_mask_)];
  if (bucket == to_index(page) + 1) {
    bucket = gone.next_in_bucket + 1;
  } else {
    std::int32_t before = bucket - 1;
    while (entries_[before].next_in_bucket != to_index(page)) before = entries_[before].next_in_bucket;
    entries_[before].next_in_bucket = gone.next_in_bucket;
  }
  if (gone.next_sibling >= 0) entries_[gone.next_sibling].previous_sibling = gone.previous_sibling;
  if (gone.previous_sibling >= 0) {
    entries_[gone.previous_sibling].next_sibling = gone.next_sibling;
  } else {
    first_child(*gone.name_space, gone.parent) = gone.next_sibling;
  }

  std::uint64_t parent_hash = gone.name_space->seed;
  if (gone.parent >= 0) {
    Entry& parent = entries_[gone.parent];
    parent_hash = parent.hash;
    if (parent.first_child < 0 && order_.is_parked(PageId{gone.parent})) order_.unpark(PageId{gone.parent});
  }
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
