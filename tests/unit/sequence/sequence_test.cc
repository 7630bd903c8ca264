// Sequence grows, shrinks, forks and closes; every page that it holds is counted, and nothing changes on error.
#include "pagedkv/sequence.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

namespace pagedkv {
namespace {

struct Fixture {
  explicit Fixture(std::uint64_t capacity_pages, std::uint32_t page_size = 4, std::vector<LayerGroup> groups = {})
      : pool(PagePool::create({.page_bytes = 256, .capacity_pages = capacity_pages, .huge_pages = HugePages::kNever})
                 .value()),
        store(SequenceStore::create(pool, page_size, groups).value()) {}
  PagePool pool;
  SequenceStore store;
};

std::vector<PageId> pages_of(const Sequence& sequence, std::size_t group = 0) {
  const auto pages = sequence.pages(group);
  return {pages.begin(), pages.end()};
}

TEST(Sequence, AppendTakesPagesAsTokensFillThem) {
  Fixture f(10);
  Sequence s = f.store.open().value();
  EXPECT_EQ(s.num_tokens(), 0U);
  EXPECT_EQ(s.pages_needed(5), 2U);
  ASSERT_TRUE(s.append(5));
  EXPECT_EQ(s.num_tokens(), 5U);
  EXPECT_EQ(s.pages().size(), 2U);
  EXPECT_EQ(s.pages_needed(3), 0U);
  ASSERT_TRUE(s.append(3));
  EXPECT_EQ(f.pool.stats().used_pages, 2U);
  ASSERT_TRUE(s.append(1));
  EXPECT_EQ(f.pool.stats().used_pages, 3U);
}

TEST(Sequence, AppendThatDoesNotFitChangesNothing) {
  Fixture f(3);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(7));
  const auto before = pages_of(s);
  EXPECT_EQ(s.append(6).error(), Errc::kOutOfPages);
  EXPECT_EQ(s.num_tokens(), 7U);
  EXPECT_EQ(pages_of(s), before);
  EXPECT_EQ(f.pool.stats().free_pages, 1U);
  EXPECT_TRUE(s.append(5));
}

TEST(Sequence, AppendRefusesNoTokensAndLengthsThatOverflow) {
  Fixture f(3);
  Sequence s = f.store.open().value();
  EXPECT_EQ(s.append(0).error(), Errc::kInvalidArgument);
  ASSERT_TRUE(s.append(1));
  EXPECT_EQ(s.append(std::numeric_limits<std::uint32_t>::max()).error(), Errc::kInvalidArgument);
  EXPECT_EQ(s.append(std::numeric_limits<std::int32_t>::max()).error(), Errc::kInvalidArgument);
  EXPECT_EQ(s.num_tokens(), 1U);
}

TEST(Sequence, TruncateReleasesPagesThatHoldNothing) {
  Fixture f(10);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(12));
  const auto before = pages_of(s);
  EXPECT_EQ(s.truncate(13).error(), Errc::kInvalidArgument);
  ASSERT_TRUE(s.truncate(5));
  EXPECT_EQ(s.num_tokens(), 5U);
  EXPECT_EQ(pages_of(s), std::vector<PageId>(before.begin(), before.begin() + 2));
  EXPECT_EQ(f.pool.stats().used_pages, 2U);
  ASSERT_TRUE(s.truncate(0));
  EXPECT_EQ(f.pool.stats().used_pages, 0U);
}

TEST(Sequence, CloseReleasesAllPagesAndIsHarmlessTwice) {
  Fixture f(10);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(12));
  EXPECT_EQ(f.store.open_sequences(), 1U);
  ASSERT_TRUE(s.close());
  ASSERT_TRUE(s.close());
  EXPECT_FALSE(s.is_open());
  EXPECT_EQ(f.store.open_sequences(), 0U);
  EXPECT_EQ(f.pool.stats().used_pages, 0U);
  EXPECT_EQ(s.append(1).error(), Errc::kClosed);
  EXPECT_EQ(s.truncate(0).error(), Errc::kClosed);
  EXPECT_EQ(s.fork().error(), Errc::kClosed);
  EXPECT_TRUE(s.pages().empty());
  EXPECT_TRUE(s.tokens().empty());
  EXPECT_EQ(s.num_tokens(), 0U);
}

