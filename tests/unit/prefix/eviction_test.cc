// Eviction takes suffixes before prefixes, low priorities before high ones, and otherwise what the policy chooses.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "pagedkv/kv_cache.h"
#include "prefix/prefix_index.h"
#include "support/cached_store.h"

namespace pagedkv {
namespace {

using testing::CachedStore;
using testing::run_of_tokens;

std::uint64_t fake_now_ms = 0;
std::uint64_t fake_clock() noexcept { return fake_now_ms; }

// How many tokens of a prompt could be reused now; changes no order of its own, for the last page found stays oldest.
std::uint64_t cached(CachedStore& c, std::span<const Token> prompt) { return c.open(prompt).num_tokens(); }

void allocate(CachedStore& c, std::size_t count) {
  std::vector<PageId> ids(count);
  ASSERT_TRUE(c.pool().allocate(ids));
}

TEST(Eviction, SuffixesGoBeforePrefixes) {
  CachedStore c(8, 2);
  const auto prompt = run_of_tokens(9);
  {
    Sequence a = c.prefill(prompt);
  }
  allocate(c, 4);  // what is free
  for (std::uint64_t left = 4; left > 0; --left) {
    EXPECT_EQ(c.pool().stats().evictable_pages, left);
    allocate(c, 1);
    const auto rest = run_of_tokens(2 * left + 1);
    EXPECT_EQ(c.index().stats().published_pages, left - 1);
  }
  EXPECT_EQ(cached(c, prompt), 0U);
}

TEST(Eviction, TheLeastRecentlyUsedPrefixGoesFirst) {
  CachedStore c(9, 2);
  const auto old = run_of_tokens(5, 100);
  const auto young = run_of_tokens(5, 200);
  {
    Sequence a = c.prefill(old);
  }
  {
    Sequence b = c.prefill(young);
  }
  {
    Sequence again = c.open(old);
  }  // touched: now the younger one
  allocate(c, 7);
  EXPECT_EQ(cached(c, old), 4U);
  EXPECT_EQ(cached(c, young), 0U);
}

TEST(Eviction, ASharedPrefixOutlivesItsOlderAndItsYoungerSuffix) {
  CachedStore c(10, 2);
  const std::vector<Token> a = {1, 1, 2, 2, 3, 3, 0};
  const std::vector<Token> b = {1, 1, 2, 2, 4, 4, 0};
  {
    Sequence s = c.prefill(a);
  }
  {
    Sequence s = c.prefill(b);
  }
  allocate(c, 8);
  const std::vector<Token> shared = {1, 1, 2, 2, 0};
  EXPECT_EQ(c.index().stats().published_pages, 2U);
  EXPECT_EQ(cached(c, shared), 4U);
}

TEST(Eviction, LowPrioritiesGoBeforeTheDefaultAndHighOnesAfter) {
  CachedStore c(6, 2);
  const RetentionRange low[] = {{.priority = 10}};
  const RetentionRange high[] = {{.priority = 80}};
  const auto kept = run_of_tokens(3, 100);
  const auto plain = run_of_tokens(3, 200);
  const auto cheap = run_of_tokens(3, 300);
  {
    Sequence s = c.prefill(kept, {}, high);
  }
  {
    Sequence s = c.prefill(plain);
  }
  {
    Sequence s = c.prefill(cheap, {}, low);
  }
  allocate(c, 4);
  EXPECT_EQ(c.pool().stats().evictable_pages, 2U);
  EXPECT_EQ(cached(c, cheap), 0U);
  allocate(c, 1);
  EXPECT_EQ(cached(c, plain), 0U);
  EXPECT_EQ(c.index().stats().published_pages, 1U);
}

TEST(Eviction, RetentionHoldsForARangeOfTokens) {
  CachedStore c(6, 2);
  const RetentionRange first_page[] = {{.begin_token = 0, .end_token = 2, .priority = 90}};
  const auto system = run_of_tokens(7, 100);
  const auto other = run_of_tokens(5, 200);
  {
    Sequence s = c.prefill(system, {}, first_page);
  }
  {
    Sequence s = c.prefill(other);
  }
  allocate(c, 5);
  EXPECT_EQ(cached(c, system), 2U) << "the first page alone stays";
}

// Evicts all prompts one page at a time; returns the first tokens of the pages in the order in which they went.
std::vector<Token> order_of_eviction(const std::vector<std::vector<RetentionRange>>& retention) {
  CachedStore c(static_cast<std::uint64_t>(retention.size()) + 1, 2, {.event_capacity = 64, .now_ms = &fake_clock});
  for (std::size_t i = 0; i < retention.size(); ++i) {
    Sequence s = c.prefill(run_of_tokens(3, static_cast<Token>(i * 10)), {}, retention[i]);
  }
  std::vector<PageId> published(retention.size());
  c.index().poll_events(
      [](void* user, const CacheEvent& event) noexcept {
        auto& all = *static_cast<std::vector<PageId>*>(user);
        all[static_cast<std::size_t>(event.tokens[0] / 10)] = event.page;
      },
      &published);
  std::vector<Token> order;
  allocate(c, 1);
  fake_now_ms += 10;
  for (std::size_t i = 0; i < retention.size(); ++i) {
    const PageId gone = c.pool().allocate().value();
    order.push_back(static_cast<Token>(std::find(published.begin(), published.end(), gone) - published.begin()));
  }
  return order;
}

TEST(Eviction, ARangeHoldsForThePagesThatItOverlapsAndNoOthers) {
  fake_now_ms = 0;
  EXPECT_EQ(order_of_eviction({{{.begin_token = 2, .end_token = 9, .priority = 90}},
                               {{.begin_token = 1, .end_token = 2, .priority = 80}},
                               {{.begin_token = 0, .end_token = 1, .priority = 70}},
                               {}}),
            (std::vector<Token>{0, 3, 2, 1}));
}

TEST(Eviction, OfTheRangesOfAPageTheHighestHoldsAndOfEqualOnesTheFirst) {
  fake_now_ms = 0;
  EXPECT_EQ(order_of_eviction({{{.priority = 50}, {.priority = 80}, {.priority = 60}},
                               {{.priority = 70}},
                               {{.priority = 75}, {.priority = 75, .duration_ms = 1}},
                               {{.priority = 85}, {.priority = 40}}}),
            (std::vector<Token>{1, 2, 0, 3}));
}

TEST(Eviction, AReusedPageTakesTheRetentionOfItsLastUser) {
  CachedStore c(4, 2);
  const RetentionRange keep[] = {{.priority = 90}};
  const auto old = run_of_tokens(3, 100);
  {
    Sequence s = c.prefill(old);
  }
  {
    Sequence s = c.prefill(run_of_tokens(3, 200));
  }
  {
    Sequence s = c.open(old, {}, keep);
    EXPECT_EQ(s.num_tokens(), 2U);
  }
  {
    Sequence s = c.prefill(run_of_tokens(3, 300));
  }
  allocate(c, 3);
  EXPECT_EQ(c.index().stats().published_pages, 1U);
  EXPECT_EQ(cached(c, old), 2U);
}

TEST(Eviction, APriorityFallsBackToTheDefaultWhenItsDurationEnds) {
  fake_now_ms = 1000;
  CachedStore c(4, 2, {.now_ms = &fake_clock});
  const RetentionRange for_a_while[] = {{.priority = 80, .duration_ms = 500}};
  const auto kept = run_of_tokens(3, 100);
  const auto plain = run_of_tokens(3, 200);
  {
    Sequence s = c.prefill(kept, {}, for_a_while);
  }
  {
    Sequence s = c.prefill(plain);
  }
  fake_now_ms = 1499;
  allocate(c, 3);
  EXPECT_EQ(c.index().stats().published_pages, 1U);
  {
    Sequence s = c.open(kept);
    EXPECT_EQ(s.num_tokens(), 2U) << "still held above the default";
  }
  CachedStore later(4, 2, {.now_ms = &fake_clock});
  {
    Sequence s = later.prefill(kept, {}, for_a_while);
  }
  {
    Sequence s = later.prefill(plain);
  }
  {
    Sequence s = later.open(plain);
  }
  fake_now_ms = 1999;
  allocate(later, 3);
  EXPECT_EQ(later.index().stats().published_pages, 1U);
  EXPECT_EQ(cached(later, plain), 0U) << "plain was older than the demoted page";
}

TEST(Eviction, AHighSuffixKeepsTheLowPrefixThatItNeeds) {
  CachedStore c(6, 2);
  const RetentionRange ranges[] = {{.begin_token = 0, .end_token = 2, .priority = 0},
                                   {.begin_token = 2, .end_token = 4, .priority = 100}};
  const auto prompt = run_of_tokens(5, 100);
  const auto plain = run_of_tokens(3, 200);
  {
    Sequence s = c.prefill(prompt, {}, ranges);
  }
  {
    Sequence s = c.prefill(plain);
  }
  allocate(c, 4);
  EXPECT_EQ(cached(c, plain), 0U) << "the first page was set aside, being continued";
  EXPECT_EQ(c.pool().stats().evictable_pages, 2U);
  EXPECT_EQ(cached(c, prompt), 4U);
  allocate(c, 1);
  EXPECT_EQ(cached(c, prompt), 2U);
}

TEST(Eviction, WhenOnlyContinuedPagesAreLeftTheyAreTakenAndTheRestCannotBeFound) {
  // A window releases the first page while the sequence goes on to use the second.
  CachedStore c(2, 2);
  Sequence s = c.prefill(run_of_tokens(4));
  PageId& first = s.control()->tables[0].pages[0];
  ASSERT_TRUE(c.pool().release({&first, 1}));
  first = kNullPage;
  EXPECT_EQ(c.pool().stats().evictable_pages, 1U);
  EXPECT_EQ(c.pool().available_pages(), 1U);
  allocate(c, 1);
  EXPECT_EQ(c.index().stats().published_pages, 0U) << "the second page is unreachable without the first";
  EXPECT_EQ(c.pool().stats().evictable_pages, 0U);
  EXPECT_TRUE(c.pool().impl()->is_exclusive(s.pages()[1]));
}

// A policy of a user's: most recently used first.
class MruPolicy final : public EvictionPolicy {
 public:
  Result<void> attach(std::uint64_t num_pages) noexcept override {
    candidates.reserve(num_pages);
    return {};
  }
  void on_published(const PublishedPage& page) noexcept override { published.push_back(page); }
  void on_hit(PageId page) noexcept override { hits.push_back(page); }
  void on_evictable(PageId page) noexcept override { candidates.push_back(page); }
  void on_withdrawn(PageId page) noexcept override { std::erase(candidates, page); }
  PageId choose() noexcept override {
    const PageId page = candidates.back();
    candidates.pop_back();
    return page;
  }
  [[nodiscard]] const char* name() const noexcept override { return "mru"; }
  std::vector<PageId> candidates, hits;
  std::vector<PublishedPage> published;
};

TEST(Eviction, AUsersPolicyChooses) {
  const auto policy = std::make_shared<MruPolicy>();
  CachedStore c(8, 2, {.policy = policy});
  const auto old = run_of_tokens(5, 100);
  const auto young = run_of_tokens(5, 200);
  {
    Sequence a = c.prefill(old);
  }
  {
    Sequence b = c.prefill(young);
  }
  EXPECT_EQ(policy->published.size(), 4U);
  EXPECT_EQ(policy->published[1].index, 1U);
  EXPECT_EQ(policy->candidates.size(), 4U);
  allocate(c, 6);
  EXPECT_EQ(c.index().stats().published_pages, 2U);
  {
    EXPECT_EQ(cached(c, old), 4U) << "although this policy asks for prefixes first, leaves go first";
  }
  EXPECT_EQ(policy->hits.size(), 2U);
}

// A policy with a fault: it chooses what is no candidate.
class LyingPolicy final : public EvictionPolicy {
 public:
  explicit LyingPolicy(PageId answer) : answer_(answer) {}
  Result<void> attach(std::uint64_t) noexcept override { return {}; }
  void on_evictable(PageId page) noexcept override { candidates.push_back(page); }
  void on_withdrawn(PageId page) noexcept override { std::erase(candidates, page); }
  PageId choose() noexcept override { return answer_; }
  [[nodiscard]] const char* name() const noexcept override { return "liar"; }
  std::vector<PageId> candidates;

