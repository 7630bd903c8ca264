// KvCache and Step: the transaction over a batch, what a scheduler asks, and misuse.
#include "pagedkv/kv_cache.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "unit/cache/tiny_cache.h"

namespace pagedkv {
namespace {

TEST(Step, ReservesThePagesOfAllItemsWithOneCall) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value(), b = cache.open().value();
  Step step = cache.begin_step({{&a, 5}, {&b, 1}}).value();
  EXPECT_EQ(step.num_items(), 2u);
  EXPECT_EQ(step.num_rows(), 6u);
  EXPECT_EQ(cache.stats().pool.used_pages, 3u);
  EXPECT_EQ(a.num_tokens(), 0u);
  ASSERT_TRUE(step.commit());
  EXPECT_EQ(a.num_tokens(), 5u);
  EXPECT_EQ(b.num_tokens(), 1u);
}

TEST(Step, ThatDoesNotFitLeavesEverySequenceAsItWas) {
  KvCache cache = tiny_cache(3);
  Sequence a = cache.open().value(), b = cache.open().value();
  feed(cache, a, 5, 1);
  const std::vector<PageId> pages(a.pages().begin(), a.pages().end());
  const PoolStats before = cache.stats().pool;
  EXPECT_EQ(cache.begin_step({{&a, 4}, {&b, 4}}).error(), Errc::kOutOfPages);
  EXPECT_EQ(a.num_tokens(), 5u);
  EXPECT_EQ(b.num_tokens(), 0u);
  EXPECT_TRUE(std::equal(pages.begin(), pages.end(), a.pages().begin(), a.pages().end()));
  EXPECT_TRUE(b.pages().empty());
  EXPECT_EQ(cache.stats().pool.used_pages, before.used_pages);
  EXPECT_EQ(cache.stats().pool.failed_allocations, before.failed_allocations + 1);
  EXPECT_TRUE(a.truncate(4)) << "no sequence was left busy";
  EXPECT_TRUE(cache.begin_step({{&b, 4}}));
}

TEST(Step, DroppedWithoutCommitRollsBack) {
  KvCache cache = tiny_cache(4);
  Sequence a = cache.open().value();
  feed(cache, a, 3, 1);
  {
    Step step = cache.begin_step({{&a, 6}}).value();
    write_all(step, 9);
  }
  EXPECT_EQ(a.num_tokens(), 3u);
  EXPECT_EQ(a.pages().size(), 1u);
  EXPECT_EQ(k_of(cache, a, 2), 1);
  EXPECT_EQ(cache.stats().steps_rolled_back, 1u);
  EXPECT_EQ(cache.pages_available(), 3u);
}

TEST(Step, MoveAssignmentRollsTheTargetBack) {
  KvCache cache = tiny_cache(4);
  Sequence a = cache.open().value(), b = cache.open().value();
  Step step = cache.begin_step({{&a, 1}}).value();
  step = cache.begin_step({{&b, 1}}).value();
  EXPECT_TRUE(a.append(1)) << "a is not in a step any more";
  EXPECT_TRUE(step.commit());
  EXPECT_EQ(b.num_tokens(), 1u);
}

TEST(Step, PartialCommitKeepsTheFirstTokensAndReleasesTheirEmptyPages) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value(), b = cache.open().value();
  Step step = cache.begin_step({{&a, 9}, {&b, 2}}).value();
  write_all(step, 3);
  const std::array<std::uint32_t, 2> accepted{5, 0};
  ASSERT_TRUE(step.commit(accepted));
  EXPECT_EQ(a.num_tokens(), 5u);
  EXPECT_EQ(a.pages().size(), 2u);
  EXPECT_EQ(b.num_tokens(), 0u);
  EXPECT_EQ(cache.stats().pool.used_pages, 2u);
  EXPECT_EQ(cache.stats().tokens_committed, 5u);
}

