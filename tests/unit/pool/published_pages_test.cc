// Published pages stay findable while unreferenced, are taken last, and their hook hears of every change.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <mutex>
#include <vector>

#include "memory/os_memory.h"
#include "pool/pool_impl.h"

namespace pagedkv {
namespace {

/// The simplest room above: evicts what became unreferenced first.
class Fifo final : public pool::PublishedPages {
 public:
  void on_unreferenced(PageId page) noexcept override { order.push_back(page); }
  void on_referenced(PageId page) noexcept override { std::erase(order, page); }
  PageId take_victim() noexcept override {
    const PageId victim = order.front();
    order.pop_front();
    return victim;
  }
  std::deque<PageId> order;
};

struct Fixture {
  explicit Fixture(std::uint64_t page_bytes = 4096)
      : pool(PagePool::Impl::create({.page_bytes = page_bytes, .capacity_pages = 4, .huge_pages = HugePages::kNever},
                                    memory::system_memory())
                 .value()) {
    const std::scoped_lock guard(pool->lock());
    pool->set_published_pages_locked(&fifo);
  }
  PageId allocate() {
    PageId id = kNullPage;
    EXPECT_TRUE(pool->allocate({&id, 1}));
    return id;
  }
  PageId published() {
    const PageId id = allocate();
    const std::scoped_lock guard(pool->lock());
    pool->publish_locked(id);
    return id;
  }
  void release(PageId id) { EXPECT_TRUE(pool->release({&id, 1})); }

