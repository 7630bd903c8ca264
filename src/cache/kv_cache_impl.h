// The inside of KvCache: one pool, one store of sequences, the layout of a page, and counters.
//
// Layer: cache.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "cache/config.h"
#include "cache/prefix_sharing.h"
#include "core/spin_lock.h"
#include "pagedkv/kv_cache.h"
#include "pagedkv/page_pool.h"
#include "pagedkv/sequence.h"

namespace pagedkv {

struct PAGEDKV_LOCAL KvCache::Impl {
  /// Errors: as KvCache::create
  static Result<std::shared_ptr<Impl>> create(const KvCacheOptions& options) noexcept;

  Impl(std::unique_ptr<const cache::Config> checked, PagePool page_pool, SequenceStore sequence_store,
       std::unique_ptr<cache::PrefixSharing> prefix_sharing) noexcept;
  ~Impl();

  /// A step that ended before, whose arrays have grown already, or a new one. Null if there is no memory.
  [[nodiscard]] std::unique_ptr<Step::Impl> take_step() noexcept;
  /// Keeps an ended step for `take_step`, or frees it when enough are kept.
  void put_step(std::unique_ptr<Step::Impl> step) noexcept;
  /// Frees the steps that are kept, which have room for the largest batches that they were.
  void drop_idle_steps() noexcept;

  /// Where the pages begin: as the store has it, since the caller may move `pool` away.
  [[nodiscard]] std::byte* base() const noexcept;

  const std::unique_ptr<const cache::Config> config;
  PagePool pool;
  SequenceStore store;
  const std::unique_ptr<cache::PrefixSharing> prefixes;  ///< Null without a prefix cache.

  // Relaxed: each is exact, but a snapshot may lie between two.
  std::atomic<std::uint64_t> steps_begun{0}, steps_committed{0}, steps_rolled_back{0}, tokens_committed{0};

 private:
  static constexpr std::size_t kMaxIdleSteps = 8;  // steps in flight at once are few: one a serving thread
  SpinLock idle_steps_lock_;
  std::array<std::unique_ptr<Step::Impl>, kMaxIdleSteps> idle_steps_;
  std::size_t num_idle_steps_ = 0;
};

}  // namespace pagedkv