 private:
  PageId answer_;
};

TEST(Eviction, AChoiceThatIsNoCandidateIsReplacedByOneThatIs) {
  for (const PageId answer : {kNullPage, PageId{0}, PageId{7}, PageId{1 << 30}, PageId{INT32_MIN}}) {
    const auto policy = std::make_shared<LyingPolicy>(answer);
    CachedStore c(8, 2, {.policy = policy});
    {
      Sequence s = c.prefill(run_of_tokens(9));
    }
    allocate(c, 4);  // what is free, page 7 among it
    for (std::uint64_t left = 4; left > 0; --left) {
      EXPECT_EQ(c.pool().stats().evictable_pages, left);
      allocate(c, 1);
    }
    EXPECT_EQ(c.index().stats().published_pages, 0U);
    EXPECT_LE(policy->candidates.size(), 1U) << "it was told of every page but one that it chose rightly";
  }
}

// Tokens of a popular prompt that survive many prompts that come once.
std::uint64_t survivors_of_a_scan(std::shared_ptr<EvictionPolicy> policy) {
  CachedStore c(24, 2, {.policy = std::move(policy)});
  const auto popular = run_of_tokens(5, 100);
  {
    Sequence s = c.prefill(popular);
  }
  {
    Sequence s = c.open(popular);
  }
  for (Token i = 0; i < 40; ++i) {
    Sequence s = c.prefill(run_of_tokens(5, 1000 + 10 * i));
  }
  return cached(c, popular);
}

TEST(Eviction, S3FifoAndArcKeepWhatWasFoundAgainThroughAScanThatPushesItOutOfAnLru) {
  EXPECT_EQ(survivors_of_a_scan(make_s3fifo_policy().value()), 4U);
  EXPECT_EQ(survivors_of_a_scan(make_arc_policy().value()), 4U);
  EXPECT_EQ(survivors_of_a_scan(make_lru_policy().value()), 0U);
}

TEST(Eviction, LoweringTheCapacityEvictsInOrder) {
  CachedStore c(8, 2);
  const auto old = run_of_tokens(5, 100);
  const auto young = run_of_tokens(5, 200);
  {
    Sequence a = c.prefill(old);
  }
  {
    Sequence b = c.prefill(young);
  }
  ASSERT_TRUE(c.pool().set_capacity(2));
  EXPECT_EQ(c.pool().stats().evictable_pages, 2U);
  EXPECT_EQ(c.pool().stats().evictions, 2U);
  EXPECT_EQ(cached(c, young), 4U);
}

TEST(Eviction, APolicyServesOneCache) {
  for (const auto& policy : {make_lru_policy().value(), make_arc_policy().value(), make_s3fifo_policy().value()}) {
    KvCacheOptions options;
    options.shape = {.num_layers = 1, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 8};
    options.capacity_pages = 4;
    options.prefix.policy = policy;
    const KvCache cache = KvCache::create(options).value();
    EXPECT_EQ(KvCache::create(options).error(), Errc::kBusy);
    EXPECT_EQ(KvCache::create(cache.options()).error(), Errc::kBusy);
  }
}

TEST(Eviction, PoliciesSayTheirNames) {
  EXPECT_STREQ(make_lru_policy().value()->name(), "lru");
  EXPECT_STREQ(make_arc_policy().value()->name(), "arc");
  EXPECT_STREQ(make_s3fifo_policy().value()->name(), "s3fifo");
}

}  // namespace
}  // namespace pagedkv