TEST(Sequence, DroppingItClosesItAndPoolOutlivesItsHandles) {
  Fixture f(10);
  {
    auto s = f.store.open().value();
    ASSERT_TRUE(s.append(9));
  }
  EXPECT_EQ(f.pool.stats().used_pages, 0U);
  Sequence survivor;
  {
    Fixture inner(4);
    survivor = inner.store.open().value();
    ASSERT_TRUE(survivor.append(3));
  }
  EXPECT_TRUE(survivor.append(3)) << "the sequence keeps pool and store alive";
}

TEST(Sequence, MoveAssignmentClosesTheTarget) {
  Fixture f(10);
  Sequence a = f.store.open().value();
  Sequence b = f.store.open().value();
  ASSERT_TRUE(a.append(4));
  ASSERT_TRUE(b.append(8));
  a = std::move(b);
  EXPECT_EQ(a.num_tokens(), 8U);
  EXPECT_EQ(f.pool.stats().used_pages, 2U);
  EXPECT_EQ(f.store.open_sequences(), 1U);
}

TEST(Sequence, ForkSharesAllPages) {
  Fixture f(10);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(6));
  Sequence t = s.fork().value();
  EXPECT_EQ(pages_of(t), pages_of(s));
  EXPECT_EQ(t.num_tokens(), 6U);
  EXPECT_EQ(f.pool.stats().used_pages, 2U);
  EXPECT_EQ(f.pool.stats().shared_pages, 2U);
}

TEST(Sequence, FirstWriteToASharedLastPageCopiesThatPageAlone) {
  Fixture f(10);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(6));
  std::memset(f.pool.page_data(s.pages()[1]), 0x11, 256);
  Sequence t = s.fork().value();
  EXPECT_EQ(t.pages_needed(1), 1U);
  ASSERT_TRUE(t.append(1));
  EXPECT_EQ(t.pages()[0], s.pages()[0]);
  EXPECT_NE(t.pages()[1], s.pages()[1]);
  EXPECT_EQ(std::memcmp(f.pool.page_data(t.pages()[1]), f.pool.page_data(s.pages()[1]), 256), 0);
  EXPECT_EQ(f.pool.stats().used_pages, 3U);
  EXPECT_EQ(s.pages_needed(1), 0U) << "the other is alone with its page now";
  const auto before = pages_of(s);
  ASSERT_TRUE(s.append(2));
  EXPECT_EQ(pages_of(s), before);
}

TEST(Sequence, ForkOfAFullLastPageNeedsNoCopy) {
  Fixture f(10);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(8));
  Sequence t = s.fork().value();
  ASSERT_TRUE(t.append(1));
  EXPECT_EQ(t.pages()[1], s.pages()[1]);
  EXPECT_EQ(f.pool.stats().used_pages, 3U);
}

TEST(Sequence, CopyOnWriteThatDoesNotFitLeavesBothSharing) {
  Fixture f(2);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(6));
  Sequence t = s.fork().value();
  EXPECT_EQ(t.append(1).error(), Errc::kOutOfPages);
  EXPECT_EQ(pages_of(t), pages_of(s));
  EXPECT_EQ(f.pool.stats().shared_pages, 2U);
}

TEST(Sequence, SlidingGroupReleasesPagesBehindItsWindowAndKeepsSinks) {
  Fixture f(40, 4, {{}, {.window_left = 6, .sink_tokens = 3}});
  Sequence s = f.store.open().value();
  ASSERT_EQ(s.num_groups(), 2U);
  ASSERT_TRUE(s.append(20));
  EXPECT_EQ(f.pool.stats().used_pages, 10U) << "all of them are to be written, and to be seen by the others";
  ASSERT_TRUE(s.append(1));
  // Token 20 sees 14..19 besides itself: pages 0 (sinks), 3 and 4 stay of the second table, and its own, 5.
  EXPECT_EQ(pages_of(s, 0).size(), 6U);
  const auto slid = pages_of(s, 1);
  ASSERT_EQ(slid.size(), 6U);
  EXPECT_NE(slid[0], kNullPage);
  EXPECT_EQ(slid[1], kNullPage);
  EXPECT_EQ(slid[2], kNullPage);
  EXPECT_NE(slid[3], kNullPage);
  EXPECT_NE(slid[4], kNullPage);
  EXPECT_NE(slid[5], kNullPage);
  EXPECT_EQ(f.pool.stats().used_pages, 10U);
  EXPECT_TRUE(s.pages(2).empty());
  ASSERT_TRUE(s.close());
  EXPECT_EQ(f.pool.stats().used_pages, 0U);
}

