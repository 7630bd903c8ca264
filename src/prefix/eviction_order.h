// The order in which unreferenced published pages are taken: by retention priority, within the default one by policy.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "memory/page_array.h"
#include "pagedkv/prefix_cache.h"
#include "prefix/entry.h"

namespace pagedkv::prefix {

/// Under the pool's lock. O(1), but for pages with a retention duration: O(log of their number).
class EvictionOrder {
 public:
  void attach(std::shared_ptr<EvictionPolicy> policy, memory::PageArray<Entry>& entries,
              std::uint64_t (*clock)() noexcept) noexcept;

  /// A page became evictable.
  void insert(Entry& entry) noexcept;
  /// A page is not evictable any more. Harmless if it was not.
  void withdraw(Entry& entry) noexcept;
  /// Takes the next page out of the order; null if only parked ones are left.
  Entry* choose() noexcept;
  /// Sets a chosen page aside until `unpark`.
  void park(Entry& entry) noexcept;
  /// A parked page became a leaf: it is next.
  void unpark(Entry& entry) noexcept;
  /// Some parked page, or null.
  [[nodiscard]] Entry* any_parked() noexcept { return parked_.empty() ? nullptr : &parked_.front(); }

  [[nodiscard]] EvictionPolicy& policy() noexcept { return *policy_; }
  [[nodiscard]] std::uint64_t now_ms() const noexcept { return now_ms_(); }

 private:
  static constexpr std::size_t kNumClasses = kMaxRetentionPriority + 1;

  void demote_expired() noexcept;
  void enter_policy(Entry& entry) noexcept;
  void leave_class(Entry& entry) noexcept;
  Entry* pop_class(std::size_t priority) noexcept;

  std::shared_ptr<EvictionPolicy> policy_;
  memory::PageArray<Entry>* entries_ = nullptr;
  std::uint64_t (*now_ms_)() noexcept = nullptr;
  std::uint64_t num_in_policy_ = 0;
  std::array<EntryList, kNumClasses> classes_;  // least recently used first; the default class stays empty
  std::array<std::uint64_t, 2> occupied_ = {};  // a bit a class: not empty
  ExpirySet expiring_;
  EntryList parked_, ready_;
};

}  // namespace pagedkv::prefix
