// The prefix cache of a KvCache: one prefix index, the chain of one page table of a sequence, and side pages of others.
//
// The chain is that of the table with the widest window: its pages say which tokens they hold, from the first on. The
// pages of the other tables are found beside them (prefix/prefix_index.h). A prefix counts as found as far as the chain
// goes and every other table has the pages that the next token sees: all, or those of its window and of its sinks.
// Tables hold other layers of the same tokens, so each has a namespace of its own in the index.
//
// Layer: cache.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/page_layout.h"
#include "pagedkv/kv_cache.h"
#include "prefix/prefix_index.h"
#include "sequence/control.h"
#include "sequence/sequence_store.h"

namespace pagedkv::cache {

/// Thread-safe; a sequence belongs to one thread at a time.
class PrefixSharing {
 public:
  /// Errors: kInvalidArgument (options out of range), kOutOfMemory, kOsError; those of the policy's `attach`
  static Result<std::unique_ptr<PrefixSharing>> create(const SequenceStore::Impl& store, const PageLayout& layout,
                                                       const PrefixCacheOptions& options) noexcept;

  /// Gives a fresh sequence its namespace, the ids of its prompt, and the longest published prefix of all but the last.
  ///
  /// Errors: kInvalidArgument (keys or retention out of range), kOutOfMemory; the sequence may hold any part then
  Result<void> adopt(Sequence::Control& control, std::span<const Token> tokens, const OpenOptions& options) noexcept;

  /// Publishes the full pages among the first `num_tokens` tokens, as far as their ids are known. Call it before the
  /// commit of these tokens, which releases what lies behind windows.
  void publish(Sequence::Control& control, std::uint64_t num_tokens) noexcept;

  /// As KvCache.
  Result<PinId> pin(std::span<const Token> tokens, const OpenOptions& options) noexcept;
  Result<void> unpin(PinId pin) noexcept { return index_->unpin(pin); }
  void clear() noexcept { index_->clear(); }
  std::uint64_t poll_events(CacheEventCallback callback, void* user) noexcept {
    return index_->poll_events(callback, user);
  }
  [[nodiscard]] PrefixStats stats() noexcept;

 private:
  using Tables = std::span<sequence::PageTable>;

  PrefixSharing(const SequenceStore::Impl& store, const PageLayout& layout, std::unique_ptr<prefix::PrefixIndex> index);
  Result<void> acquire(Tables tables, std::span<const Token> tokens, const OpenOptions& options);
  prefix::Match match_all(Tables tables, std::span<const Token> tokens,
                          std::span<const RetentionRange> retention) noexcept;
  std::uint64_t match_side(Tables tables, std::size_t table, std::uint64_t num_pages,
                           std::span<const RetentionRange> retention) noexcept;
  std::uint32_t copy_partial(Sequence::Control& control, const prefix::Match& match) noexcept;

  const std::shared_ptr<PagePool::Impl> pool_;
  const std::vector<LayerGroup> tables_;
  const std::size_t chain_table_;  // the one of the widest window
  const PageLayout layout_;
  const std::unique_ptr<prefix::PrefixIndex> index_;
  std::atomic<std::uint64_t> lookups_{0}, lookup_tokens_{0}, hit_tokens_{0};
};

}  // namespace pagedkv::cache
