// A reservation over many sequences happens whole or not at all, and ends in a full, a partial or no commit.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "pool/pool_impl.h"
#include "sequence/control.h"
#include "sequence/sequence_store.h"
#include "support/failing_new.h"

namespace pagedkv {
namespace {

using sequence::ReserveItem;

struct Fixture {
  explicit Fixture(std::uint64_t capacity_pages, std::uint32_t page_size = 4)
      : pool(PagePool::create({.page_bytes = 256, .capacity_pages = capacity_pages, .huge_pages = HugePages::kNever})
                 .value()),
        store(SequenceStore::create(pool, page_size).value()) {}
  Sequence open(std::uint32_t num_tokens) {
    Sequence s = store.open().value();
    EXPECT_EQ(s.append(num_tokens).has_value(), num_tokens > 0);
    return s;
  }
  Result<void> reserve(const std::vector<ReserveItem>& items) { return sequence::reserve(*store.impl(), items); }
  PagePool pool;
  SequenceStore store;
};

std::vector<PageId> pages_of(const Sequence& sequence) { return {sequence.pages().begin(), sequence.pages().end()}; }

TEST(Reserve, TakesPagesOfAllSequencesOrNone) {
  Fixture f(5);
  Sequence a = f.open(3);
  Sequence b = f.open(4);
  EXPECT_EQ(f.reserve({{a.control(), 5}, {b.control(), 9}}).error(), Errc::kOutOfPages);
  EXPECT_EQ(f.pool.stats().used_pages, 2U);
  ASSERT_TRUE(f.reserve({{a.control(), 5}, {b.control(), 8}}));
  EXPECT_EQ(f.pool.stats().used_pages, 5U);
  EXPECT_EQ(a.control()->pages().size(), 2U);
  EXPECT_EQ(a.num_tokens(), 3U) << "not held yet";
  sequence::commit(*a.control(), 5);
  sequence::commit(*b.control(), 8);
  EXPECT_EQ(a.num_tokens(), 8U);
  EXPECT_EQ(b.num_tokens(), 12U);
}

TEST(Reserve, PartialCommitGivesTheRestBack) {
  Fixture f(10);
  Sequence a = f.open(3);
  ASSERT_TRUE(f.reserve({{a.control(), 17}}));
  EXPECT_EQ(f.pool.stats().used_pages, 5U);
  sequence::commit(*a.control(), 2);
  EXPECT_EQ(a.num_tokens(), 5U);
  EXPECT_EQ(f.pool.stats().used_pages, 2U);
}

TEST(Reserve, RollBackPutsASharedLastPageBack) {
  Fixture f(10);
  Sequence a = f.open(6);
  Sequence b = a.fork().value();
  const auto before = pages_of(a);
  ASSERT_TRUE(f.reserve({{a.control(), 4}, {b.control(), 1}}));
  EXPECT_NE(a.pages()[1], before[1]);
  EXPECT_NE(b.pages()[1], before[1]);
  EXPECT_NE(b.pages()[1], a.pages()[1]);
  sequence::roll_back(*a.control());
  EXPECT_EQ(pages_of(a), before);
  sequence::roll_back(*b.control());
  EXPECT_EQ(pages_of(b), before);
  EXPECT_EQ(f.pool.stats().used_pages, 2U);
  EXPECT_EQ(f.pool.stats().shared_pages, 2U);
}

TEST(Reserve, CommitOfACopyLeavesTheSharedPage) {
  Fixture f(10);
  Sequence a = f.open(6);
  Sequence b = a.fork().value();
  ASSERT_TRUE(f.reserve({{a.control(), 4}}));
  sequence::commit(*a.control(), 1);
  EXPECT_EQ(a.num_tokens(), 7U);
  EXPECT_EQ(f.pool.stats().used_pages, 3U);
  EXPECT_EQ(f.pool.ref_count(b.pages()[1]), 1U);
  EXPECT_EQ(f.store.impl()->copied_pages.load(), 1U);
}

TEST(Reserve, BusySequencesRefuseEverythingElse) {
  Fixture f(10);
  Sequence a = f.open(6);
  ASSERT_TRUE(f.reserve({{a.control(), 1}}));
  EXPECT_EQ(a.append(1).error(), Errc::kBusy);
  EXPECT_EQ(a.truncate(1).error(), Errc::kBusy);
  EXPECT_EQ(a.fork().error(), Errc::kBusy);
  EXPECT_EQ(a.close().error(), Errc::kBusy);
  EXPECT_EQ(a.slide(1).error(), Errc::kBusy);
  EXPECT_EQ(f.reserve({{a.control(), 1}}).error(), Errc::kBusy);
  sequence::roll_back(*a.control());
  EXPECT_TRUE(a.close());
}

TEST(Reserve, ASequenceDroppedInAStepIsClosedByItsEnd) {
  Fixture f(10);
  Sequence::Control* control = nullptr;
  {
    Sequence a = f.open(6);
    control = a.control();
    ASSERT_TRUE(f.reserve({{control, 4}}));
  }
  EXPECT_EQ(f.pool.stats().used_pages, 3U) << "the step still needs them";
  EXPECT_EQ(f.store.open_sequences(), 1U);
  sequence::commit(*control, 4);
  EXPECT_EQ(f.pool.stats().used_pages, 0U);
  EXPECT_EQ(f.store.open_sequences(), 0U);
}

TEST(Reserve, DroppingASequenceWhileAnotherThreadEndsItsStepFreesItOnce) {
  Fixture f(10);
  for (int round = 0; round < 500; ++round) {
    Sequence a = f.open(6);
    Sequence::Control* const control = a.control();
    ASSERT_TRUE(f.reserve({{control, 4}}));
    std::thread ender([control] { sequence::commit(*control, 2); });
    a = Sequence();
    ender.join();
    ASSERT_EQ(f.pool.stats().used_pages, 0U);
    ASSERT_EQ(f.store.open_sequences(), 0U);
  }
}

TEST(Reserve, RefusesBadItemsAndChangesNothing) {
  Fixture f(10);
  Fixture other(10);
  Sequence a = f.open(6);
  Sequence foreign = other.open(1);
  EXPECT_EQ(f.reserve({}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(f.reserve({{a.control(), 1}, {nullptr, 1}}).error(), Errc::kClosed);
  EXPECT_EQ(f.reserve({{a.control(), 1}, {foreign.control(), 1}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(f.reserve({{a.control(), 1}, {a.control(), 1}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(f.reserve({{a.control(), 0}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(f.reserve({{a.control(), (1U << 31) - 1}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(f.reserve({{a.control(), ~0U}}).error(), Errc::kInvalidArgument);
  EXPECT_FALSE(a.control()->is_busy());
  EXPECT_EQ(f.pool.stats().used_pages, 2U);
  EXPECT_TRUE(a.append(1));
}

TEST(Reserve, CountsWhatItWouldTake) {
  Fixture f(10);
  Sequence a = f.open(6);
  Sequence b = a.fork().value();
  const std::vector<ReserveItem> items = {{a.control(), 1}, {b.control(), 3}};
  EXPECT_EQ(sequence::count_pages(*f.store.impl(), items).value(), 3U);
  EXPECT_FALSE(a.control()->is_busy());
  const std::uint64_t free_before = f.pool.stats().free_pages;
  ASSERT_TRUE(f.reserve(items));
  EXPECT_EQ(free_before - f.pool.stats().free_pages, 3U);
  EXPECT_EQ(sequence::count_pages(*f.store.impl(), items).error(), Errc::kBusy);
  sequence::roll_back(*a.control());
  sequence::roll_back(*b.control());
}

TEST(Reserve, ASequenceMayHoldAsManyTokensAsABatchCanIndex) {
  Fixture f(10, 256);
  Sequence a = f.open(0), b = f.open(1);
  const std::vector<ReserveItem> longest = {{a.control(), 1U << 30}}, too_long = {{b.control(), 1U << 30}};
  EXPECT_EQ(sequence::count_pages(*f.store.impl(), longest).value(), 1U << 22);
  EXPECT_EQ(sequence::count_pages(*f.store.impl(), too_long).error(), Errc::kInvalidArgument);
  EXPECT_EQ(f.reserve(longest).error(), Errc::kOutOfPages);
}

TEST(Reserve, CountingRefusesWhatReservingRefusesAndLeavesNothingBusy) {
  Fixture f(10);
  Sequence a = f.open(6), b = f.open(2);
  const auto error_of = [&f](const std::vector<ReserveItem>& items) {
    return sequence::count_pages(*f.store.impl(), items).error();
  };
  EXPECT_EQ(error_of({}), Errc::kInvalidArgument);
  EXPECT_EQ(error_of({{a.control(), 1}, {nullptr, 1}}), Errc::kClosed);
  EXPECT_EQ(error_of({{a.control(), 1}, {b.control(), 0}}), Errc::kInvalidArgument);
  EXPECT_FALSE(a.control()->is_busy());
  EXPECT_FALSE(b.control()->is_busy());
}

TEST(Reserve, TokenIdsFollowTheTokens) {
  Fixture f(10);
  Sequence a = f.open(0);
  const std::vector<Token> first = {1, 2, 3};
  const std::vector<Token> second = {4, 5};
  ASSERT_TRUE(f.reserve({{a.control(), 3, first}}));
  sequence::commit(*a.control(), 3);
  ASSERT_TRUE(f.reserve({{a.control(), 2, second}}));
  sequence::roll_back(*a.control());
  EXPECT_EQ(a.tokens().size(), 3U);
  ASSERT_TRUE(f.reserve({{a.control(), 2, second}}));
  sequence::commit(*a.control(), 1);
  EXPECT_EQ(std::vector<Token>(a.tokens().begin(), a.tokens().end()), (std::vector<Token>{1, 2, 3, 4}));
  ASSERT_TRUE(a.truncate(2));
  EXPECT_EQ(a.tokens().size(), 2U);
}

TEST(Reserve, TokenIdsOfAPromptMustBeRepeatedFaithfully) {
  Fixture f(10);
  Sequence a = f.open(0);
  a.control()->token_ids = {1, 2, 3, 4};
  const std::vector<Token> right = {1, 2};
  const std::vector<Token> wrong = {1, 7};
  const std::vector<Token> beyond = {3, 4, 5};
  EXPECT_EQ(f.reserve({{a.control(), 2, wrong}}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(f.reserve({{a.control(), 3, right}}).error(), Errc::kInvalidArgument) << "of the wrong count";
  ASSERT_TRUE(f.reserve({{a.control(), 2, right}}));
  sequence::commit(*a.control(), 2);
  EXPECT_EQ(a.tokens().size(), 4U) << "the prompt stays known";
  ASSERT_TRUE(f.reserve({{a.control(), 3, beyond}}));
  sequence::commit(*a.control(), 3);
  EXPECT_EQ(a.tokens().size(), 5U);
}

TEST(Reserve, TokenIdsBehindAGapOfUnknownOnesAreNotKept) {
  Fixture f(10);
  Sequence a = f.open(2);
  const std::vector<Token> ids = {3, 4};
  ASSERT_TRUE(f.reserve({{a.control(), 2, ids}}));
  sequence::commit(*a.control(), 2);
  EXPECT_TRUE(a.tokens().empty());
}

TEST(Reserve, RollBackForgetsTheIdsThatTheStepBroughtAlone) {
  Fixture f(10);
  Sequence a = f.open(0);
  a.control()->token_ids = {1, 2, 3};
  const std::vector<Token> beyond = {1, 2, 3, 4, 5};
  ASSERT_TRUE(f.reserve({{a.control(), 5, beyond}}));
  EXPECT_EQ(a.tokens().size(), 5U);
  sequence::roll_back(*a.control());
  EXPECT_EQ(std::vector<Token>(a.tokens().begin(), a.tokens().end()), (std::vector<Token>{1, 2, 3}));
}

TEST(Reserve, FailsCleanlyAtEveryAllocation) {
  Fixture f(4000);
  int failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    Sequence a = f.open(50);
    const std::vector<Token> ids(9000);
    a.control()->token_ids.resize(50);
    const ReserveItem item{a.control(), 9000, ids};
    const auto before = pages_of(a);
    Result<void> done;
    {
      const testing::FailingNew faults(fail_at);
      done = sequence::reserve(*f.store.impl(), {&item, 1});
    }
    if (done) {
      sequence::roll_back(*a.control());
      break;
    }
    ++failures;
    EXPECT_EQ(done.error(), Errc::kOutOfMemory);
    EXPECT_EQ(pages_of(a), before);
    EXPECT_FALSE(a.control()->is_busy());
    EXPECT_EQ(f.pool.stats().used_pages, 13U);
  }
  EXPECT_EQ(failures, 4) << "ids, page table, room for the ids, pages";
}

TEST(Reserve, MorePagesThanThePoolCanHaveAreRefusedWithoutRoomForThem) {
  Fixture f(10, 1);
  Sequence a = f.open(3), b = f.open(2);
  const std::vector<ReserveItem> items = {{b.control(), 1}, {a.control(), (1U << 30) - 3}};
  {
    const testing::FailingNew counting(-1);
    EXPECT_EQ(sequence::reserve(*f.store.impl(), items).error(), Errc::kOutOfPages);
    EXPECT_EQ(counting.count(), 0) << "page tables of 4 GiB";
  }
  EXPECT_EQ(f.pool.stats().failed_allocations, 1U);
  EXPECT_EQ(f.pool.stats().used_pages, 5U);
  EXPECT_TRUE(b.append(1)) << "not busy";
  EXPECT_TRUE(a.append(4));
}

TEST(Reserve, OpenAndForkFailCleanlyAtEveryAllocation) {
  Fixture f(100);
  Sequence a = f.open(300);
  a.control()->token_ids.resize(300);
  int failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    Fixture fresh(100);
    Result<Sequence> opened = Error{};
    Result<Sequence> forked = Error{};
    std::int64_t num_allocations = 0;
    {
      const testing::FailingNew faults(fail_at);
      opened = fresh.store.open();
      if (opened) forked = a.fork();
      num_allocations = faults.count();
    }
    if (num_allocations <= fail_at) break;
    if (forked) continue;  // the pool of nodes asks for less when it cannot have much
    ++failures;
    EXPECT_EQ(opened ? forked.error() : opened.error(), Errc::kOutOfMemory);
    EXPECT_EQ(fresh.store.open_sequences(), opened ? 1U : 0U);
    EXPECT_EQ(f.store.open_sequences(), 1U);
    EXPECT_EQ(f.pool.stats().shared_pages, 0U);
  }
  EXPECT_EQ(failures, 2) << "page table, ids";
}

TEST(Reserve, WithoutAnyMemoryNothingIsOpened) {
  Fixture f(100);
  {
    const testing::FailingNew faults(0, true);
    EXPECT_EQ(f.store.open().error(), Errc::kOutOfMemory);
  }
  EXPECT_EQ(f.store.open_sequences(), 0U);
  EXPECT_TRUE(f.store.open());
}

TEST(Reserve, AStepOfDecodeAllocatesNoMemory) {
  Fixture f(100);
  Sequence a = f.open(5);
  Sequence b = f.open(9);
  ASSERT_TRUE(a.append(100));
  ASSERT_TRUE(b.append(100));
  ASSERT_TRUE(a.truncate(5));
  ASSERT_TRUE(b.truncate(9));
  const std::vector<ReserveItem> items = {{a.control(), 1}, {b.control(), 1}};
  const testing::FailingNew counting(-1);
  for (int step = 0; step < 50; ++step) {
    ASSERT_TRUE(sequence::reserve(*f.store.impl(), items));
    for (const ReserveItem& item : items) sequence::commit(*item.control, 1);
  }
  EXPECT_EQ(counting.count(), 0);
}

}  // namespace
}  // namespace pagedkv
