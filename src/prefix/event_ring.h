// A bounded ring of cache events: writers overwrite the oldest and never wait for a reader.
#pragma once

#include <cstdint>
#include <vector>

#include "core/spin_lock.h"
#include "pagedkv/prefix_cache.h"
#include "pagedkv/types.h"

namespace pagedkv::prefix {

/// Thread-safe. Its lock may be taken under the pool's lock, never the other way round.
class EventRing {
 public:
  /// Throws std::bad_alloc. Without capacity nothing is recorded.
  void allocate(std::uint64_t capacity, std::uint32_t page_size);

  [[nodiscard]] bool is_on() const noexcept { return !records_.empty(); }
  /// Records an event; `tokens` is [page_size], or null. Some 20 ns.
  void push(CacheEventKind kind, PageId page, std::uint64_t hash, std::uint64_t parent_hash,
            const Token* tokens) noexcept;
  /// Calls back for every event queued at the time of the call without holding the lock, oldest first; returns how
  /// many.
  std::uint64_t poll(CacheEventCallback callback, void* user) noexcept;
  [[nodiscard]] std::uint64_t num_lost() noexcept;
  [[nodiscard]] std::uint64_t num_bytes() const noexcept;

 private:
  struct Record {
    std::uint64_t hash = 0, parent_hash = 0;
    PageId page = kNullPage;
    CacheEventKind kind = CacheEventKind::kStored;
    bool has_tokens = false;
  };

  SpinLock lock_;
  std::vector<Record> records_;  // [capacity]
  std::vector<Token> tokens_;    // [capacity][page_size]
  std::uint32_t page_size_ = 0;
  std::uint64_t next_write_ = 0, next_read_ = 0, num_lost_ = 0;  // sequence numbers
};

}  // namespace pagedkv::prefix