TEST(Sequence, AppendKeepsWhatTheNewTokensSee) {
  constexpr std::uint64_t kWindow = 6, kPageSize = 4;
  for (const std::uint32_t count : {1U, 3U, 4U, 17U, 40U}) {
    Fixture f(40, kPageSize, {{.window_left = kWindow}});
    Sequence s = f.store.open().value();
    for (std::uint64_t first = 0; first + count <= 100; first += count) {
      ASSERT_TRUE(s.append(count));
      const std::vector<PageId> pages = pages_of(s);
      const std::uint64_t seen = first > kWindow ? first - kWindow : 0;
      for (std::uint64_t page = 0; page < pages.size(); ++page) {
        EXPECT_EQ(pages[page] == kNullPage, page < seen / kPageSize) << page << " at " << first << " + " << count;
      }
    }
  }
}

TEST(Sequence, TruncateIntoWhatAWindowReleasedIsRefused) {
  Fixture f(40, 4, {{.window_left = 6}});
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(20));
  ASSERT_TRUE(s.append(1));
  EXPECT_EQ(s.truncate(17).error(), Errc::kInvalidArgument) << "token 17 sees 11, in page 2";
  EXPECT_EQ(s.num_tokens(), 21U);
  ASSERT_TRUE(s.truncate(18)) << "token 18 sees 12, in page 3";
  ASSERT_TRUE(s.append(1));
  EXPECT_EQ(s.truncate(2).error(), Errc::kInvalidArgument);
  ASSERT_TRUE(s.truncate(0)) << "nothing is needed any more";
  ASSERT_TRUE(s.append(9));
  EXPECT_EQ(f.pool.stats().used_pages, 3U);
}

TEST(Sequence, SlideReleasesWhatLiesBehindAWindowOfTheCallers) {
  Fixture f(40);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(30));
  EXPECT_EQ(s.slide(30).error(), Errc::kInvalidArgument) << "a window as wide as the sequence";
  EXPECT_EQ(s.slide(1000).error(), Errc::kInvalidArgument);
  EXPECT_EQ(s.slide(10, 0, 1).error(), Errc::kInvalidArgument) << "no such group";
  EXPECT_EQ(f.pool.stats().used_pages, 8U) << "nothing changed";
  EXPECT_EQ(s.slide(10, 5).value(), 3U) << "pages 2..4; two hold the sinks";
  EXPECT_EQ(f.pool.stats().used_pages, 5U);
  EXPECT_EQ(s.slide(10, 5).value(), 0U);
  EXPECT_EQ(s.pages()[1] == kNullPage, false);
  EXPECT_EQ(s.pages()[4], kNullPage);
  EXPECT_EQ(s.truncate(29).error(), Errc::kInvalidArgument) << "token 29 would see 19, in page 4";
  EXPECT_EQ(s.num_tokens(), 30U);
  Sequence forked = s.fork().value();
  EXPECT_EQ(pages_of(forked), pages_of(s));
  EXPECT_EQ(forked.truncate(29).error(), Errc::kInvalidArgument) << "the fork knows the window too";
  ASSERT_TRUE(forked.append(9));
  EXPECT_EQ(forked.slide(3).value(), 6U) << "sinks too, now that none are asked for";
}

TEST(Sequence, TruncateToItsOwnLengthChangesNothing) {
  Fixture f(10);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(7));
  const auto before = pages_of(s);
  ASSERT_TRUE(s.truncate(7));
  EXPECT_EQ(s.num_tokens(), 7U);
  EXPECT_EQ(pages_of(s), before);
}

