// PagePool hands out every page once, counts references, refuses ids that are not in use, and changes nothing on error.
#include "pagedkv/page_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <set>
#include <vector>

namespace pagedkv {
namespace {

PagePool make_pool(std::uint64_t capacity_pages, std::uint64_t page_bytes = 4096, std::uint64_t watermark_pages = 0) {
  return PagePool::create({.page_bytes = page_bytes,
                           .capacity_pages = capacity_pages,
                           .watermark_pages = watermark_pages,
                           .huge_pages = HugePages::kNever})
      .value();
}

PagePool make_elastic_pool(std::uint64_t capacity_pages, std::uint64_t max_capacity_pages) {
  return PagePool::create({.page_bytes = 8192,
                           .capacity_pages = capacity_pages,
                           .max_capacity_pages = max_capacity_pages,
                           .huge_pages = HugePages::kNever})
      .value();
}

void expect_counts_add_up(const PagePool& pool) {
  const PoolStats stats = pool.stats();
  EXPECT_EQ(stats.used_pages + stats.evictable_pages + stats.free_pages, stats.capacity_pages);
}

TEST(PagePool, HandsOutEveryPageOnceAndThenSaysSo) {
  PagePool pool = make_pool(5);
  std::set<PageId> seen;
  for (int i = 0; i < 5; ++i) seen.insert(pool.allocate().value());
  EXPECT_EQ(seen.size(), 5U);
  EXPECT_EQ(pool.allocate().error(), Errc::kOutOfPages);
  EXPECT_EQ(pool.stats().failed_allocations, 1U);
  expect_counts_add_up(pool);
}

TEST(PagePool, BatchIsAllOrNone) {
  PagePool pool = make_pool(5);
  std::vector<PageId> ids(6, kNullPage);
  EXPECT_EQ(pool.allocate(ids).error(), Errc::kOutOfPages);
  EXPECT_EQ(ids, std::vector<PageId>(6, kNullPage));
  EXPECT_EQ(pool.stats().free_pages, 5U);
  EXPECT_TRUE(pool.allocate(std::span(ids).first(5)));
  EXPECT_EQ(pool.stats().free_pages, 0U);
}

TEST(PagePool, EmptyBatchesSucceed) {
  PagePool pool = make_pool(1);
  EXPECT_TRUE(pool.allocate(std::span<PageId>{}));
  EXPECT_TRUE(pool.retain({}));
  EXPECT_TRUE(pool.release({}));
}

TEST(PagePool, ReleaseOfLastReferenceMakesPageAllocatable) {
  PagePool pool = make_pool(1);
  const PageId id = pool.allocate().value();
  ASSERT_TRUE(pool.retain({&id, 1}));
  EXPECT_EQ(pool.ref_count(id), 2U);
  EXPECT_EQ(pool.stats().shared_pages, 1U);
  ASSERT_TRUE(pool.release({&id, 1}));
  EXPECT_EQ(pool.stats().shared_pages, 0U);
  EXPECT_EQ(pool.allocate().error(), Errc::kOutOfPages);
  ASSERT_TRUE(pool.release({&id, 1}));
  EXPECT_EQ(pool.ref_count(id), 0U);
  EXPECT_EQ(pool.allocate().value(), id);
}

TEST(PagePool, PagesUsedBeforeAreHandedOutFirstAndTheLastReleasedComesFirst) {
  PagePool pool = make_pool(100);
  std::vector<PageId> ids(3);
  ASSERT_TRUE(pool.allocate(ids));
  ASSERT_TRUE(pool.release(ids));
  EXPECT_EQ(pool.allocate().value(), ids[2]);
  EXPECT_EQ(pool.allocate().value(), ids[1]);
  EXPECT_EQ(pool.allocate().value(), ids[0]);
  EXPECT_EQ(pool.stats().committed_bytes, 3 * pool.page_bytes());
}

TEST(PagePool, ReleaseOfAnIdNotInUseChangesNothing) {
  PagePool pool = make_pool(4);
  const PageId id = pool.allocate().value();
  for (const PageId bad : {PageId{3}, PageId{4}, kNullPage, PageId{std::numeric_limits<std::int32_t>::max()},
                           PageId{std::numeric_limits<std::int32_t>::min()}}) {
    const PageId ids[] = {id, bad};
    EXPECT_EQ(pool.release(ids).error(), Errc::kInvalidArgument);
    EXPECT_EQ(pool.retain(ids).error(), Errc::kInvalidArgument);
    EXPECT_EQ(pool.ref_count(id), 1U);
    EXPECT_EQ(pool.ref_count(bad), 0U);
  }
  EXPECT_EQ(pool.stats().used_pages, 1U);
  EXPECT_EQ(pool.stats().shared_pages, 0U);
}

TEST(PagePool, ABatchThatIsRefusedInItsMiddleIsUndoneForSharedPagesToo) {
  PagePool pool = make_pool(8);
  std::vector<PageId> ids(5);
  ASSERT_TRUE(pool.allocate(ids));
  const PageId shared[] = {ids[1], ids[2], ids[2]};
  ASSERT_TRUE(pool.retain(shared));
  ASSERT_EQ(pool.stats().shared_pages, 2U);
  for (const PageId bad : {PageId{7}, kNullPage}) {
    const PageId batch[] = {ids[0], ids[1], ids[2], ids[2], ids[0], bad, ids[3]};
    EXPECT_EQ(pool.retain(batch).error(), Errc::kInvalidArgument);
    const PageId fewer[] = {ids[0], ids[1], ids[2], ids[2], bad, ids[3]};
    EXPECT_EQ(pool.release(fewer).error(), Errc::kInvalidArgument);
    for (std::size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(pool.ref_count(ids[i]), i == 1 ? 2U : i == 2 ? 3U : 1U);
    EXPECT_EQ(pool.stats().shared_pages, 2U);
    EXPECT_EQ(pool.stats().used_pages, 5U);
    EXPECT_EQ(pool.stats().free_pages, 3U);
  }
  EXPECT_EQ(pool.allocate().value(), PageId{5}) << "the free list is as it was";
}

TEST(PagePool, CountsAllocationsAndTheMostPagesEverInUse) {
  PagePool pool = make_pool(8);
  std::vector<PageId> ids(5);
  ASSERT_TRUE(pool.allocate(ids));
  ASSERT_TRUE(pool.release(std::span(ids).first(3)));
  ASSERT_TRUE(pool.allocate());
  PoolStats stats = pool.stats();
  EXPECT_EQ(stats.allocations, 6U);
  EXPECT_EQ(stats.used_pages, 3U);
  EXPECT_EQ(stats.peak_used_pages, 5U);
  EXPECT_EQ(stats.failed_allocations, 0U);
  EXPECT_EQ(stats.page_bytes, 4096U);
  EXPECT_FALSE(stats.huge_pages);
  ids.resize(4);
  ASSERT_TRUE(pool.allocate(ids));
  EXPECT_EQ(pool.stats().peak_used_pages, 7U);
}

TEST(PagePool, DoubleReleaseIsRefusedAlsoWithinOneBatch) {
  PagePool pool = make_pool(4);
  const PageId id = pool.allocate().value();
  const PageId twice[] = {id, id};
  EXPECT_EQ(pool.release(twice).error(), Errc::kInvalidArgument);
  EXPECT_EQ(pool.ref_count(id), 1U);
  ASSERT_TRUE(pool.release({&id, 1}));
  EXPECT_EQ(pool.release({&id, 1}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(pool.retain({&id, 1}).error(), Errc::kInvalidArgument);
  expect_counts_add_up(pool);
}

TEST(PagePool, APageListedTwiceLosesTwoReferencesAndIsFreedOnce) {
  PagePool pool = make_pool(4);
  const PageId id = pool.allocate().value();
  const PageId twice[] = {id, id};
  ASSERT_TRUE(pool.retain(twice));
  EXPECT_EQ(pool.ref_count(id), 3U);
  ASSERT_TRUE(pool.release(twice));
  ASSERT_TRUE(pool.retain({&id, 1}));
  ASSERT_TRUE(pool.release(twice));
  EXPECT_EQ(pool.stats().free_pages, 4U);
  std::vector<PageId> all(4);
  ASSERT_TRUE(pool.allocate(all));
  EXPECT_EQ(std::set<PageId>(all.begin(), all.end()).size(), 4U);
}

TEST(PagePool, PagesLieAtTheirStrideAndKeepTheirBytes) {
  PagePool pool = make_pool(3, 100);
  EXPECT_EQ(pool.page_bytes(), 128U) << "rounded up to cache lines";
  std::vector<PageId> ids(3);
  ASSERT_TRUE(pool.allocate(ids));
  for (const PageId id : ids) {
    EXPECT_EQ(pool.page_data(id), pool.base() + static_cast<std::size_t>(to_index(id)) * 128);
    std::memset(pool.page_data(id), to_index(id) + 1, 128);
  }
  for (const PageId id : ids) EXPECT_EQ(pool.page_data(id)[127], std::byte(to_index(id) + 1));
  EXPECT_EQ(pool.page_data(PageId{3}), nullptr);
  EXPECT_EQ(pool.page_data(kNullPage), nullptr);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pool.base()) % (2U << 20), 0U);
}

TEST(PagePool, WatermarkBindsAdmissionAndNotAllocation) {
  PagePool pool = make_pool(10, 4096, 4);
  EXPECT_TRUE(pool.can_allocate(6));
  EXPECT_FALSE(pool.can_allocate(7));
  EXPECT_FALSE(pool.can_allocate(std::numeric_limits<std::uint64_t>::max()));
  std::vector<PageId> ids(10);
  EXPECT_TRUE(pool.allocate(std::span(ids).first(6)));
  EXPECT_TRUE(pool.can_allocate(0)) << "four are left, as they should be";
  EXPECT_FALSE(pool.can_allocate(1));
  EXPECT_TRUE(pool.allocate(std::span(ids).first(4)));
  EXPECT_FALSE(pool.can_allocate(0));
}

TEST(PagePool, CreatesWhatIsJustWithinItsBounds) {
  EXPECT_TRUE(PagePool::create({.page_bytes = 1, .capacity_pages = 1, .watermark_pages = 1}));
  EXPECT_TRUE(PagePool::create({.page_bytes = 64, .capacity_pages = 4, .max_capacity_pages = 4}));
  EXPECT_TRUE(PagePool::create({.page_bytes = 64, .capacity_pages = 4, .huge_pages = HugePages::kTransparent}));
  EXPECT_EQ(PagePool::create({.page_bytes = 64, .capacity_pages = 1, .max_capacity_pages = 1ULL << 31}).error(),
            Errc::kInvalidArgument);
  EXPECT_EQ(PagePool::create({.page_bytes = 64, .capacity_pages = 4, .huge_pages = static_cast<HugePages>(9)}).error(),
            Errc::kInvalidArgument);
}

TEST(PagePool, RefusesAbsurdSizes) {
  const std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
  const auto error = [](std::uint64_t page_bytes, std::uint64_t capacity, std::uint64_t watermark = 0) {
    return PagePool::create({.page_bytes = page_bytes, .capacity_pages = capacity, .watermark_pages = watermark})
        .error()
        .code;
  };
  EXPECT_EQ(error(0, 1), Errc::kInvalidArgument);
  EXPECT_EQ(error(64, 0), Errc::kInvalidArgument);
  EXPECT_EQ(error(64, std::uint64_t{1} << 31), Errc::kInvalidArgument);
  EXPECT_EQ(error(huge, 1), Errc::kInvalidArgument);
  EXPECT_EQ(error(huge / 2, 4), Errc::kInvalidArgument);
  EXPECT_EQ(error(std::uint64_t{1} << 62, 2), Errc::kInvalidArgument);
  EXPECT_EQ(error(64, 4, 5), Errc::kInvalidArgument);
  EXPECT_EQ(error(std::uint64_t{1} << 50, 1), Errc::kOsError) << "more than the machine can address";
}

TEST(PagePool, HugeCapacitiesCostAddressSpaceAlone) {
  // 2^31 - 1 pages of 2 KiB: 4 TiB of address space, offsets beyond 32 bits.
#ifdef __SANITIZE_THREAD__
  const std::uint64_t capacity_pages = std::uint64_t{1} << 24;  // the thread sanitizer leaves a program less
#else
  const std::uint64_t capacity_pages = (std::uint64_t{1} << 31) - 1;
#endif
  PagePool pool = make_pool(capacity_pages, 2048);
  std::vector<PageId> ids(3'000'000);  // the last ones lie beyond 4 GiB
  ASSERT_TRUE(pool.allocate(ids));
  std::byte* const last = pool.page_data(ids.back());
  EXPECT_EQ(last - pool.base(), static_cast<std::ptrdiff_t>(2'999'999) * 2048);
  EXPECT_GT(last - pool.base(), std::ptrdiff_t{1} << 32);
  *last = std::byte{7};
  const std::uint64_t far = capacity_pages / 2 + 1;
  EXPECT_EQ(pool.page_data(PageId{static_cast<std::int32_t>(far)}) - pool.base(),
            static_cast<std::ptrdiff_t>(far) * 2048);
  ASSERT_TRUE(pool.release(ids));
  expect_counts_add_up(pool);
}

TEST(PagePool, TrimGivesFreePagesBackAndKeepsLiveOnes) {
  PagePool pool = make_pool(64, 8192);
  std::vector<PageId> ids(64);
  ASSERT_TRUE(pool.allocate(ids));
  for (const PageId id : ids) std::memset(pool.page_data(id), 0x5a, 8192);
  std::vector<PageId> odd;
  for (std::size_t i = 1; i < ids.size(); i += 2) odd.push_back(ids[i]);
  ASSERT_TRUE(pool.release(odd));
  EXPECT_EQ(pool.trim().value(), 32U * 8192);
  EXPECT_EQ(pool.stats().committed_bytes, 32U * 8192);
  EXPECT_EQ(pool.trim().value(), 0U) << "nothing is left to give";
  for (std::size_t i = 0; i < ids.size(); i += 2) EXPECT_EQ(pool.page_data(ids[i])[8191], std::byte{0x5a});
  ASSERT_TRUE(pool.allocate(odd));
  for (const PageId id : odd) EXPECT_EQ(pool.page_data(id)[100], std::byte{0}) << "memory came back fresh";
  EXPECT_EQ(pool.stats().committed_bytes, 64U * 8192);
}

TEST(PagePool, TrimOfPagesSmallerThanAnOsPageSparesLiveNeighbours) {
  PagePool pool = make_pool(256, 1024);
  std::vector<PageId> ids(256);
  ASSERT_TRUE(pool.allocate(ids));
  for (const PageId id : ids) std::memset(pool.page_data(id), 0x5a, 1024);
  const PageId kept = ids[42];
  ids.erase(ids.begin() + 42);
  ASSERT_TRUE(pool.release(ids));
  const std::uint64_t given = pool.trim().value();
  EXPECT_GE(given, 256U * 1024 - 2 * 65536);
  EXPECT_LT(given, 256U * 1024);
  EXPECT_EQ(pool.page_data(kept)[0], std::byte{0x5a});
  EXPECT_EQ(pool.page_data(kept)[1023], std::byte{0x5a});
  EXPECT_EQ(pool.stats().committed_bytes, 256U * 1024 - given);
}

TEST(PagePool, TrimGivesBackWhatLiesBesidePagesThatItGaveBackBefore) {
  PagePool pool = make_pool(256, 1024);
  std::vector<PageId> ids(256);
  ASSERT_TRUE(pool.allocate(ids));
  ASSERT_TRUE(pool.release(ids));
  ASSERT_EQ(pool.trim().value(), 256U * 1024);
  for (const std::size_t num_used : {1U, 3U, 6U, 13U}) {
    ids.resize(num_used);
    ASSERT_TRUE(pool.allocate(ids));
    for (const PageId id : ids) std::memset(pool.page_data(id), 0x5a, 1024);
    ASSERT_TRUE(pool.release(std::span(ids).subspan(1)));
    EXPECT_LT(pool.trim().value(), num_used * 1024) << "one of them is live";
    EXPECT_EQ(pool.page_data(ids[0])[1023], std::byte{0x5a});
    ASSERT_TRUE(pool.release(std::span(ids).first(1)));
    ASSERT_TRUE(pool.trim());
    EXPECT_EQ(pool.stats().committed_bytes, 0U);
    for (const PageId id : ids) EXPECT_EQ(pool.page_data(id)[1023], std::byte{0});
    EXPECT_EQ(pool.trim().value(), 0U) << "nothing is left to give";
  }
}

TEST(PagePool, APageThatWasNeverHandedOutReadsAsZero) {
  PagePool pool = make_elastic_pool(4096, 8192);
  EXPECT_EQ(pool.page_data(PageId{8191})[8191], std::byte{0});
  ASSERT_TRUE(pool.allocate());
  EXPECT_EQ(pool.page_data(PageId{8191})[0], std::byte{0});
  EXPECT_EQ(pool.stats().committed_bytes, 8192U);
}

TEST(PagePool, TrimGivesAllBackWhateverPiecesItWorksIn) {
  PagePool pool = make_pool(400'000, 192);  // 18,750 OS pages, and more than is given back in one piece
  std::vector<PageId> ids(400'000);
  ASSERT_TRUE(pool.allocate(ids));
  ASSERT_TRUE(pool.release(ids));
  EXPECT_EQ(pool.trim().value(), 400'000U * 192);
  EXPECT_EQ(pool.stats().committed_bytes, 0U);
}

TEST(PagePool, MetadataIsUnderAThousandthOfThePagesOfAnEightBillionModel) {
  PagePool pool = make_pool(4096, std::uint64_t{2} << 20);
  const PoolStats stats = pool.stats();
  EXPECT_LT(stats.metadata_bytes * 1000, stats.page_bytes * stats.capacity_pages);
  EXPECT_GT(stats.metadata_bytes, 4096U * 8) << "a state and an entry of the free list for each page";
  EXPECT_LT(stats.metadata_bytes, 4096U * 8 + 4096);
}

TEST(PagePool, CapacityIsRaisedWhileServing) {
  PagePool pool = make_elastic_pool(2, 5);
  std::vector<PageId> ids(2);
  ASSERT_TRUE(pool.allocate(ids));
  EXPECT_EQ(pool.allocate().error(), Errc::kOutOfPages);
  ASSERT_TRUE(pool.set_capacity(5));
  EXPECT_EQ(pool.capacity_pages(), 5U);
  EXPECT_EQ(pool.max_capacity_pages(), 5U);
  ids.resize(3);
  EXPECT_TRUE(pool.allocate(ids));
  EXPECT_EQ(pool.allocate().error(), Errc::kOutOfPages);
}

TEST(PagePool, LoweredCapacityBindsAndGivesMemoryBack) {
  PagePool pool = make_elastic_pool(8, 8);
  std::vector<PageId> ids(8);
  ASSERT_TRUE(pool.allocate(ids));
  ASSERT_TRUE(pool.release(std::span(ids).subspan(2)));
  EXPECT_EQ(pool.set_capacity(1).error(), Errc::kInvalidArgument) << "two are in use";
  EXPECT_EQ(pool.capacity_pages(), 8U);
  ASSERT_TRUE(pool.set_capacity(3));
  EXPECT_EQ(pool.stats().committed_bytes, 2U * 8192);
  EXPECT_EQ(pool.stats().free_pages, 1U);
  EXPECT_TRUE(pool.allocate());
  EXPECT_EQ(pool.allocate().error(), Errc::kOutOfPages);
  expect_counts_add_up(pool);
}

TEST(PagePool, CapacityMayBeWhatItIsAndThenNoMemoryIsGivenBack) {
  PagePool pool = make_elastic_pool(4, 8);
  std::vector<PageId> ids(4);
  ASSERT_TRUE(pool.allocate(ids));
  ASSERT_TRUE(pool.release(std::span(ids).first(1)));
  for (const std::uint64_t capacity : {std::uint64_t{4}, std::uint64_t{8}}) {
    ASSERT_TRUE(pool.set_capacity(capacity));
    EXPECT_EQ(pool.stats().committed_bytes, 4U * 8192) << "a capacity of " << capacity;
  }
  ASSERT_TRUE(pool.set_capacity(3)) << "as many as are in use";
  EXPECT_EQ(pool.stats().committed_bytes, 3U * 8192);
  EXPECT_EQ(pool.set_capacity(2).error(), Errc::kInvalidArgument);
  PagePool with_watermark = make_pool(4, 4096, 3);
  EXPECT_TRUE(with_watermark.set_capacity(3));
}

TEST(PagePool, RefusesCapacitiesThatCannotBe) {
  PagePool pool = make_elastic_pool(4, 6);
  EXPECT_EQ(pool.set_capacity(0).error(), Errc::kInvalidArgument);
  EXPECT_EQ(pool.set_capacity(7).error(), Errc::kInvalidArgument);
  EXPECT_EQ(PagePool::create({.page_bytes = 64, .capacity_pages = 4, .max_capacity_pages = 3}).error(),
            Errc::kInvalidArgument);
  PagePool with_watermark = make_pool(4, 4096, 3);
  EXPECT_EQ(with_watermark.set_capacity(2).error(), Errc::kInvalidArgument);
}

TEST(PagePool, AMovedFromPoolAnswersErrors) {
  PagePool pool = make_pool(2);
  PagePool moved = std::move(pool);
  EXPECT_EQ(pool.allocate().error(), Errc::kClosed);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(pool.trim().error(), Errc::kClosed);
  EXPECT_EQ(pool.set_capacity(1).error(), Errc::kClosed);
  EXPECT_EQ(pool.retain({}).error(), Errc::kClosed);
  EXPECT_EQ(pool.release({}).error(), Errc::kClosed);
  EXPECT_EQ(pool.stats().capacity_pages, 0U);
  EXPECT_EQ(pool.capacity_pages() + pool.max_capacity_pages() + pool.available_pages() + pool.page_bytes(), 0U);
  EXPECT_EQ(pool.base(), nullptr);
  EXPECT_EQ(pool.page_data(PageId{0}), nullptr);
  EXPECT_EQ(pool.ref_count(PageId{0}), 0U);
  EXPECT_FALSE(pool.is_evictable(PageId{0}));
  EXPECT_FALSE(pool.can_allocate(0));
  EXPECT_TRUE(moved.allocate());
}

}  // namespace
}  // namespace pagedkv
