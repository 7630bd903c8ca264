// The order in which unreferenced published pages are taken: by retention priority, within the default one by policy.
#pragma once

#include <array>
#include <boost/intrusive/list.hpp>
#include <boost/intrusive/set.hpp>
#include <cstdint>
#include <memory>

#include "memory/page_array.h"
#include "pagedkv/prefix_cache.h"
#include "pagedkv/types.h"

namespace pagedkv::prefix {

/// Where an unreferenced page waits to be taken.
enum class Place : std::uint8_t {
  kNowhere,  ///< Referenced, or being taken.
  kPolicy,   ///< A candidate of the eviction policy.
  kClass,    ///< In the list of its retention priority.
  kParked,   ///< Chosen already, but pages that continue it are published.
  kReady,    ///< Chosen already, and a leaf by now.
};

/// Under the pool's lock. O(1), but for pages with a retention duration: O(log of their number).
class EvictionOrder {
 public:
  /// Errors: kOsError, or what the policy says
  Result<void> attach(std::shared_ptr<EvictionPolicy> policy, memory::OsMemory& os, std::uint64_t num_pages,
                      std::uint64_t (*clock)() noexcept) noexcept;

  /// A page was published: it is referenced, with the default priority.
  void add(PageId page) noexcept { standings_[to_index(page)] = {}; }
  /// Sets the priority of a referenced page, for a time (0 = for ever).
  void set_priority(PageId page, std::uint32_t priority, std::uint64_t duration_ms) noexcept;

  /// A page became evictable.
  void insert(PageId page) noexcept;
  /// A page is not evictable any more. Harmless if it was not.
  void withdraw(PageId page) noexcept;
  /// Takes the next page out of the order; kNullPage if only parked ones are left.
  PageId choose() noexcept;
  /// Sets a chosen page aside until `unpark`.
  void park(PageId page) noexcept;
  /// A parked page became a leaf: it is next.
  void unpark(PageId page) noexcept;
  /// Some parked page, or kNullPage.
  [[nodiscard]] PageId any_parked() const noexcept { return parked_.empty() ? kNullPage : parked_.front().page; }

  [[nodiscard]] EvictionPolicy& policy() noexcept { return *policy_; }
  [[nodiscard]] bool is_parked(PageId page) const noexcept {
    return standings_[to_index(page)].place == Place::kParked;
  }
  [[nodiscard]] std::uint64_t num_bytes() const noexcept { return standings_.num_bytes() + waiting_.num_bytes(); }

 private:
  static constexpr std::size_t kNumClasses = kMaxRetentionPriority + 1;
  using NormalLink = boost::intrusive::link_mode<boost::intrusive::normal_link>;

  // Two bytes a page, so that references come and go without a miss a page.
  struct Standing {
    Place place = Place::kNowhere;
    std::uint8_t priority = kDefaultRetentionPriority;
  };
  // A page with a priority of its own, or one that waits outside the policy.
  struct Waiting {
    boost::intrusive::list_member_hook<NormalLink> list_hook;  // of its class, of the parked or of the ready pages
    boost::intrusive::set_member_hook<NormalLink, boost::intrusive::optimize_size<true>> expiry_hook;
    std::uint64_t expires_ms = 0;  // when the priority falls back to the default; 0 = never
    PageId page = kNullPage;
  };
  struct ExpiresEarlier {
    bool operator()(const Waiting& a, const Waiting& b) const noexcept { return a.expires_ms < b.expires_ms; }
  };
  using WaitingList =
      boost::intrusive::list<Waiting,
                             boost::intrusive::member_hook<Waiting, decltype(Waiting::list_hook), &Waiting::list_hook>,
                             boost::intrusive::constant_time_size<false>>;
  using ExpirySet = boost::intrusive::multiset<
      Waiting, boost::intrusive::member_hook<Waiting, decltype(Waiting::expiry_hook), &Waiting::expiry_hook>,
      boost::intrusive::compare<ExpiresEarlier>, boost::intrusive::constant_time_size<false>>;

  [[nodiscard]] Standing& standing(PageId page) noexcept { return standings_[to_index(page)]; }
  void push(WaitingList& list, PageId page, Place place) noexcept;
  void demote_expired() noexcept;
  void enter_policy(PageId page) noexcept;
  void leave_class(PageId page) noexcept;
  PageId choose_of_policy() noexcept;
  PageId pop_front(WaitingList& list) noexcept;

  std::shared_ptr<EvictionPolicy> policy_;
  memory::PageArray<Standing> standings_;  // [num_pages]
  memory::PageArray<Waiting> waiting_;     // [num_pages], constructed when a page comes to wait
  std::uint64_t (*now_ms_)() noexcept = nullptr;
  std::uint64_t num_in_policy_ = 0;
  std::array<WaitingList, kNumClasses> classes_;  // least recently used first; the default class stays empty
  std::array<std::uint64_t, 2> occupied_ = {};    // a bit a class: not empty
  ExpirySet expiring_;
  WaitingList parked_, ready_;
};

}  // namespace pagedkv::prefix