TEST(Sequence, ForkOfPagesThatOthersGaveAwayIsRefusedAndOpensNothing) {
  Fixture f(10);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(4));
  const PageId given_away = s.pages()[0];
  ASSERT_TRUE(f.pool.release({&given_away, 1}));
  EXPECT_EQ(s.fork().error(), Errc::kInvalidArgument);
  EXPECT_EQ(f.store.open_sequences(), 1U);
  EXPECT_EQ(f.pool.allocate().value(), given_away) << "back where it was";
}

TEST(Sequence, MoveAssignmentToItselfChangesNothing) {
  Fixture f(10);
  Sequence s = f.store.open().value();
  ASSERT_TRUE(s.append(4));
  Sequence& alias = s;
  s = std::move(alias);
  EXPECT_EQ(s.num_tokens(), 4U);
  EXPECT_EQ(f.store.open_sequences(), 1U);
}

TEST(Sequence, AClosedOneAnswersEveryQuestion) {
  Fixture f(10, 4, {{}, {.window_left = 6}});
  Sequence s = f.store.open().value();
  EXPECT_EQ(s.page_size(), 4U);
  EXPECT_EQ(s.num_groups(), 2U);
  EXPECT_EQ(s.pages_needed(0), 0U);
  EXPECT_TRUE(s.is_open());
  Sequence moved = std::move(s);
  // NOLINTBEGIN(bugprone-use-after-move)
  EXPECT_FALSE(s.is_open());
  EXPECT_EQ(s.page_size(), 0U);
  EXPECT_EQ(s.num_groups(), 0U);
  EXPECT_EQ(s.cached_tokens(), 0U);
  EXPECT_EQ(s.pages_needed(5), 0U);
  EXPECT_EQ(s.slide(1).error(), Errc::kClosed);
  EXPECT_TRUE(s.pages(0).empty());
  EXPECT_TRUE(s.close());
  // NOLINTEND(bugprone-use-after-move)
}

TEST(SequenceStore, TakesShapesJustWithinItsBounds) {
  PagePool pool = PagePool::create({.page_bytes = 64, .capacity_pages = 100}).value();
  EXPECT_TRUE(SequenceStore::create(pool, 1));
  EXPECT_TRUE(SequenceStore::create(pool, 256));
  const std::vector<LayerGroup> many(64, {.window_left = 0});
  SequenceStore store = SequenceStore::create(pool, 2, many).value();
  Sequence s = store.open().value();
  ASSERT_TRUE(s.append(2));
  EXPECT_EQ(pool.stats().used_pages, 64U) << "a page of each group";
  EXPECT_EQ(s.append(2).error(), Errc::kOutOfPages) << "for 36 are left, and none is given back before";
  EXPECT_EQ(pool.stats().used_pages, 64U);
  SequenceStore moved = std::move(store);
  EXPECT_EQ(store.open().error(), Errc::kClosed);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(store.open_sequences(), 0U);
  EXPECT_EQ(moved.open_sequences(), 1U);
}

TEST(SequenceStore, RefusesBadShapes) {
  PagePool pool = PagePool::create({.page_bytes = 64, .capacity_pages = 1}).value();
  EXPECT_EQ(SequenceStore::create(pool, 0).error(), Errc::kInvalidArgument);
  EXPECT_EQ(SequenceStore::create(pool, 257).error(), Errc::kInvalidArgument);
  const LayerGroup bad[] = {{.window_left = -2}};
  EXPECT_EQ(SequenceStore::create(pool, 16, bad).error(), Errc::kInvalidArgument);
  const std::vector<LayerGroup> many(65);
  EXPECT_EQ(SequenceStore::create(pool, 16, many).error(), Errc::kInvalidArgument);
  PagePool moved = std::move(pool);
  EXPECT_EQ(SequenceStore::create(pool, 16).error(), Errc::kClosed);  // NOLINT(bugprone-use-after-move)
}

}  // namespace
}  // namespace pagedkv
