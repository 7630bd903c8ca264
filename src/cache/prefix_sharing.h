// The prefix cache of a KvCache: one prefix index, and a chain of published pages for each page table of a sequence.
//
// A prefix counts as found only as far as every table has it. Tables hold other layers of the same tokens, so each has
// a namespace of its own in the index.
//
// Layer: cache.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
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
  Result<void> unpin(PinId pin) noexcept;
  void clear() noexcept { index_->clear(); }
  std::uint64_t poll_events(CacheEventCallback callback, void* user) noexcept {
    return index_->poll_events(callback, user);
  }
  [[nodiscard]] PrefixStats stats() noexcept;

 private:
  using Matches = std::vector<prefix::Match>;  // [tables]

  PrefixSharing(const SequenceStore::Impl& store, const PageLayout& layout, std::unique_ptr<prefix::PrefixIndex> index);
  std::uint64_t match_all(Sequence::Control& control, std::span<const Token> tokens, Matches& matches) noexcept;
  std::uint32_t copy_partial(Sequence::Control& control, const Matches& matches) noexcept;
  void release(const Sequence::Control& control, const Matches& matches) noexcept;

  const std::shared_ptr<PagePool::Impl> pool_;
  const std::vector<LayerGroup> tables_;
  const PageLayout layout_;
  const std::unique_ptr<prefix::PrefixIndex> index_;
  std::atomic<std::uint64_t> lookups_{0}, lookup_tokens_{0}, hit_tokens_{0};

  std::mutex pins_mutex_;
  std::unordered_map<std::uint64_t, std::vector<PinId>> pins_;  // pins of the tables, by the pin given out
  std::uint64_t next_pin_ = 1;
};

}  // namespace pagedkv::cache
