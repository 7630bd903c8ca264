// The prefix index finds exactly what was published under the same namespace, merges, pins, clears and tells of it.
#include "prefix/prefix_index.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/cached_store.h"
#include "support/guarded_memory.h"

namespace pagedkv {
namespace {

using testing::CachedStore;
using testing::run_of_tokens;

std::vector<PageId> pages_of(const Sequence& s) { return {s.pages().begin(), s.pages().end()}; }

std::uint64_t same_hash(const Token*, std::size_t, std::uint64_t) noexcept { return 7; }

TEST(PrefixIndex, FindsTheLongestPublishedPrefixOfFullPages) {
  CachedStore c(32, 4);
  const auto prompt = run_of_tokens(17);
  Sequence first = c.prefill(prompt);
  Sequence second = c.open(prompt);
  EXPECT_EQ(second.num_tokens(), 16U);
  EXPECT_EQ(second.cached_tokens(), 16U);
  EXPECT_EQ(pages_of(second), std::vector<PageId>(first.pages().begin(), first.pages().begin() + 4));
  EXPECT_EQ(c.pool().stats().shared_pages, 4U);
}

TEST(PrefixIndex, NeverFindsTheLastToken) {
  CachedStore c(32, 4);
  Sequence first = c.prefill(run_of_tokens(16));
  Sequence second = c.open(run_of_tokens(16));
  EXPECT_EQ(second.num_tokens(), 15U) << "three full pages, and three tokens copied of the fourth";
  EXPECT_EQ(c.open(run_of_tokens(1)).num_tokens(), 0U);
  EXPECT_EQ(c.open({}).num_tokens(), 0U);
}

TEST(PrefixIndex, FindsWhatNobodyRefersToAnyMore) {
  CachedStore c(32, 4);
  {
    Sequence first = c.prefill(run_of_tokens(17));
  }
  EXPECT_EQ(c.pool().stats().evictable_pages, 4U);
  EXPECT_EQ(c.pool().stats().used_pages, 0U);
  Sequence second = c.open(run_of_tokens(17));
  EXPECT_EQ(second.num_tokens(), 16U);
  EXPECT_EQ(c.pool().stats().evictable_pages, 0U);
}

TEST(PrefixIndex, ADifferenceInTheMiddleEndsTheMatch) {
  CachedStore c(32, 4);
  Sequence first = c.prefill(run_of_tokens(17));
  auto other = run_of_tokens(17);
  other[5] = 99;
  Sequence second = c.open(other);
  EXPECT_EQ(second.num_tokens(), 5U) << "one page, and one token copied";
  EXPECT_EQ(c.value(second, 4), c.value(first, 4));
  EXPECT_NE(second.pages()[1], first.pages()[1]);
}

TEST(PrefixIndex, TheSameTokensBehindAnotherPrefixAreAnotherPage) {
  CachedStore c(32, 2);
  const std::vector<Token> a = {1, 1, 5, 5, 0};
  const std::vector<Token> b = {2, 2, 5, 5, 0};
  Sequence first = c.prefill(a);
  Sequence second = c.prefill(b);
  EXPECT_EQ(second.cached_tokens(), 0U);
  EXPECT_NE(first.pages()[1], second.pages()[1]);
}

TEST(PrefixIndex, NamespacesAreSeparateCompletely) {
  CachedStore c(64, 4);
  Sequence first = c.prefill(run_of_tokens(17), "tenant a");
  EXPECT_EQ(c.open(run_of_tokens(17), "tenant b").num_tokens(), 0U);
  EXPECT_EQ(c.open(run_of_tokens(17)).num_tokens(), 0U);
  EXPECT_EQ(c.open(run_of_tokens(17), "tenant a").num_tokens(), 16U);
}

TEST(PrefixIndex, SaltAndExtraKeyAreFramedByTheirLengths) {
  CachedStore c(8, 4);
  auto& index = c.index();
  EXPECT_NE(index.acquire("ab", "c").value(), index.acquire("a", "bc").value());
  EXPECT_NE(index.acquire("ab", "").value(), index.acquire("", "ab").value());
  EXPECT_NE(index.acquire(std::string("a\0", 2), "").value(), index.acquire("a", "").value());
  const auto kept = index.acquire("ab", "c").value();
  EXPECT_EQ(index.acquire("ab", "c").value(), kept);
}

TEST(PrefixIndex, RefusesSaltsOfAMegabyte) {
  CachedStore c(8, 4);
  const std::string megabyte(1 << 20, 'x');
  EXPECT_EQ(c.index().acquire(megabyte, "").error(), Errc::kInvalidArgument);
  EXPECT_EQ(c.index().acquire("", megabyte).error(), Errc::kInvalidArgument);
  EXPECT_TRUE(c.index().acquire(megabyte.substr(0, kMaxCacheKeyBytes), ""));
}

TEST(PrefixIndex, NamespacesThatNobodyUsesAreForgotten) {
  CachedStore c(64, 4);
  Sequence kept = c.prefill(run_of_tokens(9), "kept");
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(c.index().acquire("tenant " + std::to_string(i), ""));
  EXPECT_EQ(c.index().stats().namespaces, 1U);
  ASSERT_TRUE(kept.close());
  EXPECT_EQ(c.index().stats().namespaces, 1U) << "it still has pages";
  EXPECT_EQ(c.open(run_of_tokens(9), "kept").num_tokens(), 8U);
}

TEST(PrefixIndex, WhenEveryHashCollidesNothingLeaks) {
  CachedStore c(64, 2, {.hash = &same_hash});
  const std::vector<Token> a = {1, 2, 3, 4, 5, 6, 0};
  const std::vector<Token> b = {1, 2, 9, 9, 5, 6, 0};
  const std::vector<Token> middle = {3, 4, 5, 6, 0};
  Sequence first = c.prefill(a, "x");
  EXPECT_EQ(c.open(a, "y").num_tokens(), 0U);
  EXPECT_EQ(c.open(b, "x").num_tokens(), 2U);
  EXPECT_EQ(c.open(middle, "x").num_tokens(), 0U);
  EXPECT_EQ(c.open(a, "x").num_tokens(), 6U);
}

TEST(PrefixIndex, PromptsWhoseHashesAreAllEqualStopAtABoundAndHarmNobody) {
  CachedStore c(2000, 1, {.hash = &same_hash});
  Sequence hostile = c.prefill(run_of_tokens(400), "x");
  EXPECT_EQ(c.index().stats().published_pages, 256U);
  EXPECT_EQ(c.open(run_of_tokens(401), "x").num_tokens(), 256U);
  Sequence other = c.prefill(run_of_tokens(3), "y");
  EXPECT_EQ(c.index().stats().published_pages, 256U) << "the bucket is full for everybody, and no error";
  c.index().clear();
  Sequence again = c.prefill(run_of_tokens(3, 50), "y");
  EXPECT_EQ(c.open(run_of_tokens(4, 50), "y").num_tokens(), 3U);
}

TEST(PrefixIndex, IdenticalPagesComputedTwiceAreMerged) {
  CachedStore c(32, 4);
  Sequence a = c.open(run_of_tokens(13));
  Sequence b = c.open(run_of_tokens(13));
  ASSERT_TRUE(c.append(a, run_of_tokens(13)));
  EXPECT_EQ(c.pool().stats().used_pages, 4U);
  ASSERT_TRUE(c.append(b, run_of_tokens(13)));
  EXPECT_EQ(c.pool().stats().used_pages, 5U) << "three shared, two last pages";
  EXPECT_EQ(c.index().stats().merged_pages, 3U);
  EXPECT_EQ(b.pages()[2], a.pages()[2]);
  EXPECT_NE(b.pages()[3], a.pages()[3]);
  for (std::uint64_t t = 0; t < 13; ++t) EXPECT_EQ(c.value(a, t), c.value(b, t));
}

TEST(PrefixIndex, APartialPageIsReusedFromTheChildWithTheLongestCommonBeginning) {
  CachedStore c(32, 8);
  const std::vector<Token> a = {1, 2, 3, 9, 9, 9, 9, 9, 0};
  const std::vector<Token> b = {1, 2, 3, 4, 5, 9, 9, 9, 0};
  Sequence first = c.prefill(a);
  Sequence second = c.prefill(b);
  EXPECT_EQ(second.cached_tokens(), 3U);
  Sequence third = c.open({1, 2, 3, 4, 5, 6, 7});
  EXPECT_EQ(third.num_tokens(), 5U);
  for (std::uint64_t t = 0; t < 5; ++t) EXPECT_EQ(c.value(third, t), c.value(second, t));
  EXPECT_EQ(c.pool().ref_count(third.pages()[0]), 1U) << "a copy of its own";
}

TEST(PrefixIndex, APartialPageIsFoundAmongAnyNumberOfContinuations) {
  CachedStore c(400, 4);
  const auto prompt = [](Token topic) {
    return std::vector<Token>{1, 2, 3, 4, topic / 10, topic % 10, topic, topic, 0};
  };
  for (Token topic = 0; topic < 100; ++topic) (void)c.prefill(prompt(topic));
  for (const Token topic : {0, 1, 50, 99}) {
    std::vector<Token> like = prompt(topic);
    like[7] = -1;
    Sequence found = c.open(like);
    EXPECT_EQ(found.num_tokens(), 7U) << "the first three tokens of the second page of topic " << topic;
  }
  EXPECT_EQ(c.open({1, 2, 3, 4, 5, 77, 7, 7, 0}).num_tokens(), 5U);
  EXPECT_EQ(c.open({1, 2, 3, 4, 77, 7, 7, 7, 0}).num_tokens(), 4U);
}

TEST(PrefixIndex, WritingBehindATruncatedPrefixCopiesThePublishedPage) {
  CachedStore c(32, 4);
  Sequence a = c.prefill(run_of_tokens(9));
  const PageId published = a.pages()[1];
  ASSERT_TRUE(a.truncate(6));
  const std::vector<Token> other = {50, 51, 52};
  ASSERT_TRUE(c.append(a, other));
  EXPECT_NE(a.pages()[1], published);
  Sequence again = c.open(run_of_tokens(9));
  EXPECT_EQ(again.num_tokens(), 8U) << "the old continuation is still there";
  const std::vector<Token> changed = {0, 1, 2, 3, 4, 5, 50, 51, 52, 53};
  EXPECT_EQ(c.open(changed).num_tokens(), 8U) << "and so is the new one";
}

TEST(PrefixIndex, ForksPublishTheirOwnContinuations) {
  CachedStore c(32, 2);
  Sequence a = c.prefill(run_of_tokens(4));
  Sequence b = a.fork().value();
  const std::vector<Token> x = {7, 7};
  const std::vector<Token> y = {8, 8};
  ASSERT_TRUE(c.append(a, x));
  ASSERT_TRUE(c.append(b, y));
  EXPECT_EQ(c.open({0, 1, 2, 3, 7, 7, 1}).num_tokens(), 6U);
  EXPECT_EQ(c.open({0, 1, 2, 3, 8, 8, 1}).num_tokens(), 6U);
}

TEST(PrefixIndex, ASequenceWithoutANamespaceTakesNoPart) {
  CachedStore c(32, 2);
  Sequence a = c.prefill(run_of_tokens(4));
  Sequence b = c.store().open().value();
  PrefixChain none;
  std::vector<PageId> pages(2);
  EXPECT_EQ(c.index().match(none, run_of_tokens(4), pages).num_pages, 0U);
  EXPECT_EQ(c.index().publish(none, run_of_tokens(4), pages), 0U);
}

TEST(PrefixIndex, PinnedPagesStayWhateverIsAllocated) {
  CachedStore c(8, 4);
  {
    Sequence a = c.prefill(run_of_tokens(9));
  }
  const PinId pin = c.pin(run_of_tokens(9)).value();
  EXPECT_EQ(c.index().stats().pinned_pages, 2U);
  EXPECT_EQ(c.pool().stats().used_pages, 2U);
  std::vector<PageId> all(6);
  ASSERT_TRUE(c.pool().allocate(all));
  EXPECT_EQ(c.pool().allocate().error(), Errc::kOutOfPages);
  ASSERT_TRUE(c.index().unpin(pin));
  EXPECT_EQ(c.index().stats().pinned_pages, 0U);
  EXPECT_TRUE(c.pool().allocate());
}

TEST(PrefixIndex, PinsNestAndUnpinningWhatIsNotPinnedIsAnError) {
  CachedStore c(8, 4);
  Sequence a = c.prefill(run_of_tokens(9));
  EXPECT_EQ(c.pin(run_of_tokens(9, 100)).error(), Errc::kNotFound);
  const PinId one = c.pin(run_of_tokens(9)).value();
  const PinId two = c.pin(run_of_tokens(4)).value();
  EXPECT_EQ(c.index().stats().pinned_pages, 2U);
  ASSERT_TRUE(c.index().unpin(one));
  EXPECT_EQ(c.index().stats().pinned_pages, 1U);
  EXPECT_EQ(c.index().unpin(one).error(), Errc::kNotFound);
  EXPECT_EQ(c.index().unpin(PinId{12345}).error(), Errc::kNotFound);
  ASSERT_TRUE(c.index().unpin(two));
}

TEST(PrefixIndex, ClearMakesEverythingUnfindableAndSequencesGoOn) {
  CachedStore c(32, 4);
  Sequence a = c.prefill(run_of_tokens(10));
  {
    Sequence b = c.prefill(run_of_tokens(10, 50));
  }
  const PinId pin = c.pin(run_of_tokens(10)).value();
  c.index().clear();
  EXPECT_EQ(c.pool().stats().evictable_pages, 0U);
  EXPECT_EQ(c.index().stats().published_pages, 0U);
  EXPECT_EQ(c.open(run_of_tokens(10)).num_tokens(), 0U);
  const auto more = run_of_tokens(3, 10);
  ASSERT_TRUE(c.append(a, more));
  EXPECT_EQ(c.open(run_of_tokens(13)).num_tokens(), 12U) << "it publishes from the beginning again";
  ASSERT_TRUE(c.index().unpin(pin));
  EXPECT_EQ(c.index().stats().pinned_pages, 0U);
}

TEST(PrefixIndex, EventsTellWhatIsStoredEvictedAndCleared) {
  CachedStore c(4, 2, {.event_capacity = 100});
  struct Seen {
    std::vector<CacheEvent> events;
    std::vector<std::vector<Token>> tokens;
  } seen;
  const CacheEventCallback collect = [](void* user, const CacheEvent& event) noexcept {
    auto& to = *static_cast<Seen*>(user);
    to.events.push_back(event);
    to.tokens.emplace_back(event.tokens.begin(), event.tokens.end());
  };
  {
    Sequence a = c.prefill(run_of_tokens(5));
  }
  std::vector<PageId> all(3);
  ASSERT_TRUE(c.pool().allocate(all));
  c.index().clear();
  EXPECT_EQ(c.index().poll_events(collect, &seen), 4U);
  ASSERT_EQ(seen.events.size(), 4U);
  EXPECT_EQ(seen.events[0].kind, CacheEventKind::kStored);
  EXPECT_EQ(seen.tokens[0], (std::vector<Token>{0, 1}));
  EXPECT_EQ(seen.tokens[1], (std::vector<Token>{2, 3}));
  EXPECT_EQ(seen.events[1].parent_hash, seen.events[0].hash);
  EXPECT_EQ(seen.events[2].kind, CacheEventKind::kEvicted);
  EXPECT_EQ(seen.events[2].hash, seen.events[1].hash) << "the suffix goes first";
  EXPECT_EQ(seen.events[2].parent_hash, seen.events[0].hash);
  EXPECT_EQ(seen.events[3].kind, CacheEventKind::kCleared);
  for (std::uint64_t i = 0; i < 4; ++i) EXPECT_EQ(seen.events[i].sequence_number, i);
  EXPECT_EQ(c.index().poll_events(collect, &seen), 0U);
}

struct Event {
  CacheEventKind kind;
  PageId page;
  std::uint64_t hash, parent_hash, sequence_number;
  std::vector<Token> tokens;
};

std::vector<Event> poll(CachedStore& c) {
  std::vector<Event> events;
  const std::uint64_t count = c.index().poll_events(
      [](void* user, const CacheEvent& e) noexcept {
        static_cast<std::vector<Event>*>(user)->push_back(
            {e.kind, e.page, e.hash, e.parent_hash, e.sequence_number, {e.tokens.begin(), e.tokens.end()}});
      },
      &events);
  EXPECT_EQ(count, events.size());
  return events;
}

TEST(PrefixIndex, EventsNameTheirPageAndTenantsHaveHashesOfTheirOwn) {
  CachedStore c(8, 2, {.event_capacity = 8});
  Sequence a = c.prefill(run_of_tokens(3), "a"), b = c.prefill(run_of_tokens(3), "b");
  c.index().clear();
  const std::vector<Event> events = poll(c);
  ASSERT_EQ(events.size(), 3U);
  EXPECT_EQ(events[0].page, a.pages()[0]);
  EXPECT_EQ(events[1].page, b.pages()[0]);
  EXPECT_EQ(events[0].parent_hash, c.index().acquire("a", {}).value()->seed);
  EXPECT_EQ(events[1].parent_hash, c.index().acquire("b", {}).value()->seed);
  EXPECT_NE(events[0].parent_hash, events[1].parent_hash);
  EXPECT_NE(events[0].hash, events[1].hash);
  EXPECT_EQ(events[2].page, kNullPage);
  EXPECT_EQ(events[2].hash, 0U);
  EXPECT_EQ(events[2].parent_hash, 0U);
  EXPECT_TRUE(events[2].tokens.empty());
}

TEST(PrefixIndex, APollEndsThoughEventsComeFasterThanTheyAreTaken) {
  struct Router {
    CachedStore c{32, 2, {.event_capacity = 8}};
    std::uint64_t num_seen = 0;
  } router;
  const Sequence a = router.c.prefill(run_of_tokens(6));
  const auto clear = [](void* user, const CacheEvent&) noexcept {
    auto& to = *static_cast<Router*>(user);
    ASSERT_LT(++to.num_seen, 100U);
    to.c.index().clear();  // one event more
  };
  EXPECT_EQ(router.c.index().poll_events(clear, &router), 3U);
  EXPECT_EQ(router.c.index().poll_events(clear, &router), 3U);
}

TEST(PrefixIndex, AFullRingHasLostNothingYet) {
  CachedStore c(32, 1, {.event_capacity = 4});
  Sequence a = c.prefill(run_of_tokens(4));
  EXPECT_EQ(c.index().stats().lost_events, 0U);
  EXPECT_EQ(poll(c).size(), 4U);
  Sequence b = c.prefill(run_of_tokens(5, 50));
  EXPECT_EQ(c.index().stats().lost_events, 1U) << "one of five";
  const std::vector<Event> events = poll(c);
  ASSERT_EQ(events.size(), 4U);
  EXPECT_EQ(events[0].sequence_number, 5U);
  EXPECT_EQ(events[0].tokens, std::vector<Token>{51});
  EXPECT_EQ(events[3].tokens, std::vector<Token>{54});
}

TEST(PrefixIndex, WithoutARingThereAreNoEvents) {
  CachedStore c(8, 2);
  Sequence a = c.prefill(run_of_tokens(5));
  c.index().clear();
  EXPECT_TRUE(poll(c).empty());
  EXPECT_EQ(c.index().stats().lost_events, 0U);
}

TEST(PrefixIndex, CountsItsOwnMemory) {
  constexpr std::uint64_t kPages = 100, kPageSize = 16, kEvents = 1000;
  const auto bytes_of = [](std::uint64_t event_capacity) {
    CachedStore c(kPages, kPageSize, {.event_capacity = event_capacity});
    return c.index().stats().metadata_bytes;
  };
  // A line of the index, tokens, a bucket of 128, two bytes of standing and the links of those that wait.
  const std::uint64_t known = kPages * (sizeof(prefix::Entry) + kPageSize * sizeof(Token) + 2) + 128 * 4;
  EXPECT_GT(bytes_of(0), known + kPages * 32);
  EXPECT_LT(bytes_of(0), known + kPages * 96);
  const std::uint64_t ring = bytes_of(kEvents) - bytes_of(0);
  EXPECT_GE(ring, kEvents * (2 * 8 + 4 + 1 + kPageSize * sizeof(Token)));
  EXPECT_LE(ring, kEvents * (4 * 8 + kPageSize * sizeof(Token)));
}

TEST(PrefixIndex, AnOverflowingRingLosesTheOldestAndSaysSo) {
  CachedStore c(32, 1, {.event_capacity = 4});
  Sequence a = c.prefill(run_of_tokens(10));
  std::vector<std::uint64_t> numbers;
  c.index().poll_events(
      [](void* user, const CacheEvent& event) noexcept {
        static_cast<std::vector<std::uint64_t>*>(user)->push_back(event.sequence_number);
      },
      &numbers);
  EXPECT_EQ(numbers, (std::vector<std::uint64_t>{6, 7, 8, 9}));
  EXPECT_EQ(c.index().stats().lost_events, 6U);
}

TEST(PrefixIndex, RefusesASecondIndexOnOnePoolAndBadRetention) {
  CachedStore c(8, 4);
  EXPECT_EQ(prefix::PrefixIndex::create(c.pool().impl(), 4, {}).error(), Errc::kBusy);
  (void)c.prefill(run_of_tokens(9));
  EXPECT_EQ(c.open(run_of_tokens(9)).num_tokens(), 8U) << "the first goes on";
  EXPECT_EQ(prefix::PrefixIndex::create(c.pool().impl(), 0, {}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(prefix::PrefixIndex::create(c.pool().impl(), 4, {.event_capacity = ~0ULL}).error(), Errc::kInvalidArgument);
  const RetentionRange too_high[] = {{.priority = 101}};
  const RetentionRange empty[] = {{.begin_token = 5, .end_token = 5}};
  EXPECT_EQ(prefix::PrefixIndex::check(too_high).error(), Errc::kInvalidArgument);
  EXPECT_EQ(prefix::PrefixIndex::check(empty).error(), Errc::kInvalidArgument);
  EXPECT_TRUE(prefix::PrefixIndex::check({}));
  const RetentionRange highest[] = {{.begin_token = 5, .end_token = 6, .priority = 100}};
  EXPECT_TRUE(prefix::PrefixIndex::check(highest));
}

TEST(PrefixIndex, IsCreatedForEveryPageSizeThatPagesHave) {
  const auto create = [](std::uint32_t page_size, std::uint64_t event_capacity) {
    PagePool pool = PagePool::create({.page_bytes = 64, .capacity_pages = 4, .huge_pages = HugePages::kNever}).value();
    return prefix::PrefixIndex::create(pool.impl(), page_size, {.event_capacity = event_capacity}).error();
  };
  EXPECT_EQ(create(1, 0), Errc::kOk);
  EXPECT_EQ(create(256, 0), Errc::kOk);
  EXPECT_EQ(create(257, 0), Errc::kInvalidArgument);
  EXPECT_EQ(create(1, prefix::kMaxEvents + 1), Errc::kInvalidArgument);
}

TEST(PrefixIndex, APoolServesAnotherIndexWhenItsFirstIsGone) {
  PagePool pool = PagePool::create({.page_bytes = 64, .capacity_pages = 4, .huge_pages = HugePages::kNever}).value();
  SequenceStore store = SequenceStore::create(pool, 2).value();
  const std::vector<Token> tokens = run_of_tokens(4);
  for (int round = 0; round < 2; ++round) {
    auto index = prefix::PrefixIndex::create(pool.impl(), 2, {}).value();
    PrefixChain chain;
    chain.name_space = index->acquire({}, {}).value();
    std::vector<PageId> pages(2);
    ASSERT_TRUE(pool.allocate(pages));
    EXPECT_EQ(index->publish(chain, tokens, pages), 0U);
    ASSERT_TRUE(index->pin({pages[1]}));
    ASSERT_TRUE(pool.release({pages.data(), 1}));
    EXPECT_EQ(pool.stats().evictable_pages, 1U);
    index.reset();
    EXPECT_EQ(pool.stats().free_pages, 4U) << "pinned and evictable pages are given back";
  }
}

TEST(PrefixIndex, ReadsNoTokenBehindThePrompt) {
  CachedStore c(400, 4);
  const auto prompt = run_of_tokens(4 * 70 + 3);
  Sequence a = c.prefill(prompt);
  for (const std::size_t length : {std::size_t{4} * 70, prompt.size()}) {
    const testing::GuardedVector<Token> guarded(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(length));
    testing::GuardedVector<PageId> pages(length / 4);
    PrefixChain chain;
    chain.name_space = c.index().acquire({}, {}).value();
    const prefix::Match match = c.index().match(chain, guarded, pages);
    EXPECT_EQ(match.num_pages, 70U);
    EXPECT_EQ(match.partial, kNullPage);
    PrefixChain other;
    other.name_space = c.index().acquire("other", {}).value();
    EXPECT_EQ(c.index().publish(other, guarded, pages), 0U) << "these pages stand for another tenant's tokens";
    EXPECT_EQ(other.num_pages, 0U);
    ASSERT_TRUE(c.pool().release(pages));
  }
}

TEST(PrefixIndex, ALongPromptIsMatchedAndPublishedInManyBatches) {
  CachedStore c(2000, 16);
  const auto prompt = run_of_tokens(20'001);
  Sequence a = c.prefill(prompt);
  Sequence b = c.open(prompt);
  EXPECT_EQ(b.num_tokens(), 20'000U);
  EXPECT_EQ(pages_of(b), std::vector<PageId>(a.pages().begin(), a.pages().begin() + 1250));
}

}  // namespace
}  // namespace pagedkv
