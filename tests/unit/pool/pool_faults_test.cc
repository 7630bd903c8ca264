// Every call of the operating system and every allocation that the pool makes may fail; nothing changes then.
#include <gtest/gtest.h>

#include <vector>

#include "pool/pool_impl.h"
#include "support/failing_new.h"
#include "support/fault_memory.h"

namespace pagedkv {
namespace {

using testing::FailingNew;
using testing::FaultMemory;

constexpr PagePoolOptions kOptions{.page_bytes = 1 << 20, .capacity_pages = 64, .huge_pages = HugePages::kTransparent};

TEST(PoolFaults, CreationFailsCleanlyAtEveryCallOfTheSystem) {
  FaultMemory os;
  int failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    os.fail_call(fail_at);
    auto pool = PagePool::Impl::create(kOptions, os);
    if (pool && os.calls() <= fail_at) break;
    if (pool) continue;  // huge pages are a wish
    ++failures;
    EXPECT_EQ(pool.error(), Errc::kOsError);
    EXPECT_EQ(os.reserved_ranges(), 0) << "address space leaked at call " << fail_at;
  }
  EXPECT_GE(failures, 3);
}

TEST(PoolFaults, CreationFailsCleanlyAtEveryAllocation) {
  int failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    const FailingNew faults(fail_at);
    auto pool = PagePool::create(kOptions);
    if (pool) break;
    ++failures;
    EXPECT_EQ(pool.error(), Errc::kOutOfMemory);
  }
  EXPECT_GE(failures, 1);
}

TEST(PoolFaults, AllocationWhoseCommitFailsChangesNothing) {
  FaultMemory os;
  auto pool = PagePool::Impl::create(kOptions, os).value();
  std::vector<PageId> first(4);
  ASSERT_TRUE(pool->allocate(first));
  ASSERT_TRUE(pool->release(std::span(first).first(2)));
  std::vector<PageId> more(40, kNullPage);
  os.fail_call(0);
  EXPECT_EQ(pool->allocate(more).error(), Errc::kOsError);
  EXPECT_EQ(more, std::vector<PageId>(40, kNullPage));
  EXPECT_EQ(pool->stats().used_pages, 2U);
  EXPECT_EQ(pool->stats().allocations, 4U);
  EXPECT_EQ(pool->stats().committed_bytes, 4U << 20);
  EXPECT_TRUE(pool->allocate(more)) << "the next attempt succeeds";
}

TEST(PoolFaults, TrimWhoseDecommitFailsKeepsTheCountsExact) {
  FaultMemory os;
  auto pool = PagePool::Impl::create(kOptions, os).value();
  std::vector<PageId> ids(64);
  ASSERT_TRUE(pool->allocate(ids));
  for (std::size_t i = 0; i < ids.size(); i += 2) ASSERT_TRUE(pool->release({&ids[i], 1}));
  os.fail_call(5);
  EXPECT_EQ(pool->trim().error(), Errc::kOsError);
  EXPECT_EQ(pool->stats().committed_bytes, 59U << 20) << "five runs went before";
  os.fail_call(FaultMemory::kNever);
  EXPECT_EQ(pool->trim().value(), 27U << 20);
  EXPECT_EQ(pool->stats().committed_bytes, 32U << 20);
}

TEST(PoolFaults, HotCallsAllocateNothing) {
  PagePool pool = PagePool::create(kOptions).value();
  std::vector<PageId> ids(64);
  const FailingNew counting(-1);
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(pool.allocate(ids));
    ASSERT_TRUE(pool.retain(ids));
    ASSERT_TRUE(pool.release(ids));
    ASSERT_TRUE(pool.release(ids));
  }
  EXPECT_EQ(counting.count(), 0);
}

}  // namespace
}  // namespace pagedkv
