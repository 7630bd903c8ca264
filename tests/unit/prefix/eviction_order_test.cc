// The order of eviction against a plain list of what waits where.
#include "prefix/eviction_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <limits>
#include <random>
#include <vector>

#include "memory/os_memory.h"

namespace pagedkv::prefix {
namespace {

constexpr std::uint64_t kNumPages = 40;

std::uint64_t now_ms = 0;
std::uint64_t clock() noexcept { return now_ms; }

/// Says where every page waits, and which one is next.
class NaiveOrder {
 public:
  struct Page {
    std::uint32_t priority = kDefaultRetentionPriority;
    std::uint64_t expires_ms = 0;
  };

  void add(PageId page) { of(page) = {}; }
  void set_priority(PageId page, std::uint32_t priority, std::uint64_t duration_ms) {
    const bool is_for_ever = duration_ms == 0 || duration_ms > std::numeric_limits<std::uint64_t>::max() - now_ms;
    of(page) = {priority, is_for_ever ? 0 : now_ms + duration_ms};
  }
  void insert(PageId page) {
    const bool is_plain = of(page).priority == kDefaultRetentionPriority || is_expired(page);
    (is_plain ? policy : classes[of(page).priority]).push_back(page);
  }
  void withdraw(PageId page) {
    for (std::deque<PageId>& waiting : classes) std::erase(waiting, page);
    for (std::deque<PageId>* const waiting : {&policy, &parked, &ready}) std::erase(*waiting, page);
  }
  PageId choose() {
    if (!ready.empty()) return pop(ready);
    std::vector<PageId> expired;
    for (const std::deque<PageId>& waiting : classes) {
      std::copy_if(waiting.begin(), waiting.end(), std::back_inserter(expired),
                   [this](PageId page) { return is_expired(page); });
    }
    std::sort(expired.begin(), expired.end(),
              [this](PageId a, PageId b) { return of(a).expires_ms < of(b).expires_ms; });
    for (const PageId page : expired) {
      withdraw(page);
      policy.push_back(page);
    }
    for (std::uint32_t priority = 0; priority < classes.size(); ++priority) {
      if (priority == kDefaultRetentionPriority && !policy.empty()) return pop(policy);
      if (!classes[priority].empty()) return pop(classes[priority]);
    }
    return kNullPage;
  }
  void park(PageId page) { parked.push_back(page); }
  void unpark(PageId page) {
    withdraw(page);
    ready.push_back(page);
  }
  [[nodiscard]] bool is_parked(PageId page) const {
    return std::find(parked.begin(), parked.end(), page) != parked.end();
  }

  std::array<std::deque<PageId>, kMaxRetentionPriority + 1> classes;
  std::deque<PageId> policy, parked, ready;

 private:
  Page& of(PageId page) { return pages_[static_cast<std::size_t>(to_index(page))]; }
  bool is_expired(PageId page) { return of(page).expires_ms != 0 && of(page).expires_ms <= now_ms; }
  static PageId pop(std::deque<PageId>& waiting) {
    const PageId page = waiting.front();
    waiting.pop_front();
    return page;
  }
  std::array<Page, kNumPages> pages_;
};

TEST(EvictionOrder, ChoosesAsAPlainListDoes) {
  enum class State { kReferenced, kWaiting, kParked };
  constexpr std::array<std::uint32_t, 10> kPriorities = {0, 1, 34, 35, 36, 63, 64, 65, 99, 100};
  constexpr std::uint64_t kForEver = std::numeric_limits<std::uint64_t>::max();
  now_ms = 1000;
  EvictionOrder order;
  ASSERT_TRUE(order.attach(make_lru_policy().value(), memory::system_memory(), kNumPages, &clock));
  NaiveOrder naive;
  std::array<State, kNumPages> states{};
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(kNumPages); ++i) order.add(PageId{i});
  std::mt19937 random(3);
  for (int op = 0; op < 100'000; ++op) {
    now_ms += random() % 4;
    const std::size_t at = random() % kNumPages;
    const PageId page{static_cast<std::int32_t>(at)};
    ASSERT_EQ(order.is_parked(page), naive.is_parked(page));
    ASSERT_EQ(order.any_parked(), naive.parked.empty() ? kNullPage : naive.parked.front());
    if (random() % 4 == 0) {
      const PageId chosen = order.choose();
      ASSERT_EQ(chosen, naive.choose()) << "operation " << op;
      if (chosen == kNullPage) continue;
      State& state = states[static_cast<std::size_t>(to_index(chosen))];
      state = random() % 3 == 0 ? State::kParked : State::kReferenced;
      if (state == State::kParked) {
        order.park(chosen);
        naive.park(chosen);
      }
    } else if (states[at] == State::kReferenced) {
      if (random() % 3 == 0) {
        order.add(page);
        naive.add(page);
      }
      if (random() % 2 == 0) {
        const std::uint32_t priority = kPriorities[random() % kPriorities.size()];
        // No two pages expire at one moment.
        const std::uint64_t until = (now_ms + random() % 100) / 64 * 64 + 64 + at;
        const std::uint64_t duration_ms = random() % 3 == 0 ? 0 : random() % 8 == 0 ? kForEver : until - now_ms;
        order.set_priority(page, priority, duration_ms);
        naive.set_priority(page, priority, duration_ms);
      }
      if (random() % 8 == 0) now_ms += 100;
      order.insert(page);
      naive.insert(page);
      states[at] = State::kWaiting;
    } else if (states[at] == State::kParked && random() % 2 == 0) {
      order.unpark(page);
      naive.unpark(page);
      states[at] = State::kWaiting;
    } else {
      order.withdraw(page);
      naive.withdraw(page);
      states[at] = State::kReferenced;
    }
  }
}

TEST(EvictionOrder, WithdrawingAPageThatWaitsNowhereIsHarmless) {
  EvictionOrder order;
  ASSERT_TRUE(order.attach(make_lru_policy().value(), memory::system_memory(), 4, &clock));
  order.add(PageId{2});
  order.withdraw(PageId{2});
  EXPECT_EQ(order.choose(), kNullPage);
  EXPECT_EQ(order.any_parked(), kNullPage);
}

TEST(EvictionOrder, APriorityEndsAtTheMomentItsDurationSaysAndNotBefore) {
  now_ms = 100;
  EvictionOrder order;
  ASSERT_TRUE(order.attach(make_lru_policy().value(), memory::system_memory(), 4, &clock));
  const PageId plain{0}, kept{1}, sooner{2};
  for (const PageId page : {plain, kept, sooner}) order.add(page);
  order.set_priority(kept, 80, 50);
  order.set_priority(sooner, 90, 49);
  order.insert(kept);
  order.insert(sooner);
  now_ms = 149;
  order.insert(plain);
  EXPECT_EQ(order.choose(), plain);
  EXPECT_EQ(order.choose(), sooner) << "its priority ended now, behind what was plain before";
  order.insert(plain);
  EXPECT_EQ(order.choose(), plain);
  EXPECT_EQ(order.choose(), kept);
}

}  // namespace
}  // namespace pagedkv::prefix