  Fifo fifo;
  std::shared_ptr<PagePool::Impl> pool;
};

TEST(PublishedPages, AnUnreferencedPublishedPageIsEvictableAndNotFree) {
  Fixture f;
  const PageId id = f.published();
  EXPECT_FALSE(f.pool->is_exclusive(id)) << "others may find it";
  EXPECT_FALSE(f.pool->is_evictable(id));
  f.release(id);
  EXPECT_TRUE(f.pool->is_evictable(id));
  const PoolStats stats = f.pool->stats();
  EXPECT_EQ(stats.used_pages, 0U);
  EXPECT_EQ(stats.evictable_pages, 1U);
  EXPECT_EQ(stats.free_pages, 3U);
  EXPECT_EQ(f.fifo.order, std::deque<PageId>{id});
  EXPECT_EQ(f.pool->available_pages(), 4U);
}

TEST(PublishedPages, AreTakenAfterAllFreePagesInTheOrderOfTheHook) {
  Fixture f;
  const PageId a = f.published();
  const PageId b = f.published();
  f.release(b);
  f.release(a);
  f.allocate();
  f.allocate();
  EXPECT_EQ(f.pool->stats().evictions, 0U);
  EXPECT_EQ(f.allocate(), b);
  EXPECT_EQ(f.allocate(), a);
  EXPECT_EQ(f.pool->stats().evictions, 2U);
  EXPECT_TRUE(f.pool->is_exclusive(a));
}

TEST(PublishedPages, ABatchOfNeverUsedPagesAndVictimsHasMemory) {
  Fixture f(4 << 20);  // far apart, so that memory of one page is none of the next
  f.release(f.published());
  std::vector<PageId> ids(4);
  ASSERT_TRUE(f.pool->allocate(ids));
  EXPECT_EQ(f.pool->stats().evictions, 1U);
  EXPECT_EQ(f.pool->stats().committed_bytes, 4U * (4 << 20));
  for (const PageId id : ids) *f.pool->page_data(id) = std::byte{1};
}

TEST(PublishedPages, AnAllocationThatCannotSucceedEvictsNothing) {
  Fixture f;
  f.release(f.published());
  f.allocate();
  std::vector<PageId> ids(4);
  EXPECT_EQ(f.pool->allocate(ids).error(), Errc::kOutOfPages);
  EXPECT_EQ(f.pool->stats().evictable_pages, 1U);
  EXPECT_EQ(f.pool->stats().evictions, 0U);
}

TEST(PublishedPages, OnlyTheRoomAboveRevivesAnEvictablePage) {
  Fixture f;
  const PageId id = f.published();
  f.release(id);
  EXPECT_EQ(f.pool->retain({&id, 1}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(f.pool->release({&id, 1}).error(), Errc::kInvalidArgument);
  {
    const std::scoped_lock guard(f.pool->lock());
    EXPECT_TRUE(f.pool->is_evictable(id));
    EXPECT_TRUE(f.pool->retain_locked(id));
  }
  EXPECT_TRUE(f.fifo.order.empty());
  EXPECT_EQ(f.pool->ref_count(id), 1U);
  EXPECT_EQ(f.pool->stats().used_pages, 1U);
  EXPECT_EQ(f.pool->stats().evictable_pages, 0U);
}

TEST(PublishedPages, UnpublishingAnEvictablePageFreesIt) {
  Fixture f;
  const PageId id = f.published();
  f.release(id);
  {
    const std::scoped_lock guard(f.pool->lock());
    f.fifo.on_referenced(id);
    f.pool->unpublish_locked(id);
  }
  EXPECT_EQ(f.pool->stats().free_pages, 4U);
  EXPECT_EQ(f.pool->stats().evictable_pages, 0U);
}

TEST(PublishedPages, CountsOfUsedAndSharedPagesFollowEveryReference) {
  Fixture f;
  const PageId id = f.published();
  f.release(id);
  f.allocate();
  {
    const std::scoped_lock guard(f.pool->lock());
    EXPECT_TRUE(f.pool->retain_locked(id));
  }
  EXPECT_EQ(f.pool->stats().peak_used_pages, 2U) << "a page that is found again is in use";
  const auto expect_shared = [&f](std::uint64_t num_shared) { EXPECT_EQ(f.pool->stats().shared_pages, num_shared); };
  {
    const std::scoped_lock guard(f.pool->lock());
    EXPECT_TRUE(f.pool->retain_locked(id));
    EXPECT_TRUE(f.pool->retain_locked(id));
  }
  EXPECT_EQ(f.pool->ref_count(id), 3U);
  expect_shared(1);
  for (const std::uint64_t num_shared : {1U, 0U, 0U}) {
    {
      const std::scoped_lock guard(f.pool->lock());
      f.pool->release_locked(id);
    }
    expect_shared(num_shared);
  }
  EXPECT_TRUE(f.pool->is_evictable(id));
  EXPECT_EQ(f.fifo.order, std::deque<PageId>{id});
}

TEST(PublishedPages, AnUnpublishedPageInUseIsFreedByItsLastReference) {
  Fixture f;
  const PageId id = f.published();
  {
    const std::scoped_lock guard(f.pool->lock());
    f.pool->unpublish_locked(id);
  }
  EXPECT_TRUE(f.pool->is_exclusive(id));
  EXPECT_EQ(f.pool->stats().used_pages, 1U);
  {
    const std::scoped_lock guard(f.pool->lock());
    f.pool->release_locked(id);
  }
  EXPECT_EQ(f.pool->stats().free_pages, 4U);
  EXPECT_EQ(f.allocate(), id);
  EXPECT_TRUE(f.fifo.order.empty());
}

TEST(PublishedPages, ABatchOfPublishedAndPlainPagesIsReleasedWholeOrNotAtAll) {
  Fixture f;
  const PageId a = f.published(), plain = f.allocate(), b = f.published();
  const PageId refused[] = {a, plain, b, b};
  EXPECT_EQ(f.pool->release(refused).error(), Errc::kInvalidArgument);
  EXPECT_EQ(f.pool->stats().used_pages, 3U);
  EXPECT_TRUE(f.fifo.order.empty());
  const PageId twice[] = {b};
  ASSERT_TRUE(f.pool->retain(twice));
  const PageId batch[] = {b, plain, a, b};
  ASSERT_TRUE(f.pool->release(batch));
  EXPECT_EQ(f.fifo.order, (std::deque<PageId>{b, a})) << "each is told of once";
  EXPECT_EQ(f.pool->stats().evictable_pages, 2U);
  EXPECT_EQ(f.pool->stats().free_pages, 2U);
  EXPECT_EQ(f.pool->stats().shared_pages, 0U);
}

TEST(PublishedPages, TrimKeepsThem) {
  Fixture f;
  const PageId id = f.published();
  const PageId other = f.allocate();
  *f.pool->page_data(id) = std::byte{9};
  f.release(id);
  f.release(other);
  EXPECT_EQ(f.pool->trim().value(), 4096U);
  EXPECT_EQ(*f.pool->page_data(id), std::byte{9});
}

}  // namespace
}  // namespace pagedkv
