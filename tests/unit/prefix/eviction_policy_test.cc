// The eviction policies against plain queues and lists that do what the papers say, over random loads.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "pagedkv/prefix_cache.h"

namespace pagedkv {
namespace {

constexpr std::uint64_t kNumPages = 12;
constexpr std::uint64_t kNumHashes = 48;

// Far apart in the bits that tell ghosts from each other, and three to a set of the 16 sets of 12 pages.
std::uint64_t hash_of(std::uint64_t prefix) { return (prefix + 1) << 32 | prefix % 16; }

/// Which queue a prefix was evicted from, as long as not more than kNumPages were evicted from it since.
class NaiveGhosts {
 public:
  void remember(std::uint64_t hash, unsigned queue) { evicted_[queue].push_back(hash); }
  std::optional<unsigned> recall(std::uint64_t hash) {
    for (unsigned queue = 0; queue < 2; ++queue) {
      std::vector<std::uint64_t>& all = evicted_[queue];
      const auto begin = all.size() > kNumPages ? all.end() - static_cast<std::ptrdiff_t>(kNumPages) : all.begin();
      const auto found = std::find(begin, all.end(), hash);
      if (found == all.end()) continue;
      *found = 0;
      return queue;
    }
    return std::nullopt;
  }

 private:
  std::array<std::vector<std::uint64_t>, 2> evicted_;
};

struct Naive {
  virtual ~Naive() = default;
  virtual void on_published(PageId page, std::uint64_t hash) = 0;
  virtual void on_hit(PageId page) = 0;
  virtual void on_evictable(PageId page) = 0;
  virtual void on_withdrawn(PageId page) = 0;
  virtual PageId choose() = 0;
};

struct NaiveLru final : Naive {
  void on_published(PageId, std::uint64_t) override {}
  void on_hit(PageId) override {}
  void on_evictable(PageId page) override { queue.push_back(page); }
  void on_withdrawn(PageId page) override { std::erase(queue, page); }
  PageId choose() override {
    const PageId page = queue.front();
    queue.pop_front();
    return page;
  }
  std::deque<PageId> queue;
};

struct NaiveArc final : Naive {
  struct Page {
    std::uint64_t hash = 0;
    unsigned queue = 0;
  };
  Page& of(PageId page) { return pages[static_cast<std::size_t>(to_index(page))]; }
  void on_published(PageId page, std::uint64_t hash) override {
    const std::optional<unsigned> evicted_from = ghosts.recall(hash);
    if (evicted_from == 0U && share < kNumPages) ++share;
    if (evicted_from == 1U && share > 0) --share;
    of(page) = {hash, evicted_from ? 1U : 0U};
  }
  void on_hit(PageId page) override { of(page).queue = 1; }
  void on_evictable(PageId page) override { queues[of(page).queue].push_back(page); }
  void on_withdrawn(PageId page) override { std::erase(queues[of(page).queue], page); }
  PageId choose() override {
    unsigned from = queues[0].size() > share ? 0 : 1;
    if (queues[from].empty()) from = 1 - from;
    const PageId page = queues[from].front();
    queues[from].pop_front();
    ghosts.remember(of(page).hash, from);
    return page;
  }
  std::array<Page, kNumPages> pages;
  std::array<std::deque<PageId>, 2> queues;  // seen once, seen again
  NaiveGhosts ghosts;
  std::uint64_t share = kNumPages / 2;
};

struct NaiveS3Fifo final : Naive {
  struct Page {
    std::uint64_t hash = 0;
    int hits = 0;
    bool is_main = false;
  };
  Page& of(PageId page) { return pages[static_cast<std::size_t>(to_index(page))]; }
  void on_published(PageId page, std::uint64_t hash) override { of(page) = {hash, 0, ghosts.recall(hash).has_value()}; }
  void on_hit(PageId page) override { of(page).hits = std::min(of(page).hits + 1, 3); }
  void on_evictable(PageId page) override { (of(page).is_main ? main : small).push_back(page); }
  void on_withdrawn(PageId page) override { std::erase(of(page).is_main ? main : small, page); }
  PageId choose() override {
    for (;;) {
      const bool from_small = main.empty() || small.size() * 10 > small.size() + main.size();
      std::deque<PageId>& queue = from_small ? small : main;
      const PageId page = queue.front();
      queue.pop_front();
      if (of(page).hits == 0) {
        if (from_small) ghosts.remember(of(page).hash, 0);
        return page;
      }
      of(page).hits = from_small ? 0 : of(page).hits - 1;
      of(page).is_main = true;
      main.push_back(page);
    }
  }
  std::array<Page, kNumPages> pages;
  std::deque<PageId> small, main;
  NaiveGhosts ghosts;
};

// Publishes, finds, drops, refers to and evicts pages at random; both must choose the same pages.
void expect_same_choices(EvictionPolicy& policy, Naive& naive, std::uint64_t num_popular) {
  enum class State { kFree, kReferenced, kCandidate };
  ASSERT_TRUE(policy.attach(kNumPages));
  std::array<State, kNumPages> states{};
  std::array<std::uint64_t, kNumPages> prefixes{};
  std::mt19937 random(5);
  int num_chosen = 0;
  for (int op = 0; op < 60'000; ++op) {
    const std::size_t at = random() % kNumPages;
    const PageId page{static_cast<std::int32_t>(at)};
    switch (states[at]) {
      case State::kFree: {
        const std::uint64_t prefix = random() % (random() % 2 == 0 ? num_popular : kNumHashes);
        bool is_there = false;
        for (std::size_t i = 0; i < kNumPages; ++i) is_there |= states[i] != State::kFree && prefixes[i] == prefix;
        if (is_there) break;
        policy.on_published({.page = page, .hash = hash_of(prefix)});
        naive.on_published(page, hash_of(prefix));
        prefixes[at] = prefix;
        states[at] = State::kReferenced;
        break;
      }
      case State::kReferenced:
        if (random() % 4 == 0) {
          policy.on_hit(page);
          naive.on_hit(page);
        } else {
          policy.on_evictable(page);
          naive.on_evictable(page);
          states[at] = State::kCandidate;
        }
        break;
      case State::kCandidate:
        if (random() % 4 == 0) {
          policy.on_withdrawn(page);
          naive.on_withdrawn(page);
          states[at] = State::kReferenced;
        } else {
          const PageId chosen = policy.choose();
          ASSERT_EQ(chosen, naive.choose()) << "operation " << op;
          ASSERT_EQ(states[static_cast<std::size_t>(to_index(chosen))], State::kCandidate);
          states[static_cast<std::size_t>(to_index(chosen))] = State::kFree;
          ++num_chosen;
        }
    }
  }
  EXPECT_GT(num_chosen, 5'000);
}

TEST(EvictionPolicies, LruChoosesAsAPlainQueueDoes) {
  NaiveLru naive;
  expect_same_choices(*make_lru_policy().value(), naive, 8);
}

// Few popular prefixes: most ghosts are recalled. Many: most are forgotten.
TEST(EvictionPolicies, ArcChoosesAsTwoPlainQueuesWithAMovingShareDo) {
  for (const std::uint64_t num_popular : {3U, 16U, 48U}) {
    NaiveArc naive;
    expect_same_choices(*make_arc_policy().value(), naive, num_popular);
  }
}

TEST(EvictionPolicies, S3FifoChoosesAsTwoPlainQueuesWithAMemoryDo) {
  for (const std::uint64_t num_popular : {3U, 16U, 48U}) {
    NaiveS3Fifo naive;
    expect_same_choices(*make_s3fifo_policy().value(), naive, num_popular);
  }
}

}  // namespace
}  // namespace pagedkv
