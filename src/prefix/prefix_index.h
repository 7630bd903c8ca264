// The exact prefix index: finds pages by namespace and tokens, publishes them, and decides which are taken first.
//
// How cache/ calls it:
//
//   create   once over the pool; it must outlive every use of the pool by the cache (destroy it before the pool).
//   open     chain.name_space = acquire(key);  match(chain, all tokens but the last, table)  retains the pages that it
//            writes to `table`: they are the beginning of the sequence's page table, num_tokens = num_pages *
//            page_size. If `partial` is a page: allocate a page, copy the first partial_tokens tokens of `partial` to
//            it, append it to the table, num_tokens += partial_tokens; then release `partial` in any case.
//   commit   after sequence::commit: publish(chain, held tokens, page table). It may replace entries of the table by
//            pages that hold the same tokens, and has then exchanged the references.
//   fork     copies the chain (sequence/ does).   truncate restarts it (sequence/ does).
//   close    nothing: dropping the chain drops the namespace; releasing pages (tail first) makes them evictable.
//
// Entries form a tree: the parent of a page is the page that holds the tokens before it. A page is only taken when it
// is a leaf, so that everything that can be found can be reached from its beginning, and parent page ids are exact
// keys.
//
// A sequence with several page tables has one chain; the pages of its other tables are side pages, each a leaf beside
// the page of the chain that holds the same tokens. A side page so has an exact identity without the side pages before
// it: those behind a window may be taken while the later ones can be found.
//
// All state lives under the pool's lock, but for namespaces and pins, which have a mutex of their own, taken first.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "memory/page_array.h"
#include "pagedkv/page_pool.h"
#include "pagedkv/prefix_cache.h"
#include "pool/pool_impl.h"
#include "pool/prefix_chain.h"
#include "prefix/entry.h"
#include "prefix/event_ring.h"
#include "prefix/eviction_order.h"
#include "prefix/namespaces.h"
#include "prefix/sibling_tree.h"

namespace pagedkv::prefix {

/// What `match` found. All pages are retained for the caller.
struct Match {
  std::uint64_t num_pages = 0;       ///< Full pages, written to the caller's table.
  PageId partial = kNullPage;        ///< A page whose first tokens continue the match, or kNullPage.
  std::uint32_t partial_tokens = 0;  ///< How many; below page_size.
};

inline constexpr std::uint64_t kMaxEvents = std::uint64_t{1} << 24;

/// Thread-safe.
class PrefixIndex final : public pool::PublishedPages {
 public:
  /// Errors: kInvalidArgument (page_size), kBusy (the pool has an index already), kOutOfMemory, kOsError
  static Result<std::unique_ptr<PrefixIndex>> create(std::shared_ptr<PagePool::Impl> pool, std::uint32_t page_size,
                                                     const PrefixCacheOptions& options) noexcept;
  /// Unpublishes everything and leaves the pool.
  ~PrefixIndex() override;

  /// The namespace of a salt and an extra key, each compared byte for byte. Page tables of one sequence hold other rows
  /// of the same tokens: each has a namespace of its own.
  ///
  /// Errors: kInvalidArgument (longer than kMaxCacheKeyBytes), kOutOfMemory
  Result<std::shared_ptr<Namespace>> acquire(std::string_view cache_salt, std::string_view extra_key,
                                             std::uint64_t page_table = 0) noexcept;

  /// Finds the longest published prefix of `tokens` in the chain's namespace and retains its pages.
  ///
  /// Shape:  pages [tokens.size() / page_size] or more; chain fresh from `acquire`
  /// Result: the chain stands at the last full page
  /// Cost:   below 10 ns a token at page 16. Allocates nothing. Holds the pool's lock for at most 64 pages at a time.
  Match match(PrefixChain& chain, std::span<const Token> tokens, std::span<PageId> pages,
              std::span<const RetentionRange> retention = {}) noexcept;
  /// Finds the side pages [begin, end) of a namespace, from the last to the first until one is missing, and retains
  /// them. Entries that are not kNullPage are there already.
  ///
  /// Shape:  chain and pages alike by position; chain retained by the caller
  /// Result: the first position from which on all up to `end` are there
  std::uint64_t match_side(const Namespace& name_space, std::span<const PageId> chain, std::span<PageId> pages,
                           std::uint64_t begin, std::uint64_t end,
                           std::span<const RetentionRange> retention = {}) noexcept;
  /// Shortens a chain to its first `num_pages` pages.
  void rewind(PrefixChain& chain, std::span<const PageId> pages, std::uint64_t num_pages) noexcept;

  /// Publishes the full pages of a table behind where the chain stands. Pages that hold the same tokens as published
  /// ones are replaced by them in `pages`; the caller's references go along.
  ///
  /// Shape:  tokens: those held, from the first; pages [tokens.size() / page_size] or more
  /// Result: number of pages replaced
  /// Cost:   as `match`
  std::uint64_t publish(PrefixChain& chain, std::span<const Token> tokens, std::span<PageId> pages,
                        std::span<const RetentionRange> retention = {}) noexcept;

  /// Publishes the pages of a side table beside those of the chain, as far as that goes.
  ///
  /// Shape:  tokens, chain_pages and pages from the first on; `chain_pages` are those of `chain`
  /// Result: number of pages replaced
  std::uint64_t publish_side(PrefixChain& side, const PrefixChain& chain, std::span<const Token> tokens,
                             std::span<const PageId> chain_pages, std::span<PageId> pages,
                             std::span<const RetentionRange> retention = {}) noexcept;