TEST(Step, CommitOfWrongCountsIsRefusedAndTheStepGoesOn) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value();
  Step step = cache.begin_step({{&a, 3}}).value();
  EXPECT_EQ(step.commit(std::array<std::uint32_t, 1>{4}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(step.commit(std::array<std::uint32_t, 2>{1, 1}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(step.commit(std::span<const std::uint32_t>{}).error(), Errc::kInvalidArgument);
  write_all(step, 1);
  EXPECT_TRUE(step.commit(std::array<std::uint32_t, 1>{2}));
  EXPECT_EQ(a.num_tokens(), 2u);
}

TEST(Step, IsClosedAfterCommitRollbackAndMove) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value();
  std::vector<float> rows(4), out(8);
  Step step = cache.begin_step({{&a, 1}}).value();
  ASSERT_TRUE(step.commit());
  EXPECT_EQ(step.commit().error(), Errc::kClosed);
  EXPECT_EQ(step.write(0, rows, rows).error(), Errc::kClosed);
  EXPECT_EQ(step.attend(0, out, out).error(), Errc::kClosed);
  step.rollback();
  EXPECT_EQ(a.num_tokens(), 1u) << "rollback after commit changes nothing";

  Step second = cache.begin_step({{&a, 1}}).value();
  Step third = std::move(second);
  EXPECT_EQ(second.commit().error(), Errc::kClosed);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(second.num_rows(), 0u);
  third.rollback();
  EXPECT_EQ(third.commit().error(), Errc::kClosed);
  EXPECT_EQ(Step().commit().error(), Errc::kClosed);
}

TEST(Step, MovedFromAnswersAsOneThatIsOver) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value();
  std::vector<float> rows(4), q(8), out(8);
  Step step = cache.begin_step({{&a, 1}}).value();
  Step moved = std::move(step);
  // NOLINTBEGIN(bugprone-use-after-move)
  EXPECT_EQ(step.write(0, rows, rows).error(), Errc::kClosed);
  EXPECT_EQ(step.attend(0, q, out).error(), Errc::kClosed);
  EXPECT_EQ(step.commit(std::array<std::uint32_t, 1>{1}).error(), Errc::kClosed);
  EXPECT_EQ(step.num_items(), 0u);
  step.rollback();
  // NOLINTEND(bugprone-use-after-move)
  Step& alias = moved;
  moved = std::move(alias);
  EXPECT_EQ(moved.num_items(), 1u);
  ASSERT_TRUE(moved.commit(std::array<std::uint32_t, 1>{1}));
  EXPECT_EQ(moved.commit(std::array<std::uint32_t, 1>{1}).error(), Errc::kClosed);
}

TEST(Step, OfTooManyTokensIsRefused) {
  KvCacheOptions options = tiny(8);
  options.page_size = 256;
  KvCache cache = KvCache::create(options).value();
  Sequence a = cache.open().value(), b = cache.open().value();
  const std::uint32_t most = kMaxHeadRows / options.shape.num_kv_heads;
  EXPECT_EQ(cache.begin_step({{&a, most}}).error(), Errc::kOutOfPages) << "as many as attention takes";
  EXPECT_EQ(cache.begin_step({{&a, most}, {&b, 1}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.begin_step({{&a, 1}}).value().num_rows(), 1u) << "rows of a step that was refused are not counted";
}

TEST(Step, AttendsWhatItsSequencesHoldWhenItIsReused) {
  KvCache cache = tiny_cache(32);
  Sequence a = cache.open().value(), b = cache.open().value();
  const auto attend = [&](Sequence& sequence, std::uint32_t num_tokens, float value) {
    Step step = cache.begin_step({{&sequence, num_tokens}}).value();
    write_all(step, value);
    const std::vector<float> q(num_tokens * 8, 0);
    std::vector<float> out(q.size());
    EXPECT_TRUE(step.attend(1, q, out));
    EXPECT_TRUE(step.commit());
    return out[out.size() - 8];  // of the last row
  };
  EXPECT_NEAR(attend(a, 3, 1), 1, 1e-6);
  EXPECT_NEAR(attend(b, 6, 4), 4, 1e-6);
  EXPECT_NEAR(attend(a, 1, 9), (3 + 9) / 4.0, 1e-5);
  EXPECT_NEAR(attend(b, 2, 0), 24 / 8.0, 1e-5);
  EXPECT_NEAR(attend(a, 5, 1), (3 + 9 + 5) / 9.0, 1e-5);
}

TEST(Step, MakesItsSequencesBusy) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value();
  Step step = cache.begin_step({{&a, 1}}).value();
  EXPECT_EQ(a.append(1).error(), Errc::kBusy);
  EXPECT_EQ(a.truncate(0).error(), Errc::kBusy);
  EXPECT_EQ(a.fork().error(), Errc::kBusy);
  EXPECT_EQ(a.close().error(), Errc::kBusy);
  EXPECT_EQ(cache.begin_step({{&a, 1}}).error(), Errc::kBusy);
}

TEST(Step, BadItemsAreRefused) {
  KvCache cache = tiny_cache(8), other = tiny_cache(8);
  Sequence a = cache.open().value(), closed = cache.open().value(), foreign = other.open().value();
  ASSERT_TRUE(closed.close());
  const std::vector<Token> two(2, 7);
  EXPECT_EQ(cache.begin_step({}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.begin_step({{nullptr, 1}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.begin_step({{&a, 0}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.begin_step({{&a, 1}, {&a, 1}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.begin_step({{&a, 1}, {&foreign, 1}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.begin_step({{&a, 1}, {&closed, 1}}).error(), Errc::kClosed);
  EXPECT_EQ(cache.begin_step({{&a, 1, two}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.begin_step({{&a, std::numeric_limits<std::uint32_t>::max()}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.stats().steps_begun, 0u);
  EXPECT_EQ(cache.stats().pool.used_pages, 0u);
  EXPECT_TRUE(cache.begin_step({{&a, 1}})) << "nothing was left busy";
}

TEST(Step, WrongLayersAndSizesAreRefusedAndTheStepGoesOn) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value();
  Step step = cache.begin_step({{&a, 2}}).value();
  std::vector<float> rows(8), shorter(7), q(16), out(16), lse(4), long_lse(5);
  EXPECT_EQ(step.write(2, rows, rows).error(), Errc::kInvalidArgument);
  EXPECT_EQ(step.write(0, shorter, rows).error(), Errc::kInvalidArgument);
  EXPECT_EQ(step.write(0, rows, shorter).error(), Errc::kInvalidArgument);
  EXPECT_EQ(step.attend(2, q, out).error(), Errc::kInvalidArgument);
  EXPECT_EQ(step.attend(0, shorter, out).error(), Errc::kInvalidArgument);
  EXPECT_EQ(step.attend(0, q, shorter).error(), Errc::kInvalidArgument);
  EXPECT_EQ(step.attend(0, q, out, long_lse).error(), Errc::kInvalidArgument);
  write_all(step, 1);
  EXPECT_TRUE(step.attend(1, q, out, lse));
  EXPECT_TRUE(step.commit());
}

TEST(Step, CopiesASharedLastPageBeforeItWritesIt) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value();
  feed(cache, a, 6, 1);
  Sequence b = a.fork().value();
  EXPECT_EQ(cache.pages_needed(std::array<StepItem, 1>{{{&b, 1, {}}}}).value(), 1u);
  feed(cache, b, 1, 5);
  EXPECT_EQ(cache.stats().copied_pages, 1u);
  EXPECT_EQ(a.pages()[0], b.pages()[0]);
  EXPECT_NE(a.pages()[1], b.pages()[1]);
  EXPECT_EQ(k_of(cache, b, 5), 1);
  EXPECT_EQ(k_of(cache, b, 6), 5);
  feed(cache, a, 1, 7);
  EXPECT_EQ(cache.stats().copied_pages, 1u) << "a holds its last page alone by now";
  EXPECT_EQ(k_of(cache, a, 6), 7);
  EXPECT_EQ(k_of(cache, b, 6), 5);
}

TEST(Step, RollbackOfACopyOnWriteRestoresTheSharing) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value();
  feed(cache, a, 2, 1);
  Sequence b = a.fork().value();
  {
    Step step = cache.begin_step({{&b, 1}}).value();
  }
  EXPECT_EQ(a.pages()[0], b.pages()[0]);
  EXPECT_EQ(cache.stats().pool.used_pages, 1u);
}

TEST(Step, RecordsTheIdsOfTokens) {
  KvCache cache = tiny_cache(8);
  const std::vector<Token> prompt{1, 2, 3}, next{4, 5};
  Sequence a = cache.open(prompt).value();
  feed(cache, a, 3, 1);
  Step step = cache.begin_step({{&a, 2, next}}).value();
  ASSERT_TRUE(step.commit(std::array<std::uint32_t, 1>{1}));
  EXPECT_EQ(std::vector<Token>(a.tokens().begin(), a.tokens().end()), (std::vector<Token>{1, 2, 3, 4}));
  {
    Step dropped = cache.begin_step({{&a, 2, next}}).value();
  }
  EXPECT_EQ(a.tokens().size(), 4u);
}

TEST(Step, TakesIdsThatLieInTheSequencesThatGrow) {
  KvCache cache = tiny_cache(64);
  std::vector<Token> prompt(16);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<Token>(100 + i);
  Sequence a = cache.open(prompt).value(), b = cache.open().value();
  feed(cache, a, 16, 1);
  Step step = cache.begin_step({{&a, 8, a.tokens().first(8)}, {&b, 16, a.tokens()}}).value();  // as a drafter repeats
  ASSERT_TRUE(step.commit());
  EXPECT_EQ(std::vector<Token>(b.tokens().begin(), b.tokens().end()), prompt);
  EXPECT_TRUE(std::equal(prompt.begin(), prompt.begin() + 8, a.tokens().begin() + 16));
}

TEST(Step, HoldsPagesThatItsSequencesNeedNoMore) {
  KvCache cache = tiny_cache(64);
  Sequence a = cache.open().value();
  feed(cache, a, 2, 1);
  const Step step = cache.begin_step({{&a, 10 * kPageSize}}).value();
  EXPECT_EQ(a.pages_needed(1), 0u);
}

TEST(KvCache, WorksOnWhenItsPoolWasMovedAway) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value();
  const PagePool away = std::move(cache.pool());
  feed(cache, a, 2, 3);
  EXPECT_EQ(k_of(cache, a, 1), 3);
}

TEST(KvCache, CountsPagesForStepsOfAnySize) {
  KvCacheOptions options = tiny(8);
  options.attention.window_left = 100;
  const KvCache cache = KvCache::create(options).value();
  EXPECT_EQ(cache.pages_for_tokens(UINT64_MAX, UINT64_MAX - 1), UINT64_MAX / kPageSize + 1);
}

TEST(KvCache, SequencesAndStepsOutliveIt) {
  std::optional<KvCache> cache = tiny_cache(8);
  Sequence a = cache->open().value();
  feed(*cache, a, 2, 1);
  Sequence b = a.fork().value();
  Step step = cache->begin_step({{&a, 1}}).value();
  cache.reset();
  write_all(step, 2);
  EXPECT_TRUE(step.commit());
  EXPECT_TRUE(b.append(1)) << "copy on write without the cache";
  EXPECT_EQ(a.num_tokens(), 3u);
}

TEST(KvCache, SequenceDroppedInAStepEndsWithIt) {
  KvCache cache = tiny_cache(8);
  Step step;
  {
    Sequence a = cache.open().value();
    step = cache.begin_step({{&a, 5}}).value();
  }
  write_all(step, 1);
  EXPECT_EQ(cache.stats().open_sequences, 1u);
  EXPECT_TRUE(step.commit());
  EXPECT_EQ(cache.stats().open_sequences, 0u);
  EXPECT_EQ(cache.stats().pool.used_pages, 0u);
}

TEST(KvCache, AnswersWhatASchedulerAsks) {
  KvCacheOptions options = tiny(10);
  options.watermark_pages = 2;
  KvCache cache = KvCache::create(options).value();
  EXPECT_EQ(cache.pages_available(), 10u);
  EXPECT_EQ(cache.pages_for_tokens(0), 0u);
  EXPECT_EQ(cache.pages_for_tokens(9), 3u);
  EXPECT_EQ(cache.pages_for_tokens(std::numeric_limits<std::uint64_t>::max()), 1ull << 62);
  EXPECT_TRUE(cache.can_admit(32));
  EXPECT_FALSE(cache.can_admit(33)) << "two pages are kept in hand";
  EXPECT_FALSE(cache.can_admit(16, 17));
  EXPECT_FALSE(cache.can_admit(std::numeric_limits<std::uint64_t>::max(), 1));
  EXPECT_FALSE(cache.can_admit(1ull << 40));

  Sequence a = cache.open().value();
  const std::array<StepItem, 1> items{{{&a, 9, {}}}};
  EXPECT_EQ(cache.pages_needed(items).value(), 3u);
  EXPECT_EQ(cache.stats().pool.used_pages, 0u);
  EXPECT_EQ(cache.pages_needed({}).error(), Errc::kInvalidArgument);
  Step step = cache.begin_step(items).value();
  EXPECT_EQ(cache.pages_available(), 7u);
  EXPECT_EQ(cache.pages_needed(items).error(), Errc::kBusy);
}

TEST(KvCache, AdmitsWhatASequenceMayHoldAndNoMore) {
  KvCacheOptions options = tiny(1u << 22);
  options.page_size = 256;
  const KvCache cache = KvCache::create(options).value();
  EXPECT_TRUE(cache.can_admit(kMaxSequenceTokens - 1, 1));
  EXPECT_TRUE(cache.can_admit(0));
  EXPECT_FALSE(cache.can_admit(kMaxSequenceTokens, 1));
}

TEST(KvCache, AskedForPagesOfItemsThatAreNoneSaysSo) {
  KvCache cache = tiny_cache(8);
  Sequence closed = cache.open().value(), a = cache.open().value();
  ASSERT_TRUE(closed.close());
  const auto error_of = [&cache](const StepItem& item) {
    return cache.pages_needed(std::array<StepItem, 1>{item}).error();
  };
  EXPECT_EQ(error_of({nullptr, 1, {}}), Errc::kInvalidArgument);
  EXPECT_EQ(error_of({&closed, 1, {}}), Errc::kClosed);
  EXPECT_EQ(error_of({&a, 0, {}}), Errc::kInvalidArgument);
  const std::vector<Token> two(2, 7);
  EXPECT_EQ(error_of({&a, 1, two}), Errc::kInvalidArgument) << "ids of another count";
  EXPECT_EQ(error_of({&a, 2, two}), Errc::kOk);
}

TEST(KvCache, RollbackPutsPagesBackSoThatTheNextStepFindsTheSame) {
  KvCache cache = tiny_cache(16);
  Sequence a = cache.open().value(), b = cache.open().value();
  const auto pages_of_step = [&] {
    Step step = cache.begin_step({{&a, 9}, {&b, 6}}).value();
    std::vector<PageId> pages(a.pages().begin(), a.pages().end());
    pages.insert(pages.end(), b.pages().begin(), b.pages().end());
    return pages;
  };
  const std::vector<PageId> first = pages_of_step();
  EXPECT_EQ(first.size(), 5u);
  EXPECT_EQ(pages_of_step(), first);
}

TEST(KvCache, ManyStepsAtOnceEndInAnyOrder) {
  KvCache cache = tiny_cache(64);
  std::vector<Sequence> sequences(20);
  for (Sequence& sequence : sequences) sequence = cache.open().value();
  for (int round = 0; round < 3; ++round) {
    std::vector<Step> steps;
    for (Sequence& sequence : sequences) steps.push_back(cache.begin_step({{&sequence, 2}}).value());
    for (std::size_t i = 0; i < steps.size(); ++i) {
      write_all(steps[i], static_cast<float>(100 * round) + static_cast<float>(i));
      if (i % 3 == 0) continue;
      ASSERT_TRUE(steps[i].commit());
    }
  }
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    EXPECT_EQ(sequences[i].num_tokens(), i % 3 == 0 ? 0u : 6u);
    if (i % 3 != 0) {
      EXPECT_EQ(k_of(cache, sequences[i], 5), 200 + static_cast<float>(i));
    }
  }
  EXPECT_EQ(cache.stats().steps_begun, 60u);
  EXPECT_EQ(cache.stats().steps_rolled_back, 21u);
}

TEST(KvCache, SaysWhatATokenCosts) {
  KvCacheOptions options = tiny(8);
  options.shape = {.num_layers = 2, .num_q_heads = 4, .num_kv_heads = 2, .head_dim = 3, .v_head_dim = 5};
  options.page_size = 3;
  const CacheStats stats = KvCache::create(options).value().stats();
  // Rows: 2 layers, 2 heads, (3 + 5) bf16. A page of three tokens has 192 bytes of them, a multiple of 64.
  EXPECT_EQ(stats.bytes_per_token, 64);
  EXPECT_EQ(stats.padding_bytes_per_token, 0);
  options.page_size = 1;
  const CacheStats padded = KvCache::create(options).value().stats();
  EXPECT_EQ(padded.bytes_per_token, 64);
  EXPECT_EQ(padded.padding_bytes_per_token, 0);
  options.shape.v_head_dim = 4;
  const CacheStats narrower = KvCache::create(options).value().stats();
  EXPECT_EQ(narrower.bytes_per_token, 64);
  EXPECT_EQ(narrower.padding_bytes_per_token, 64 - 2 * 2 * (3 + 4) * 2);
}

TEST(KvCache, APromptOfTooManyTokensIsRefusedWithoutAPrefixCacheToo) {
  KvCacheOptions options = tiny(8);
  options.prefix_cache = false;
  KvCache cache = KvCache::create(options).value();
  const std::vector<Token> prompt{1, 2, 3};
  const std::span<const Token> too_long(prompt.data(), std::size_t{1} << 31);  // never read
  EXPECT_EQ(cache.open(too_long).error(), Errc::kInvalidArgument);
  EXPECT_EQ(tiny_cache(8).pin(too_long).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.stats().open_sequences, 0u);
  Sequence a = cache.open(prompt).value();
  EXPECT_EQ(a.tokens().size(), 3u);
  EXPECT_EQ(cache.poll_events([](void*, const CacheEvent&) noexcept {}, nullptr), 0u);
  cache.clear_prefix_cache();
  EXPECT_EQ(cache.stats().prefix.lookups, 0u);
}

TEST(KvCache, CountsWhatHappened) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value();
  feed(cache, a, 3, 1);
  {
    Step step = cache.begin_step({{&a, 1}}).value();
  }
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.open_sequences, 1u);
  EXPECT_EQ(stats.steps_begun, 2u);
  EXPECT_EQ(stats.steps_committed, 1u);
  EXPECT_EQ(stats.steps_rolled_back, 1u);
  EXPECT_EQ(stats.tokens_committed, 3u);
  EXPECT_EQ(stats.pool.capacity_pages, 8u);
}

TEST(KvCache, ViewOfALayerThatIsNotThereIsRefused) {
  KvCache cache = tiny_cache(2);
  EXPECT_TRUE(cache.view(1));
  EXPECT_EQ(cache.view(2).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.view(1).value().num_pages, 2);
  EXPECT_EQ(cache.page_table_of(1).value(), 0u);
  EXPECT_EQ(cache.page_table_of(2).error(), Errc::kInvalidArgument);
  KvCacheOptions options = tiny(2);
  options.max_capacity_pages = 5;
  EXPECT_EQ(KvCache::create(options).value().view(0).value().num_pages, 5) << "all that there may ever be";
}

TEST(KvCache, MovedFromAnswersClosed) {
  KvCache cache = tiny_cache(2);
  KvCache moved = std::move(cache);
  Sequence a = moved.open().value();
  // NOLINTBEGIN(bugprone-use-after-move)
  EXPECT_EQ(cache.open().error(), Errc::kClosed);
  EXPECT_EQ(cache.begin_step({{&a, 1}}).error(), Errc::kClosed);
  EXPECT_EQ(cache.view(0).error(), Errc::kClosed);
  EXPECT_EQ(cache.trim().error(), Errc::kClosed);
  EXPECT_EQ(cache.pages_needed({}).error(), Errc::kClosed);
  EXPECT_EQ(cache.page_table_of(0).error(), Errc::kClosed);
  EXPECT_EQ(cache.set_capacity(1).error(), Errc::kClosed);
  EXPECT_EQ(cache.pin({}).error(), Errc::kClosed);
  EXPECT_EQ(cache.unpin(PinId{1}).error(), Errc::kClosed);
  EXPECT_EQ(cache.poll_events([](void*, const CacheEvent&) noexcept {}, nullptr), 0u);
  cache.clear_prefix_cache();
  EXPECT_EQ(cache.pages_for_tokens(1), 0u);
  EXPECT_FALSE(cache.can_admit(1));
  EXPECT_EQ(cache.pages_available(), 0u);
  EXPECT_EQ(cache.page_bytes(), 0u);
  EXPECT_EQ(cache.stats().pool.capacity_pages, 0u);
  EXPECT_EQ(cache.options().capacity_pages, 0u);
  EXPECT_EQ(cache.pool().trim().error(), Errc::kClosed);
  // NOLINTEND(bugprone-use-after-move)
}

TEST(KvCache, TrimGivesTheMemoryOfFreePagesBack) {
  KvCacheOptions options = tiny(64);
  options.shape.num_layers = 64;  // pages of 8 KiB
  KvCache cache = KvCache::create(options).value();
  Sequence a = cache.open().value();
  ASSERT_TRUE(a.append(64 * kPageSize));
  ASSERT_TRUE(a.truncate(kPageSize));
  EXPECT_EQ(cache.stats().pool.committed_bytes, 64 * cache.page_bytes());
  EXPECT_GT(cache.trim().value(), 0u);
  EXPECT_LE(cache.stats().pool.committed_bytes, 2 * cache.page_bytes());
}

}  // namespace
}  // namespace pagedkv
