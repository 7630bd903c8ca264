// Retention classes around the eviction policy.
#include "prefix/eviction_order.h"

#include <bit>
#include <new>
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

Result<void> EvictionOrder::attach(std::shared_ptr<EvictionPolicy> policy, memory::OsMemory& os,
                                   std::uint64_t num_pages, memory::PageArray<Entry>& entries,
                                   std::uint64_t (*clock)() noexcept) noexcept {
  auto waiting = memory::PageArray<Waiting>::create(os, num_pages);
  if (!waiting) return waiting.error();
  Result<void> attached = policy->attach(num_pages);
  if (!attached) return attached;
  policy_ = std::move(policy);
  waiting_ = std::move(*waiting);
  entries_ = &entries;
  now_ms_ = clock;
  return {};
}

void EvictionOrder::insert(PageId page) noexcept {
  const Entry& e = entry(page);
  PAGEDKV_ASSERT(e.place == Place::kNowhere);
  const bool is_special = e.priority != kDefaultRetentionPriority;
  if (!is_special || (e.expires_ms != 0 && e.expires_ms <= now_ms_())) [[likely]] {
    enter_policy(page);
    return;
  }
  push(classes_[e.priority], page, Place::kClass);
  set_bit(occupied_, e.priority);
  if (e.expires_ms != 0) expiring_.insert(waiting_[to_index(page)]);
}

void EvictionOrder::withdraw(PageId page) noexcept {
  Waiting& waiting = waiting_[to_index(page)];
  switch (entry(page).place) {
    case Place::kNowhere: return;
    case Place::kPolicy:
      policy_->on_withdrawn(page);
      --num_in_policy_;
      break;
    case Place::kClass: leave_class(page); break;
    case Place::kParked: parked_.erase(parked_.iterator_to(waiting)); break;
    case Place::kReady: ready_.erase(ready_.iterator_to(waiting)); break;
  }
  entry(page).place = Place::kNowhere;
}

PageId EvictionOrder::choose() noexcept {
  if (!ready_.empty()) return pop_front(ready_);
  if (!expiring_.empty()) demote_expired();
  const std::size_t lowest = first_bit(occupied_);
  if (lowest < kDefaultRetentionPriority) return pop_front(classes_[lowest]);
  if (num_in_policy_ > 0) {
    const PageId page = policy_->choose();
    PAGEDKV_ASSERT(entry(page).place == Place::kPolicy);
    --num_in_policy_;
    entry(page).place = Place::kNowhere;
    return page;
  }
  return lowest < kNumClasses ? pop_front(classes_[lowest]) : kNullPage;
}

void EvictionOrder::park(PageId page) noexcept { push(parked_, page, Place::kParked); }

void EvictionOrder::unpark(PageId page) noexcept {
  PAGEDKV_ASSERT(entry(page).place == Place::kParked);
  withdraw(page);
  push(ready_, page, Place::kReady);
}

void EvictionOrder::push(WaitingList& list, PageId page, Place place) noexcept {
  Waiting& waiting = *::new (&waiting_[to_index(page)]) Waiting();
  waiting.expires_ms = entry(page).expires_ms;
  waiting.page = page;
  list.push_back(waiting);
  entry(page).place = place;
}

void EvictionOrder::demote_expired() noexcept {
  const std::uint64_t now = now_ms_();
  while (!expiring_.empty() && expiring_.begin()->expires_ms <= now) {
    const PageId page = expiring_.begin()->page;
    leave_class(page);
    enter_policy(page);
  }
}

void EvictionOrder::enter_policy(PageId page) noexcept {
  policy_->on_evictable(page);
  ++num_in_policy_;
  entry(page).place = Place::kPolicy;
}

void EvictionOrder::leave_class(PageId page) noexcept {
  Waiting& waiting = waiting_[to_index(page)];
  WaitingList& list = classes_[entry(page).priority];
  list.erase(list.iterator_to(waiting));
  if (list.empty()) clear_bit(occupied_, entry(page).priority);
  if (waiting.expires_ms != 0) expiring_.erase(expiring_.iterator_to(waiting));
}

PageId EvictionOrder::pop_front(WaitingList& list) noexcept {
  const PageId page = list.front().page;
  withdraw(page);
  return page;
}

}  // namespace pagedkv::prefix
