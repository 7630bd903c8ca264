// After a burst the memory that is resident falls to the pages that live, within 2 %, wherever they lie.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "pagedkv/page_pool.h"
#include "support/resident_bytes.h"

namespace pagedkv {
namespace {

// Bytes of the pool's range that are in memory now.
std::uint64_t resident_bytes(const PagePool& pool) {
  return testing::resident_bytes(pool.base(), pool.max_capacity_pages() * pool.page_bytes());
}

class ResidentMemory : public ::testing::TestWithParam<std::uint64_t> {};

TEST_P(ResidentMemory, FallsToWhatLivesAfterABurst) {
  const std::uint64_t page_bytes = GetParam();
  const std::uint64_t num_pages = (std::uint64_t{96} << 20) / page_bytes;
  PagePool pool = PagePool::create({.page_bytes = page_bytes, .capacity_pages = num_pages}).value();
  std::vector<PageId> pages(num_pages);
  ASSERT_TRUE(pool.allocate(pages));
  for (const PageId page : pages) std::memset(pool.page_data(page), 1, page_bytes);
  EXPECT_EQ(resident_bytes(pool), num_pages * page_bytes);

  // One page in eight lives on, scattered.
  std::shuffle(pages.begin(), pages.end(), std::mt19937(7));
  const std::uint64_t num_live = num_pages / 8;
  ASSERT_TRUE(pool.release(std::span(pages).subspan(num_live)));
  EXPECT_EQ(pool.trim().value(), (num_pages - num_live) * page_bytes);
  const std::uint64_t live_bytes = num_live * page_bytes;
  EXPECT_EQ(pool.stats().committed_bytes, live_bytes);
  EXPECT_LE(resident_bytes(pool), live_bytes + live_bytes / 50);
  for (const PageId page : std::span(pages).first(num_live)) {
    ASSERT_EQ(pool.page_data(page)[page_bytes - 1], std::byte{1});
  }
}

// Pages smaller than, as large as, and larger than a huge page.
INSTANTIATE_TEST_SUITE_P(PageBytes, ResidentMemory,
                         ::testing::Values(std::uint64_t{4} << 10, std::uint64_t{64} << 10, std::uint64_t{1} << 20,
                                           std::uint64_t{2} << 20, std::uint64_t{3} << 20));

}  // namespace
}  // namespace pagedkv
