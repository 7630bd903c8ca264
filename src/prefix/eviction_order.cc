// Retention classes around the eviction policy.
#include "prefix/eviction_order.h"

#include <bit>
#include <utility>

#include "core/check.h"

namespace pagedkv::prefix {

namespace {

void set_bit(std::array<std::uint64_t, 2>& bits, std::size_t i) noexcept { bits[i / 64] |= std::uint64_t{1} << i % 64; }
void clear_bit(std::array<std::uint64_t, 2>& bits, std::size_t i) noexcept {
  bits[i / 64] &= ~(std::uint64_t{1} << i % 64);
}
// The first set bit, or 128.
std::size_t first_bit(const std::array<std::uint64_t, 2>& bits) noexcept {
  if (bits[0] != 0) return static_cast<std::size_t>(std::countr_zero(bits[0]));
  return 64 + static_cast<std::size_t>(std::countr_zero(bits[1]));
}

}  // namespace

void EvictionOrder::attach(std::shared_ptr<EvictionPolicy> policy, memory::PageArray<Entry>& entries,
                           std::uint64_t (*clock)() noexcept) noexcept {
  policy_ = std::move(policy);
  entries_ = &entries;
  now_ms_ = clock;
}

void EvictionOrder::insert(Entry& entry) noexcept {
  PAGEDKV_ASSERT(entry.place == Place::kNowhere);
  const bool is_special = entry.priority != kDefaultRetentionPriority;
  if (!is_special || (entry.expires_ms != 0 && entry.expires_ms <= now_ms_())) {
    enter_policy(entry);
    return;
  }
  classes_[entry.priority].push_back(entry);
  set_bit(occupied_, entry.priority);
  if (entry.expires_ms != 0) expiring_.insert(entry);
  entry.place = Place::kClass;
}

void EvictionOrder::withdraw(Entry& entry) noexcept {
  switch (entry.place) {
    case Place::kNowhere: return;
    case Place::kPolicy:
      policy_->on_withdrawn(PageId{entry.page});
      --num_in_policy_;
      break;
    case Place::kClass: leave_class(entry); break;
    case Place::kParked: parked_.erase(parked_.iterator_to(entry)); break;
    case Place::kReady: ready_.erase(ready_.iterator_to(entry)); break;
  }
  entry.place = Place::kNowhere;
}

Entry* EvictionOrder::choose() noexcept {
  if (!ready_.empty()) {
    Entry& entry = ready_.front();
    withdraw(entry);
    return &entry;
  }
  if (!expiring_.empty()) demote_expired();
  const std::size_t lowest = first_bit(occupied_);
  if (lowest < kDefaultRetentionPriority) return pop_class(lowest);
  if (num_in_policy_ > 0) {
    Entry& entry = (*entries_)[to_index(policy_->choose())];
    PAGEDKV_ASSERT(entry.place == Place::kPolicy);
    --num_in_policy_;
    entry.place = Place::kNowhere;
    return &entry;
  }
  return lowest < kNumClasses ? pop_class(lowest) : nullptr;
}

void EvictionOrder::park(Entry& entry) noexcept {
  parked_.push_back(entry);
  entry.place = Place::kParked;
}

void EvictionOrder::unpark(Entry& entry) noexcept {
  PAGEDKV_ASSERT(entry.place == Place::kParked);
  parked_.erase(parked_.iterator_to(entry));
  ready_.push_back(entry);
  entry.place = Place::kReady;
}

void EvictionOrder::demote_expired() noexcept {
  const std::uint64_t now = now_ms_();
  while (!expiring_.empty() && expiring_.begin()->expires_ms <= now) {
    Entry& entry = *expiring_.begin();
    leave_class(entry);
    enter_policy(entry);
  }
}

void EvictionOrder::enter_policy(Entry& entry) noexcept {
  policy_->on_evictable(PageId{entry.page});
  ++num_in_policy_;
  entry.place = Place::kPolicy;
}

void EvictionOrder::leave_class(Entry& entry) noexcept {
  EntryList& list = classes_[entry.priority];
  list.erase(list.iterator_to(entry));
  if (list.empty()) clear_bit(occupied_, entry.priority);
  if (entry.expires_ms != 0) expiring_.erase(expiring_.iterator_to(entry));
}

Entry* EvictionOrder::pop_class(std::size_t priority) noexcept {
  Entry& entry = classes_[priority].front();
  withdraw(entry);
  return &entry;
}

}  // namespace pagedkv::prefix
