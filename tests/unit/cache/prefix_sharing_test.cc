// The prefix cache through KvCache: what open finds, what is published, and that nothing leaks.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pagedkv/kv_cache.h"

namespace pagedkv {
namespace {

constexpr std::uint32_t kPageSize = 4, kDim = 2;

KvCacheOptions tiny(std::uint64_t capacity_pages) {
  return {.shape = {.num_layers = 2, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = kDim, .dtype = DType::f32},
          .page_size = kPageSize,
          .capacity_pages = capacity_pages};
}
KvCache tiny_cache(std::uint64_t capacity_pages) { return KvCache::create(tiny(capacity_pages)).value(); }

std::vector<Token> run_of_tokens(std::size_t count, Token first = 0) {
  std::vector<Token> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Feeds what the sequence does not hold of its prompt; K and V of a token are the token.
void prefill(KvCache& cache, Sequence& sequence, const std::vector<Token>& prompt) {
  const auto begin = static_cast<std::size_t>(sequence.num_tokens());
  Step step = cache.begin_step({{&sequence, static_cast<std::uint32_t>(prompt.size() - begin)}}).value();
  std::vector<float> rows;
  for (std::size_t t = begin; t < prompt.size(); ++t) rows.insert(rows.end(), kDim, static_cast<float>(prompt[t]));
  for (std::uint32_t layer = 0; layer < 2; ++layer) ASSERT_TRUE(step.write(layer, rows, rows));
  ASSERT_TRUE(step.commit());
}

Sequence serve(KvCache& cache, const std::vector<Token>& prompt, const OpenOptions& options = {}) {
  Sequence sequence = cache.open(prompt, options).value();
  prefill(cache, sequence, prompt);
  return sequence;
}

float k_of(const KvCache& cache, const Sequence& sequence, std::uint64_t token) {
  const KvView view = cache.view(1).value();
  const std::int64_t page = to_index(sequence.pages()[token / kPageSize]);
  const auto offset = static_cast<std::int64_t>(token % kPageSize) * view.k_token_stride;
  return *reinterpret_cast<const float*>(static_cast<const std::byte*>(view.k) + page * view.k_page_stride + offset);
}

TEST(PrefixSharing, OpenHoldsTheLongestCachedPrefix) {
  KvCache cache = tiny_cache(16);
  const std::vector<Token> prompt = run_of_tokens(14);
  const Sequence first = serve(cache, prompt);
  EXPECT_EQ(first.cached_tokens(), 0u);
  const Sequence second = cache.open(run_of_tokens(30)).value();
  EXPECT_EQ(second.num_tokens(), 12u);
  EXPECT_EQ(second.cached_tokens(), 12u);
  EXPECT_TRUE(std::equal(second.pages().begin(), second.pages().end(), first.pages().begin()));
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.prefix.lookups, 2u);
  EXPECT_EQ(stats.prefix.lookup_tokens, 13u + 29u) << "all but the last";
  EXPECT_EQ(stats.prefix.hit_tokens, 12u);
  EXPECT_EQ(stats.pool.shared_pages, 3u);
}

TEST(PrefixSharing, TheLastTokenOfAPromptIsAlwaysComputed) {
  KvCache cache = tiny_cache(16);
  const std::vector<Token> prompt = run_of_tokens(8);
  (void)serve(cache, prompt);
  Sequence again = cache.open(prompt).value();
  EXPECT_EQ(again.num_tokens(), 7u) << "four rows of the second page's are copied, less the last";
  EXPECT_EQ(cache.open(std::vector<Token>{0}).value().num_tokens(), 0u);
}

TEST(PrefixSharing, RowsOfAPageThatMatchesInPartAreCopied) {
  KvCache cache = tiny_cache(16);
  const Sequence first = serve(cache, run_of_tokens(8));
  std::vector<Token> other = run_of_tokens(8);
  other[6] = 99;
  Sequence second = cache.open(other).value();
  EXPECT_EQ(second.num_tokens(), 6u);
  EXPECT_NE(second.pages()[1], first.pages()[1]);
  prefill(cache, second, other);
  for (std::uint64_t t = 0; t < 8; ++t) EXPECT_EQ(k_of(cache, second, t), static_cast<float>(other[t]));
  EXPECT_EQ(k_of(cache, first, 6), 6) << "the page that was copied is untouched";
}

TEST(PrefixSharing, WithoutAPageForTheCopyOpenDoesWithout) {
  KvCache cache = tiny_cache(2);
  const Sequence first = serve(cache, run_of_tokens(8));
  EXPECT_EQ(cache.open(run_of_tokens(7)).value().num_tokens(), 4u);
  EXPECT_EQ(cache.stats().pool.used_pages, 2u);
}

TEST(PrefixSharing, SaltsAndExtraKeysAreNamespaces) {
  KvCache cache = tiny_cache(32);
  const std::vector<Token> prompt = run_of_tokens(9);
  (void)serve(cache, prompt, {.cache_salt = "ab", .extra_key = "c"});
  EXPECT_EQ(cache.open(prompt).value().cached_tokens(), 0u);
  EXPECT_EQ(cache.open(prompt, {.cache_salt = "a", .extra_key = "bc"}).value().cached_tokens(), 0u);
  EXPECT_EQ(cache.open(prompt, {.cache_salt = "abc"}).value().cached_tokens(), 0u);
  EXPECT_EQ(cache.open(prompt, {.cache_salt = "ab", .extra_key = "c"}).value().cached_tokens(), 8u);
}

TEST(PrefixSharing, BadOpenOptionsAreRefusedAndHoldNothing) {
  KvCache cache = tiny_cache(8);
  const std::vector<Token> prompt = run_of_tokens(9);
  (void)serve(cache, prompt);
  const std::string megabyte(1 << 20, 'x');
  const std::array<RetentionRange, 1> empty{{{.begin_token = 4, .end_token = 4}}};
  const std::array<RetentionRange, 1> high{{{.priority = 101}}};
  EXPECT_EQ(cache.open(prompt, {.cache_salt = megabyte}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.open(prompt, {.extra_key = megabyte}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.open(prompt, {.retention = empty}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.open(prompt, {.retention = high}).error(), Errc::kInvalidArgument);
  const std::vector<RetentionRange> many(kMaxRetentionRanges + 1);
  EXPECT_EQ(cache.open(prompt, {.retention = many}).error(), Errc::kInvalidArgument);
  EXPECT_TRUE(cache.open(prompt, {.retention = std::span(many).first(kMaxRetentionRanges)}));
  EXPECT_EQ(cache.stats().open_sequences, 0u);
  EXPECT_EQ(cache.stats().pool.used_pages, 0u);
}

TEST(PrefixSharing, BadInputIsRefusedAndNothingChanges) {
  KvCacheOptions options = tiny(8);
  options.max_capacity_pages = 16;
  KvCache cache = KvCache::create(options).value();
  const std::vector<Token> prompt = run_of_tokens(10);
  Sequence held = serve(cache, prompt), closed = cache.open().value();
  ASSERT_TRUE(closed.close());
  const PinId pin = cache.pin(prompt).value();
  ASSERT_TRUE(cache.unpin(pin));
  const PoolStats before = cache.stats().pool;
  const std::string megabyte(1 << 20, 'x');
  const std::span<const Token> too_long(prompt.data(), std::size_t{1} << 31);  // never read

  EXPECT_EQ(closed.fork().error(), Errc::kClosed);
  EXPECT_EQ(cache.unpin(pin).error(), Errc::kNotFound) << "unpinned already";
  EXPECT_EQ(cache.unpin(PinId{12345}).error(), Errc::kNotFound) << "never pinned";
  EXPECT_EQ(cache.pin(run_of_tokens(8, 50)).error(), Errc::kNotFound) << "nothing of it is cached";
  EXPECT_EQ(cache.pin(prompt, {.cache_salt = megabyte}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.pin(prompt, {.extra_key = megabyte}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.open(prompt, {.cache_salt = megabyte}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.open(prompt, {.extra_key = megabyte}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.open(too_long).error(), Errc::kInvalidArgument);
  EXPECT_EQ(held.slide(10).error(), Errc::kInvalidArgument) << "a window as wide as the sequence";
  EXPECT_EQ(held.slide(UINT64_MAX).error(), Errc::kInvalidArgument);
  EXPECT_EQ(held.truncate(11).error(), Errc::kInvalidArgument) << "more tokens than it holds";
  EXPECT_EQ(cache.begin_step({{&held, 2, run_of_tokens(3)}}).error(), Errc::kInvalidArgument) << "ids of another count";
  EXPECT_EQ(cache.begin_step({{&held, UINT32_MAX}}).error(), Errc::kInvalidArgument) << "longer than 2^31 - 1 tokens";
  EXPECT_EQ(cache.set_capacity(before.used_pages - 1).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.set_capacity(17).error(), Errc::kInvalidArgument) << "above what may ever be";

  const PoolStats after = cache.stats().pool;
  EXPECT_EQ(after.used_pages, before.used_pages);
  EXPECT_EQ(after.evictable_pages, before.evictable_pages);
  EXPECT_EQ(after.free_pages, before.free_pages);
  EXPECT_EQ(after.capacity_pages, before.capacity_pages);
  EXPECT_EQ(cache.stats().open_sequences, 1u);
  EXPECT_EQ(cache.stats().prefix.pinned_pages, 0u);
  EXPECT_EQ(held.num_tokens(), 10u);
  EXPECT_EQ(cache.open(prompt).value().cached_tokens(), 8u) << "the prefix is still there";
}

TEST(PrefixSharing, PagesComputedTwiceAreMergedWhenPublished) {
  KvCache cache = tiny_cache(16);
  const std::vector<Token> prompt = run_of_tokens(8);
  Sequence a = cache.open(prompt).value(), b = cache.open(prompt).value();
  prefill(cache, a, prompt);
  prefill(cache, b, prompt);
  EXPECT_EQ(a.pages()[0], b.pages()[0]);
  EXPECT_EQ(a.pages()[1], b.pages()[1]);
  EXPECT_EQ(cache.stats().pool.used_pages, 2u);
  EXPECT_EQ(cache.stats().prefix.merged_pages, 2u);
}

TEST(PrefixSharing, DecodedTokensArePublishedWhenTheirIdsAreGiven) {
  KvCache cache = tiny_cache(16);
  Sequence chat = serve(cache, run_of_tokens(6));
  const std::vector<float> rows(2 * kDim, 7);
  const std::vector<Token> answer{6, 7};
  Step step = cache.begin_step({{&chat, 2, answer}}).value();
  for (std::uint32_t layer = 0; layer < 2; ++layer) ASSERT_TRUE(step.write(layer, rows, rows));
  ASSERT_TRUE(step.commit());
  EXPECT_EQ(cache.open(run_of_tokens(20)).value().cached_tokens(), 8u);
}

TEST(PrefixSharing, PagesOfUnknownTokensAreNotPublished) {
  KvCache cache = tiny_cache(16);
  Sequence chat = cache.open().value();
  prefill(cache, chat, run_of_tokens(8));
  EXPECT_EQ(cache.stats().prefix.published_pages, 0u);
  EXPECT_EQ(cache.open(run_of_tokens(20)).value().cached_tokens(), 0u);
}

TEST(PrefixSharing, RolledBackAndRejectedTokensAreNotPublished) {
  KvCache cache = tiny_cache(16);
  const std::vector<Token> prompt = run_of_tokens(9);
  Sequence a = cache.open(prompt).value();
  {
    Step dropped = cache.begin_step({{&a, 9}}).value();
  }
  EXPECT_EQ(cache.stats().prefix.published_pages, 0u);
  Step step = cache.begin_step({{&a, 9}}).value();
  ASSERT_TRUE(step.commit(std::array<std::uint32_t, 1>{7}));
  EXPECT_EQ(cache.stats().prefix.published_pages, 1u);
}

TEST(PrefixSharing, TruncatingIntoAPublishedPageAndWritingCopiesIt) {
  KvCache cache = tiny_cache(16);
  Sequence a = serve(cache, run_of_tokens(8));
  ASSERT_TRUE(a.truncate(6));
  const std::vector<float> rows(2 * kDim, 77);
  const std::vector<Token> other{50, 51};
  Step step = cache.begin_step({{&a, 2, other}}).value();
  for (std::uint32_t layer = 0; layer < 2; ++layer) ASSERT_TRUE(step.write(layer, rows, rows));
  ASSERT_TRUE(step.commit());
  const Sequence b = cache.open(run_of_tokens(20)).value();
  EXPECT_EQ(b.cached_tokens(), 8u);
  EXPECT_EQ(k_of(cache, b, 6), 6);
  EXPECT_EQ(k_of(cache, a, 6), 77);
}

TEST(PrefixSharing, ClosedSequencesLeaveEvictablePagesThatPressureTakesSuffixesFirst) {
  KvCache cache = tiny_cache(4);
  (void)serve(cache, run_of_tokens(16));
  EXPECT_EQ(cache.stats().pool.evictable_pages, 4u);
  EXPECT_EQ(cache.stats().pool.used_pages, 0u);
  EXPECT_EQ(cache.pages_available(), 4u);
  EXPECT_TRUE(cache.can_admit(16));
  Sequence other = serve(cache, run_of_tokens(5, 100));
  EXPECT_EQ(cache.stats().pool.evictions, 2u);
  EXPECT_EQ(cache.open(run_of_tokens(16)).value().cached_tokens(), 8u);
}

TEST(PrefixSharing, PinnedPrefixesOutlastPressure) {
  KvCache cache = tiny_cache(4);
  (void)serve(cache, run_of_tokens(8));
  const PinId pin = cache.pin(run_of_tokens(8)).value();
  EXPECT_EQ(cache.begin_step({{nullptr, 1}}).error(), Errc::kInvalidArgument);
  Sequence other = cache.open().value();
  EXPECT_EQ(cache.begin_step({{&other, 16}}).error(), Errc::kOutOfPages);
  EXPECT_EQ(cache.stats().prefix.pinned_pages, 2u);
  ASSERT_TRUE(cache.unpin(pin));
  EXPECT_TRUE(cache.begin_step({{&other, 16}}));
  EXPECT_EQ(cache.unpin(pin).error(), Errc::kNotFound);
  EXPECT_EQ(cache.unpin(PinId{12345}).error(), Errc::kNotFound);
  EXPECT_EQ(cache.pin(run_of_tokens(8, 500)).error(), Errc::kNotFound);
}

TEST(PrefixSharing, RetentionPriorityDecidesWhoGoesFirst) {
  KvCache cache = tiny_cache(4);
  const std::array<RetentionRange, 1> keep{{{.priority = 80}}};
  (void)serve(cache, run_of_tokens(8), {.retention = keep});
  (void)serve(cache, run_of_tokens(8, 100));
  (void)serve(cache, run_of_tokens(8, 200));
  EXPECT_EQ(cache.open(run_of_tokens(9)).value().cached_tokens(), 8u) << "older, but of a higher priority";
  EXPECT_EQ(cache.open(run_of_tokens(9, 100)).value().cached_tokens(), 0u);
}

TEST(PrefixSharing, AForkKeepsTheRetentionAndTheCachedTokensOfItsParent) {
  KvCache cache = tiny_cache(5);
  const std::array<RetentionRange, 1> keep{{{.priority = 80}}};
  (void)serve(cache, run_of_tokens(4));
  {
    Sequence parent = cache.open(run_of_tokens(8), {.retention = keep}).value();
    Sequence fork = parent.fork().value();
    EXPECT_EQ(fork.cached_tokens(), 4u);
    ASSERT_TRUE(parent.close());
    prefill(cache, fork, run_of_tokens(8));
  }
  (void)serve(cache, run_of_tokens(8, 100));
  (void)serve(cache, run_of_tokens(12, 200));
  EXPECT_EQ(cache.open(run_of_tokens(9)).value().cached_tokens(), 8u) << "the oldest, but of a higher priority";
}

TEST(PrefixSharing, TruncatedTokensAreNotCachedOnesAnyMore) {
  KvCache cache = tiny_cache(16);
  (void)serve(cache, run_of_tokens(12));
  Sequence a = cache.open(run_of_tokens(13)).value();
  ASSERT_EQ(a.cached_tokens(), 12u);
  ASSERT_TRUE(a.truncate(5));
  EXPECT_EQ(a.cached_tokens(), 5u);
  prefill(cache, a, run_of_tokens(13));
  EXPECT_EQ(a.cached_tokens(), 5u);
}

TEST(PrefixSharing, EventsTellWhatIsStoredEvictedAndCleared) {
  KvCacheOptions options = tiny(2);
  options.prefix.event_capacity = 16;
  KvCache cache = KvCache::create(options).value();
  (void)serve(cache, run_of_tokens(4));
  (void)serve(cache, run_of_tokens(8, 100));
  cache.clear_prefix_cache();
  std::vector<CacheEventKind> kinds;
  const auto record = [](void* user, const CacheEvent& event) noexcept {
    static_cast<std::vector<CacheEventKind>*>(user)->push_back(event.kind);
  };
  EXPECT_EQ(cache.poll_events(record, &kinds), 5u);
  using enum CacheEventKind;
  EXPECT_EQ(kinds, (std::vector<CacheEventKind>{kStored, kEvicted, kStored, kStored, kCleared}));
  EXPECT_EQ(cache.poll_events(record, &kinds), 0u);
  EXPECT_EQ(cache.poll_events(nullptr, nullptr), 0u);
  EXPECT_EQ(cache.open(run_of_tokens(9, 100)).value().cached_tokens(), 0u);
}

std::uint64_t same_hash(const Token*, std::size_t, std::uint64_t) noexcept { return 42; }

TEST(PrefixSharing, NothingLeaksWhenEveryHashCollides) {
  KvCacheOptions options = tiny(64);
  options.prefix.hash = &same_hash;
  KvCache cache = KvCache::create(options).value();
  std::vector<Sequence> served;
  for (Token first = 0; first < 8; ++first) served.push_back(serve(cache, run_of_tokens(9, first * 100)));
  for (Token first = 0; first < 8; ++first) {
    const Sequence again = cache.open(run_of_tokens(9, first * 100)).value();
    ASSERT_EQ(again.cached_tokens(), 8u);
    for (std::uint64_t t = 0; t < 8; ++t) EXPECT_EQ(k_of(cache, again, t), static_cast<float>(first * 100 + Token(t)));
  }
  EXPECT_EQ(cache.open(run_of_tokens(9, 4)).value().cached_tokens(), 0u);
}

/// Layer 0 sees all keys, layer 1 the last `window_left` and the first `sink_tokens`.
KvCache full_and_sliding(std::uint64_t capacity_pages, std::int32_t window_left, std::uint32_t sink_tokens = 0,
                         std::uint64_t event_capacity = 0) {
  const std::vector<std::uint32_t> full = {0}, sliding = {1};
  const KvLayerGroup groups[] = {{sliding, window_left, sink_tokens}, {full}};
  KvCacheOptions options = tiny(capacity_pages);
  options.layer_groups = groups;
  options.prefix.event_capacity = event_capacity;
  return KvCache::create(options).value();
}

/// Takes all pages that are free or cached but `num_left`, and gives them back.
void press(KvCache& cache, std::uint64_t num_left) {
  std::vector<PageId> pages(cache.pages_available() - num_left);
  ASSERT_TRUE(cache.pool().allocate(pages));
  ASSERT_TRUE(cache.pool().release(pages));
}

TEST(PrefixSharing, AHitNeedsOnlyThePagesOfTheWindowInASlidingGroup) {
  KvCache cache = full_and_sliding(30, 4);
  const std::vector<Token> prompt = run_of_tokens(40), longer = run_of_tokens(41);
  ASSERT_TRUE(serve(cache, prompt).close());
  EXPECT_EQ(cache.stats().prefix.published_pages, 20u);
  press(cache, 12);  // the pages behind the window were released first, and go first
  EXPECT_EQ(cache.stats().prefix.published_pages, 12u);
  Sequence again = cache.open(longer).value();
  EXPECT_EQ(again.cached_tokens(), 40u);
  const std::span<const PageId> sliding = again.pages(0), full = again.pages(1);
  EXPECT_EQ(std::count(sliding.begin(), sliding.end(), kNullPage), 9);
  EXPECT_EQ(std::count(full.begin(), full.end(), kNullPage), 0);
  EXPECT_EQ(k_of(cache, again, 39), 39);
  prefill(cache, again, longer);
  EXPECT_EQ(cache.open(run_of_tokens(30)).value().cached_tokens(), 0u) << "token 28 would see 24, which is gone";
}

TEST(PrefixSharing, PagesOfEveryTableTakeTheRetentionOfTheirLastUser) {
  KvCache cache = full_and_sliding(12, 100);
  const std::array<RetentionRange, 1> keep{{{.priority = 80}}};
  (void)serve(cache, run_of_tokens(4));
  (void)cache.open(run_of_tokens(5), {.retention = keep}).value();
  (void)serve(cache, run_of_tokens(4, 100));
  press(cache, 2);
  EXPECT_EQ(cache.stats().prefix.published_pages, 2u);
  EXPECT_EQ(cache.open(run_of_tokens(5)).value().cached_tokens(), 4u) << "older, but of a higher priority";
}

/// Two layers with windows, the narrower of the first; `event_capacity` as PrefixCacheOptions.
KvCache two_windows(std::uint64_t capacity_pages, std::int32_t narrow, std::int32_t wide) {
  const std::vector<std::uint32_t> first = {0}, second = {1};
  const KvLayerGroup groups[] = {{first, narrow}, {second, wide}};
  KvCacheOptions options = tiny(capacity_pages);
  options.layer_groups = groups;
  return KvCache::create(options).value();
}

TEST(PrefixSharing, AnOpenedPrefixHoldsThePagesOfEveryWindowAlone) {
  KvCache cache = two_windows(60, 4, 8);
  ASSERT_TRUE(serve(cache, run_of_tokens(40)).close());
  const std::uint64_t cached = cache.stats().pool.evictable_pages;
  EXPECT_EQ(cached, 20u);
  Sequence again = cache.open(run_of_tokens(41)).value();
  EXPECT_EQ(again.cached_tokens(), 40u);
  const auto num_held = [&again](std::size_t table) {
    return std::ranges::count_if(again.pages(table), [](PageId page) { return page != kNullPage; });
  };
  EXPECT_EQ(num_held(0), 1) << "tokens 36..39";
  EXPECT_EQ(num_held(1), 2) << "tokens 32..39";
  EXPECT_EQ(cache.stats().pool.used_pages, 3u);
  Sequence inside = cache.open(run_of_tokens(39)).value();
  EXPECT_EQ(inside.cached_tokens(), 38u) << "two rows of the page behind 36 tokens are copied";
  EXPECT_EQ(inside.pages(0).size(), 10u);
  EXPECT_EQ(std::ranges::count(inside.pages(0), kNullPage), 8) << "token 38 sees 34";
  EXPECT_EQ(std::ranges::count(inside.pages(1), kNullPage), 7) << "token 38 sees 30";
}

TEST(PrefixSharing, AHitIsShortenedUntilAllOfThreeTablesAgree) {
  const std::vector<std::uint32_t> layers[] = {{0}, {1}, {2}};
  const KvLayerGroup groups[] = {{layers[0], 4}, {layers[1], 12}, {layers[2], -1}};
  KvCacheOptions options = tiny(60);
  options.shape.num_layers = 3;
  options.layer_groups = groups;
  KvCache cache = KvCache::create(options).value();
  const auto feed = [&](Sequence& sequence, std::size_t num_tokens) {
    const auto num_new = static_cast<std::uint32_t>(num_tokens - sequence.num_tokens());
    Step step = cache.begin_step({{&sequence, num_new}}).value();
    ASSERT_TRUE(step.commit());
  };
  {
    // Commits at 8, 24 and 40 tokens: the pages behind a window are released there, the oldest first.
    Sequence a = cache.open(run_of_tokens(40)).value();
    for (const std::size_t length : {8u, 24u, 40u}) feed(a, length);
    const PinId pin = cache.pin(run_of_tokens(8)).value();  // one page of the first table, two of each of the others
    EXPECT_EQ(cache.stats().prefix.pinned_pages, 5u);
    const PinId longer = cache.pin(run_of_tokens(24)).value();  // the last of the first, three of the second, all six
    EXPECT_EQ(cache.stats().prefix.pinned_pages, 5u + 1 + 3 + 4);
    ASSERT_TRUE(a.close());
    press(cache, 0);
    EXPECT_EQ(cache.stats().prefix.published_pages, 13u);
    EXPECT_EQ(cache.open(run_of_tokens(30)).value().cached_tokens(), 24u);
    // At 20 tokens the first table lacks page 4; at 16 its page 3, at 12 its page 2: 8 is where all agree.
    EXPECT_EQ(cache.open(run_of_tokens(24)).value().cached_tokens(), 8u);
    ASSERT_TRUE(cache.unpin(pin));
    ASSERT_TRUE(cache.unpin(longer));
  }
  {
    Sequence b = cache.open(run_of_tokens(24)).value();
    EXPECT_EQ(b.cached_tokens(), 8u);
    feed(b, 24);
  }
  EXPECT_EQ(cache.open(run_of_tokens(24)).value().cached_tokens(), 23u) << "published behind the shortened hit";
  EXPECT_EQ(cache.stats().pool.used_pages, 0u);
  EXPECT_EQ(cache.stats().prefix.pinned_pages, 0u);
}

TEST(PrefixSharing, ATableThatAgreedIsAskedAgainWhenAnotherShortensTheHit) {
  const std::vector<std::uint32_t> layers[] = {{0}, {1}, {2}};
  const KvLayerGroup groups[] = {{layers[0], 12}, {layers[1], 4}, {layers[2], -1}};
  KvCacheOptions options = tiny(60);
  options.shape.num_layers = 3;
  options.layer_groups = groups;
  KvCache cache = KvCache::create(options).value();
  Sequence a = cache.open(run_of_tokens(20)).value();
  for (const std::uint32_t num_new : {8u, 12u}) ASSERT_TRUE(cache.begin_step({{&a, num_new}}).value().commit());
  Sequence b = cache.open(run_of_tokens(9)).value();
  ASSERT_EQ(b.cached_tokens(), 8u);
  ASSERT_EQ(b.slide(0, 0, 0).value(), 2u);
  ASSERT_EQ(a.slide(0, 0, 1).value(), 1u);
  press(cache, 0);
  // Left are pages 2..4 of the first table, page 1 of the second, all of the third. 20 tokens would do for the first
  // table, 8 for the second; but there the first lacks its pages 0 and 1.
  EXPECT_EQ(cache.stats().prefix.published_pages, 3u + 1 + 5);
  EXPECT_EQ(cache.open(run_of_tokens(21)).value().cached_tokens(), 0u);
}

TEST(PrefixSharing, AHitIsShortenedToWhereEveryWindowAndSinkIsThere) {
  KvCache cache = full_and_sliding(60, 8, 5);
  const std::vector<Token> prompt = run_of_tokens(40);
  {
    Sequence a = cache.open(prompt).value();
    for (const std::size_t length : {12u, 24u, 40u}) {
      prefill(cache, a, run_of_tokens(length));
    }
    const PinId pin = cache.pin(run_of_tokens(24)).value();  // two pages of the window, two of sinks, six full ones
    EXPECT_EQ(cache.stats().prefix.pinned_pages, 10u);
    ASSERT_TRUE(a.close());
    press(cache, 0);
    EXPECT_EQ(cache.stats().prefix.published_pages, 10u);
    EXPECT_EQ(cache.open(prompt).value().cached_tokens(), 24u);
    EXPECT_EQ(cache.open(run_of_tokens(24)).value().cached_tokens(), 8u) << "token 20 would see 12, which is gone";
    ASSERT_TRUE(cache.unpin(pin));
  }
  press(cache, 0);
  EXPECT_EQ(cache.open(prompt).value().cached_tokens(), 0u);
}

TEST(PrefixSharing, EventsOfASlidingGroupNameThePageBefore) {
  KvCache cache = full_and_sliding(20, 4, 0, 100);
  ASSERT_TRUE(serve(cache, run_of_tokens(20)).close());
  press(cache, 0);
  struct Seen {
    std::map<PageId, std::pair<std::uint64_t, std::uint64_t>> stored;  // hash and parent's hash
    std::set<std::uint64_t> hashes;
    int num_evicted = 0, num_roots = 0;
  } seen;
  cache.poll_events(
      [](void* user, const CacheEvent& event) noexcept {
        auto& all = *static_cast<Seen*>(user);
        if (event.kind == CacheEventKind::kStored) {
          all.stored[event.page] = {event.hash, event.parent_hash};
          all.num_roots += all.hashes.count(event.parent_hash) == 0 ? 1 : 0;
          EXPECT_TRUE(all.hashes.insert(event.hash).second) << "each table has hashes of its own";
          return;
        }
        EXPECT_EQ(all.stored[event.page], (std::pair{event.hash, event.parent_hash}));
        ++all.num_evicted;
      },
      &seen);
  EXPECT_EQ(seen.stored.size(), 10u);
  EXPECT_EQ(seen.num_evicted, 10);
  EXPECT_EQ(seen.num_roots, 2) << "the first pages of both tables";
}

TEST(PrefixSharing, CanBeTurnedOff) {
  KvCacheOptions options = tiny(8);
  options.prefix_cache = false;
  KvCache cache = KvCache::create(options).value();
  (void)serve(cache, run_of_tokens(8));
  EXPECT_EQ(cache.open(run_of_tokens(8)).value().cached_tokens(), 0u);
  EXPECT_EQ(cache.stats().pool.evictable_pages, 0u);
  EXPECT_EQ(cache.pin(run_of_tokens(8)).error(), Errc::kUnsupported);
  EXPECT_EQ(cache.unpin(PinId{1}).error(), Errc::kUnsupported);
}

TEST(PrefixSharing, CapacityIsRaisedAndLoweredWhileServing) {
  KvCacheOptions options = tiny(4);
  options.max_capacity_pages = 8;
  KvCache cache = KvCache::create(options).value();
  Sequence a = serve(cache, run_of_tokens(16));
  ASSERT_TRUE(cache.set_capacity(8));
  Sequence b = serve(cache, run_of_tokens(16, 100));
  EXPECT_EQ(k_of(cache, b, 15), 115);
  EXPECT_EQ(cache.set_capacity(9).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.set_capacity(7).error(), Errc::kInvalidArgument) << "less than is in use";
  ASSERT_TRUE(a.close());
  ASSERT_TRUE(cache.set_capacity(4)) << "cached pages are evicted";
  EXPECT_EQ(cache.pages_available(), 0u);
  EXPECT_EQ(cache.open(run_of_tokens(16)).value().cached_tokens(), 0u);
}

TEST(PrefixSharing, SequencesOutliveTheCache) {
  Sequence a;
  {
    KvCache cache = tiny_cache(8);
    a = serve(cache, run_of_tokens(10));
  }
  EXPECT_EQ(a.num_tokens(), 10u);
  ASSERT_TRUE(a.truncate(6));
  EXPECT_TRUE(a.append(3));
}

}  // namespace
}  // namespace pagedkv
