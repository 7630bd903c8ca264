// Finding the longest published prefix of a prompt.
#include <algorithm>
#include <cstring>
#include <mutex>

#include "core/check.h"
#include "prefix/batch.h"
#include "prefix/prefix_index.h"

namespace pagedkv::prefix {

void PrefixIndex::hash_batch(std::uint64_t seed, const Token* tokens, std::uint64_t num_pages,
                             Batch& batch) const noexcept {
  batch.tokens = tokens;
  batch.num_pages = std::min(num_pages, Batch::kMaxPages);
  for (std::uint64_t i = 0; i < batch.num_pages; ++i) {
    seed = hash_(tokens + i * page_size_, page_size_, seed);
    batch.hashes[i] = seed;
  }
}

// A lookup is a chain of cache misses: bucket, entry, tokens. The hashes are known, so that all can be in flight.
void PrefixIndex::prefetch_locked(const Batch& batch) const noexcept {
  for (std::uint64_t i = 0; i < batch.num_pages; ++i) {
    __builtin_prefetch(&buckets_[bucket_of(batch.hashes[i])]);
  }
  for (std::uint64_t i = 0; i < batch.num_pages; ++i) {
    const std::int32_t first = buckets_[bucket_of(batch.hashes[i])];
    if (first == 0) continue;
    __builtin_prefetch(&entries_[first - 1]);
    __builtin_prefetch(tokens_of(PageId{first - 1}));
  }
}

// The page that holds `tokens` behind `parent`: the parent is exact, so that by induction the whole prefix is.
PageId PrefixIndex::find_locked(const Namespace& name_space, PageId parent, std::uint64_t hash,
                                const Token* tokens) const noexcept {
  std::int32_t at = buckets_[bucket_of(hash)] - 1;
  while (at >= 0) {
    const Entry& candidate = entries_[at];
    if (candidate.hash == hash && candidate.parent == to_index(parent) && candidate.name_space == &name_space &&
        std::memcmp(tokens_of(PageId{at}), tokens, page_size_ * sizeof(Token)) == 0) {
      return PageId{at};
    }
    at = candidate.next_in_bucket;
  }
  return kNullPage;
}

Match PrefixIndex::match(PrefixChain& chain, std::span<const Token> tokens, std::span<PageId> pages,
                         std::span<const RetentionRange> retention) noexcept {
  Match match;
  if (chain.name_space == nullptr) return match;
  match.num_pages = walk(chain, tokens, pages, retention);
  const std::scoped_lock guard(pool_->lock());
  find_partial_locked(chain, tokens.subspan(match.num_pages * page_size_), match);
  return match;
}

// Follows full pages as far as they are published, and retains them.
std::uint64_t PrefixIndex::walk(PrefixChain& chain, std::span<const Token> tokens, std::span<PageId> pages,
                                std::span<const RetentionRange> retention) noexcept {
  PAGEDKV_ASSERT(chain.num_pages == 0 && pages.size() >= tokens.size() / page_size_);
  chain.hash = chain.name_space->seed;
  const std::uint64_t num_full = tokens.size() / page_size_;
  Batch batch;
  std::uint64_t num_found = 0;
  std::uint64_t seed = chain.hash;
  while (num_found < num_full) {
    hash_batch(seed, tokens.data() + num_found * page_size_, num_full - num_found, batch);
    seed = batch.hashes[batch.num_pages - 1];
    std::uint64_t num_matched = 0;
    {
      const std::scoped_lock guard(pool_->lock());
      prefetch_locked(batch);
      num_matched = match_batch_locked(chain, batch, pages.subspan(num_found), retention);
    }
    num_found += num_matched;
    if (num_matched < batch.num_pages) break;
  }
  return num_found;
}

std::uint64_t PrefixIndex::match_batch_locked(PrefixChain& chain, const Batch& batch, std::span<PageId> pages,
                                              std::span<const RetentionRange> retention) noexcept {
  for (std::uint64_t i = 0; i < batch.num_pages; ++i) {
    const PageId page = find_locked(*chain.name_space, chain.last, batch.hashes[i], batch.tokens + i * page_size_);
    if (page == kNullPage || !pool_->retain_locked(page)) return i;
    order_.policy().on_hit(page);
    if (!retention.empty()) apply_retention_locked(page, chain.num_pages, retention);
    pages[i] = page;
    chain.last = page;
    chain.hash = batch.hashes[i];
    ++chain.num_pages;
  }
  return batch.num_pages;
}

PageId PrefixIndex::find_side_locked(const Namespace& name_space, PageId chain_page) const noexcept {
  if (!pool_->is_published_locked(chain_page)) return kNullPage;  // cleared meanwhile
  std::int32_t at = entry(chain_page).first_side;
  while (at >= 0 && entries_[at].name_space != &name_space) at = entries_[at].next_side;
  return PageId{at};
}

std::uint64_t PrefixIndex::match_side(const Namespace& name_space, std::span<const PageId> chain,
                                      std::span<PageId> pages, std::uint64_t begin, std::uint64_t end,
                                      std::span<const RetentionRange> retention) noexcept {
  while (end > begin) {
    const std::uint64_t first = end - std::min(end - begin, Batch::kMaxPages);
    const std::scoped_lock guard(pool_->lock());
    for (; end > first; --end) {
      PageId& page = pages[end - 1];
      if (page != kNullPage) continue;
      const PageId found = find_side_locked(name_space, chain[end - 1]);
      if (found == kNullPage || !pool_->retain_locked(found)) return end;
      order_.policy().on_hit(found);
      if (!retention.empty()) apply_retention_locked(found, end - 1, retention);
      page = found;
    }
  }
  return begin;
}

void PrefixIndex::rewind(PrefixChain& chain, std::span<const PageId> pages, std::uint64_t num_pages) noexcept {
  const std::scoped_lock guard(pool_->lock());
  chain.num_pages = num_pages;
  chain.last = num_pages == 0 ? kNullPage : pages[num_pages - 1];
  chain.hash = num_pages == 0 ? chain.name_space->seed : entry(chain.last).hash;
}

// Among the pages that continue the match, the one that shares the most tokens with the rest.
void PrefixIndex::find_partial_locked(const PrefixChain& chain, std::span<const Token> rest, Match& match) noexcept {
  const std::size_t limit = std::min<std::size_t>(rest.size(), page_size_ - 1);
  if (limit == 0) return;
  if (chain.last != kNullPage && !pool_->is_published_locked(chain.last)) return;  // cleared meanwhile
  const SiblingTree::MostAlike best = children(*chain.name_space, to_index(chain.last)).most_alike(rest.first(limit));
  if (best.page < 0 || !pool_->retain_locked(PageId{best.page})) return;
  order_.policy().on_hit(PageId{best.page});
  match.partial = PageId{best.page};
  match.partial_tokens = static_cast<std::uint32_t>(best.num_tokens);
}

}  // namespace pagedkv::prefix