  /// Keeps published pages from eviction until they are unpinned; takes over the caller's references.
  ///
  /// Shape:  in the order in which unpinning releases them: tails first
  /// Errors: kNotFound (no pages), kOutOfMemory; the references are dropped then
  Result<PinId> pin(std::vector<PageId> pages) noexcept;
  /// Errors: kNotFound  no such pin; nothing changed
  Result<void> unpin(PinId pin) noexcept;

  /// Makes everything unfindable. Pages in use stay in use.
  void clear() noexcept;
  /// Passes queued events to `callback`, oldest first; returns how many.
  std::uint64_t poll_events(CacheEventCallback callback, void* user) noexcept { return events_.poll(callback, user); }
  /// Without lookups and hits, which the caller counts: it knows whether a partial page could be copied.
  [[nodiscard]] PrefixStats stats() noexcept;

  /// Checks ranges that a caller gave. Errors: kInvalidArgument
  static Result<void> check(std::span<const RetentionRange> retention) noexcept;

  // pool::PublishedPages, under the pool's lock.
  void on_unreferenced(PageId page) noexcept override;
  void on_referenced(PageId page) noexcept override;
  PageId take_victim() noexcept override;

 private:
  struct Batch;
  static constexpr std::uint32_t kMaxBucketPages = 256;
  PrefixIndex(std::shared_ptr<PagePool::Impl> pool, std::uint32_t page_size, const PrefixCacheOptions& options);
  Result<void> allocate(const PrefixCacheOptions& options) noexcept;

  void hash_batch(std::uint64_t seed, const Token* tokens, std::uint64_t num_pages, Batch& batch) const noexcept;
  void prefetch_locked(const Batch& batch) const noexcept;
  [[nodiscard]] PageId find_locked(const Namespace& name_space, PageId parent, std::uint64_t hash,
                                   const Token* tokens) const noexcept;
  std::uint64_t walk(PrefixChain& chain, std::span<const Token> tokens, std::span<PageId> pages,
                     std::span<const RetentionRange> retention) noexcept;
  std::uint64_t match_batch_locked(PrefixChain& chain, const Batch& batch, std::span<PageId> pages,
                                   std::span<const RetentionRange> retention) noexcept;
  void find_partial_locked(const PrefixChain& chain, std::span<const Token> rest, Match& match) noexcept;
  [[nodiscard]] bool stands_locked(const PrefixChain& chain, std::span<const PageId> pages) const noexcept;
  std::uint64_t publish_batch_locked(PrefixChain& chain, const Batch& batch, std::span<PageId> pages,
                                     std::span<const RetentionRange> retention) noexcept;
  /// Where a page goes in the tree.
  struct Position {
    Namespace& name_space;
    PageId parent;        ///< kNullPage: the first page of a prefix.
    std::uint64_t hash;   ///< As PublishedPage::hash.
    std::uint64_t index;  ///< As PublishedPage::index.
    bool is_side;
  };
  [[nodiscard]] PageId find_side_locked(const Namespace& name_space, PageId chain_page) const noexcept;
  void replace_locked(PageId& mine, PageId known) noexcept;
  [[nodiscard]] std::uint64_t parent_hash_locked(const Entry& page) const noexcept;
  void insert_locked(const Position& position, PageId page, const Token* tokens) noexcept;
  [[nodiscard]] bool is_full_locked(std::uint64_t hash) const noexcept;
  void leave_bucket_locked(PageId page) noexcept;
  void remove_locked(PageId page) noexcept;
  void unpin_pages(std::span<const PageId> pages) noexcept;
  void drop_children_locked(PageId page) noexcept;
  void clear_locked() noexcept;
  void apply_retention_locked(PageId page, std::uint64_t index, std::span<const RetentionRange> retention) noexcept;

  /// Whoever knows a salt can search for prompts whose hashes share some bits: which bits choose the bucket is a
  /// secret.
  [[nodiscard]] std::int64_t bucket_of(std::uint64_t hash) const noexcept {
    return static_cast<std::int64_t>(hash * bucket_factor_ >> 1 >> bucket_shift_);
  }
  [[nodiscard]] Entry& entry(PageId page) noexcept { return entries_[to_index(page)]; }
  [[nodiscard]] const Entry& entry(PageId page) const noexcept { return entries_[to_index(page)]; }
  [[nodiscard]] Token* tokens_of(PageId page) noexcept {
    return &tokens_[static_cast<std::int64_t>(to_index(page)) * page_size_];
  }
  [[nodiscard]] const Token* tokens_of(PageId page) const noexcept {
    return &tokens_[static_cast<std::int64_t>(to_index(page)) * page_size_];
  }
  /// The pages that continue a page, or the first pages of a namespace.
  [[nodiscard]] SiblingTree children(Namespace& name_space, std::int32_t parent) noexcept {
    return {&entries_[0], &tokens_[0], page_size_, parent < 0 ? name_space.children : entries_[parent].children};
  }

  const std::shared_ptr<PagePool::Impl> pool_;
  const std::uint32_t page_size_;  // tokens
  std::uint64_t (*const hash_)(const Token*, std::size_t, std::uint64_t) noexcept;
  const std::uint64_t bucket_factor_;  // odd, and the secret of this index

  memory::PageArray<std::int32_t> buckets_;  // [num_buckets] first page + 1 of a hash chain, 0 = none
  unsigned bucket_shift_ = 0;                // 63 - log2(num_buckets)
  memory::PageArray<Entry> entries_;         // [num_pages]
  memory::PageArray<Token> tokens_;          // [num_pages][page_size]
  EvictionOrder order_;
  EventRing events_;
  PrefixStats stats_;  // under the pool's lock
  bool is_installed_ = false;

  Namespaces namespaces_;
  std::mutex pins_mutex_;
  std::unordered_map<std::uint64_t, std::vector<PageId>> pins_;
  std::uint64_t next_pin_ = 1;
};

}  // namespace pagedkv::prefix
