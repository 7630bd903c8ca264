// Every allocation and every call of the system that the prefix index makes may fail; nothing changes then.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "support/cached_store.h"
#include "support/failing_new.h"
#include "support/fault_memory.h"

namespace pagedkv {
namespace {

using testing::CachedStore;
using testing::FailingNew;
using testing::FaultMemory;
using testing::run_of_tokens;

constexpr PagePoolOptions kOptions{.page_bytes = 64, .capacity_pages = 64, .huge_pages = HugePages::kNever};

TEST(PrefixFaults, CreationFailsCleanlyAtEveryCallOfTheSystem) {
  FaultMemory os;
  const auto pool = PagePool::Impl::create(kOptions, os).value();
  const std::int64_t ranges_before = os.reserved_ranges();
  int failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    os.fail_call(fail_at);
    const auto index = prefix::PrefixIndex::create(pool, 4, {});
    if (index) break;
    ++failures;
    EXPECT_EQ(index.error(), Errc::kOsError);
    EXPECT_EQ(os.reserved_ranges(), ranges_before) << "address space leaked at call " << fail_at;
  }
  EXPECT_GE(failures, 8) << "four arrays, each reserved and committed";
}

TEST(PrefixFaults, WithoutMemoryThereIsNoPolicy) {
  const auto code_without_memory = [](Result<std::shared_ptr<EvictionPolicy>> (*make)() noexcept) {
    const FailingNew faults(0);
    return make().error().code;
  };
  EXPECT_EQ(code_without_memory(&make_s3fifo_policy), Errc::kOutOfMemory);
  EXPECT_EQ(code_without_memory(&make_arc_policy), Errc::kOutOfMemory);
}

TEST(PrefixFaults, CreationFailsCleanlyAtEveryAllocation) {
  const auto pool = PagePool::Impl::create(kOptions, memory::system_memory()).value();
  int failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    const FailingNew faults(fail_at);
    const auto index = prefix::PrefixIndex::create(pool, 4, {.event_capacity = 16});
    if (index) break;
    ++failures;
    EXPECT_EQ(index.error(), Errc::kOutOfMemory);
  }
  EXPECT_GE(failures, 4);
}

TEST(PrefixFaults, ANamespaceIsThereOrNot) {
  CachedStore c(16, 4);
  const std::string salt(100, 's');
  int failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    const FailingNew faults(fail_at);
    const auto acquired = c.index().acquire(salt, "key");
    if (acquired) break;
    ++failures;
    EXPECT_EQ(acquired.error(), Errc::kOutOfMemory);
    EXPECT_EQ(c.index().stats().namespaces, 0U);
  }
  EXPECT_GE(failures, 3);
}

TEST(PrefixFaults, APinIsThereOrNot) {
  CachedStore c(16, 4);
  {
    Sequence s = c.prefill(run_of_tokens(17));
  }
  PrefixChain chain;
  chain.name_space = c.index().acquire({}, {}).value();
  int failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    PrefixChain mine = chain;
    std::vector<PageId> pages(4);
    ASSERT_EQ(c.index().match(mine, run_of_tokens(16), pages).num_pages, 4U);
    Result<PinId> pin = Error{};
    {
      const FailingNew faults(fail_at);
      pin = c.index().pin(std::move(pages));
    }
    if (pin) break;
    ++failures;
    EXPECT_EQ(pin.error(), Errc::kOutOfMemory);
    EXPECT_EQ(c.pool().stats().used_pages, 0U);
    EXPECT_EQ(c.index().stats().pinned_pages, 0U);
  }
  EXPECT_GE(failures, 2);
  EXPECT_EQ(c.pool().stats().used_pages, 4U);
}

TEST(PrefixFaults, LookupAndPublicationAllocateNothing) {
  CachedStore c(64, 4);
  Sequence s = c.open(run_of_tokens(100));
  ASSERT_TRUE(s.append(100));
  const auto tokens = run_of_tokens(100);
  PrefixChain chain;
  chain.name_space = c.index().acquire({}, {}).value();
  PrefixChain other = chain;
  std::vector<PageId> pages(s.pages().begin(), s.pages().end());
  std::vector<PageId> found(25);
  const FailingNew counting(-1);
  EXPECT_EQ(c.index().publish(chain, tokens, pages), 0U);
  EXPECT_EQ(c.index().match(other, tokens, found).num_pages, 25U);
  EXPECT_EQ(counting.count(), 0);
  EXPECT_TRUE(c.pool().release(found));
}

}  // namespace
}  // namespace pagedkv
