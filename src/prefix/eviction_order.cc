// Retention classes around the eviction policy.
#include "prefix/eviction_order.h"

#include <bit>
#include <new>
#include <utility>

#include "core/align.h"
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
                                   std::uint64_t num_pages, std::uint64_t (*clock)() noexcept) noexcept {
  auto standings = memory::PageArray<Standing>::create(os, num_pages);
  if (!standings) return standings.error();
  auto waiting = memory::PageArray<Waiting>::create(os, num_pages);
  if (!waiting) return waiting.error();
  if (policy->is_attached_.exchange(true)) return Error{Errc::kBusy, "the eviction policy serves another cache"};
  Result<void> attached = policy->attach(num_pages);
  if (!attached) {
    policy->is_attached_ = false;
    return attached;
  }
  policy_ = std::move(policy);
  standings_ = std::move(*standings);
  waiting_ = std::move(*waiting);
  now_ms_ = clock;
  return {};
}

void EvictionOrder::set_priority(PageId page, std::uint32_t priority, std::uint64_t duration_ms) noexcept {
  PAGEDKV_ASSERT(standing(page).place == Place::kNowhere && priority <= kMaxRetentionPriority);
  standing(page).priority = static_cast<std::uint8_t>(priority);
  std::uint64_t& expires_ms = waiting_[to_index(page)].expires_ms;
  if (duration_ms == 0 || !checked_add(now_ms_(), duration_ms, expires_ms)) expires_ms = 0;
}

void EvictionOrder::insert(PageId page) noexcept {
  const Standing now = standing(page);
  PAGEDKV_ASSERT(now.place == Place::kNowhere);
  if (now.priority == kDefaultRetentionPriority) [[likely]] {
    enter_policy(page);
    return;
  }
  const std::uint64_t expires_ms = waiting_[to_index(page)].expires_ms;
  if (expires_ms != 0 && expires_ms <= now_ms_()) {
    enter_policy(page);
    return;
  }
  push(classes_[now.priority], page, Place::kClass);
  set_bit(occupied_, now.priority);
  if (expires_ms != 0) expiring_.insert(waiting_[to_index(page)]);
}

void EvictionOrder::withdraw(PageId page) noexcept {
  Waiting& waiting = waiting_[to_index(page)];
  switch (standing(page).place) {
    case Place::kNowhere: return;
    case Place::kPolicy:
      policy_->on_withdrawn(page);
      --num_in_policy_;
      break;
    case Place::kClass: leave_class(page); break;
    case Place::kParked: parked_.erase(parked_.iterator_to(waiting)); break;
    case Place::kReady: ready_.erase(ready_.iterator_to(waiting)); break;
  }
  standing(page).place = Place::kNowhere;
}

PageId EvictionOrder::choose() noexcept {
  if (!ready_.empty()) return pop_front(ready_);
  if (!expiring_.empty()) demote_expired();
  const std::size_t lowest = first_bit(occupied_);
  if (lowest < kDefaultRetentionPriority) return pop_front(classes_[lowest]);
  if (num_in_policy_ > 0) {
    const PageId page = choose_of_policy();
    --num_in_policy_;
    standing(page).place = Place::kNowhere;
    return page;
  }
  return lowest < kNumClasses ? pop_front(classes_[lowest]) : kNullPage;
}

// Policies may be a user's own: a choice that is no candidate is replaced by the candidate of the lowest id.
PageId EvictionOrder::choose_of_policy() noexcept {
  const auto num_pages = static_cast<std::int64_t>(standings_.num_bytes() / sizeof(Standing));
  const auto is_candidate = [this](std::int64_t page) { return standings_[page].place == Place::kPolicy; };
  const PageId chosen = policy_->choose();
  if (to_index(chosen) >= 0 && to_index(chosen) < num_pages && is_candidate(to_index(chosen))) [[likely]]
    return chosen;
  std::int64_t page = 0;
  while (!is_candidate(page)) ++page;  // there is one: num_in_policy_ counts them
  policy_->on_withdrawn(PageId{static_cast<std::int32_t>(page)});
  return PageId{static_cast<std::int32_t>(page)};
}

void EvictionOrder::park(PageId page) noexcept { push(parked_, page, Place::kParked); }

void EvictionOrder::unpark(PageId page) noexcept {
  PAGEDKV_ASSERT(standing(page).place == Place::kParked);
  withdraw(page);
  push(ready_, page, Place::kReady);
}

void EvictionOrder::push(WaitingList& list, PageId page, Place place) noexcept {
  const std::uint64_t expires_ms = waiting_[to_index(page)].expires_ms;
  Waiting& waiting = *::new (&waiting_[to_index(page)]) Waiting();
  waiting.expires_ms = expires_ms;
  waiting.page = page;
  list.push_back(waiting);
  standing(page).place = place;
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
  standing(page).place = Place::kPolicy;
}

void EvictionOrder::leave_class(PageId page) noexcept {
  Waiting& waiting = waiting_[to_index(page)];
  WaitingList& list = classes_[standing(page).priority];
  list.erase(list.iterator_to(waiting));
  if (list.empty()) clear_bit(occupied_, standing(page).priority);
  if (waiting.expires_ms != 0) expiring_.erase(expiring_.iterator_to(waiting));
}

PageId EvictionOrder::pop_front(WaitingList& list) noexcept {
  const PageId page = list.front().page;
  withdraw(page);
  return page;
}

}  // namespace pagedkv::prefix
