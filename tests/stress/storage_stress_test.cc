// Many threads on one pool: allocation, forks, steps and trims at once, for the thread sanitizer and the counts.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <random>
#include <vector>

#include "pagedkv/page_pool.h"
#include "pagedkv/sequence.h"
#include "sequence/control.h"
#include "sequence/sequence_store.h"
#include "support/threads.h"

namespace pagedkv {
namespace {

using testing::kNumThreads;
using testing::run_threads;

TEST(PoolStress, NoPageIsHandedOutTwiceAndAllComeBack) {
  PagePool pool = PagePool::create({.page_bytes = 4096, .capacity_pages = 96, .huge_pages = HugePages::kNever}).value();
  std::vector<std::atomic<int>> owners(96);
  std::atomic<int> conflicts{0};
  run_threads([&](int thread) {
    std::mt19937 random(static_cast<unsigned>(thread));
    std::vector<PageId> ids;
    for (int round = 0; round < 4000; ++round) {
      ids.assign(1 + random() % 40, kNullPage);
      if (!pool.allocate(ids)) continue;
      for (const PageId id : ids) {
        conflicts += owners[static_cast<std::size_t>(to_index(id))].fetch_add(1) != 0 ? 1 : 0;
        std::memset(pool.page_data(id), thread, 64);
      }
      if (round % 16 == 0) {
        EXPECT_TRUE(pool.retain(ids) && pool.release(ids));
      }
      for (const PageId id : ids) owners[static_cast<std::size_t>(to_index(id))].fetch_sub(1);
      EXPECT_TRUE(pool.release(ids));
      if (round % 100 == 0) {
        EXPECT_TRUE(pool.trim());
      }
    }
  });
  EXPECT_EQ(conflicts.load(), 0);
  EXPECT_EQ(pool.stats().free_pages, 96U);
  EXPECT_EQ(pool.stats().used_pages, 0U);
}

TEST(SequenceStress, ForksStepsAndClosesOfManyThreadsKeepEveryValue) {
  PagePool pool = PagePool::create({.page_bytes = 64, .capacity_pages = 400, .huge_pages = HugePages::kNever}).value();
  SequenceStore store = SequenceStore::create(pool, 4).value();
  const auto slot = [&](std::span<const PageId> pages, std::uint64_t token) {
    return reinterpret_cast<std::uint64_t*>(pool.page_data(pages[token / 4])) + token % 4;
  };
  // All threads fork the same prompt, so that its pages are shared between threads.
  Sequence prompt = store.open().value();
  ASSERT_TRUE(prompt.append(10));
  for (std::uint64_t t = 0; t < 10; ++t) *slot(prompt.pages(), t) = t;
  std::vector<Sequence> seeds;
  for (int i = 0; i < kNumThreads; ++i) seeds.push_back(prompt.fork().value());

  run_threads([&](int thread) {
    std::mt19937 random(static_cast<unsigned>(thread));
    Sequence own = std::move(seeds[static_cast<std::size_t>(thread)]);
    for (int round = 0; round < 2000; ++round) {
      Sequence branch = own.fork().value();
      const auto count = static_cast<std::uint32_t>(1 + random() % 9);
      const sequence::ReserveItem item{.control = branch.control(), .num_new_tokens = count, .tokens = {}};
      if (!sequence::reserve(*store.impl(), {&item, 1})) continue;
      const std::uint64_t mark = (static_cast<std::uint64_t>(thread) << 32) + static_cast<std::uint64_t>(round);
      const std::uint64_t begin = branch.num_tokens();
      for (std::uint64_t t = begin; t < begin + count; ++t) *slot(branch.control()->pages(), t) = mark;
      const auto accepted = static_cast<std::uint32_t>(random() % (count + 1));
      sequence::commit(*branch.control(), accepted);
      for (std::uint64_t t = 0; t < 10; ++t) ASSERT_EQ(*slot(branch.pages(), t), t);
      for (std::uint64_t t = begin; t < begin + accepted; ++t) ASSERT_EQ(*slot(branch.pages(), t), mark);
      if (branch.num_tokens() < 60) own = std::move(branch);
      if (random() % 64 == 0) {
        ASSERT_TRUE(own.truncate(10));
      }
    }
  });
  ASSERT_TRUE(prompt.close());
  EXPECT_EQ(pool.stats().used_pages, 0U);
  EXPECT_EQ(store.open_sequences(), 0U);
}

TEST(SequenceStress, PagesRetainedByOthersWhileTheyGrowAreCopiedOrNot) {
  PagePool pool = PagePool::create({.page_bytes = 64, .capacity_pages = 8, .huge_pages = HugePages::kNever}).value();
  SequenceStore store = SequenceStore::create(pool, 4).value();
  Sequence own = store.open().value();
  ASSERT_TRUE(own.append(2));
  std::atomic<PageId> last{own.pages().back()};
  std::atomic<bool> is_done{false};
  run_threads([&](int thread) {
    if (thread == 0) {
      for (int round = 0; round < 20000; ++round) {
        EXPECT_TRUE(own.append(1) && own.truncate(2));
        last = own.pages().back();
      }
      is_done = true;
      return;
    }
    while (thread == 1 && !is_done) {
      const PageId page = last;
      if (pool.retain({&page, 1})) {
        EXPECT_TRUE(pool.release({&page, 1}));
      }
    }
  });
  EXPECT_EQ(pool.stats().used_pages, 1U);
}

}  // namespace
}  // namespace pagedkv
