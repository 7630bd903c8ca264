// Random operations on the pool against a table of reference counts.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <vector>

#include "pagedkv/page_pool.h"
#include "property/random_ops.h"

namespace pagedkv::testing {
namespace {

constexpr std::uint64_t kCapacity = 40;

/// The naive model: a count for each page.
class PoolMachine {
 public:
  void allocate(std::uint64_t count) {
    std::vector<PageId> ids(count, kNullPage);
    const Result<void> done = pool_.allocate(ids);
    const auto num_free = static_cast<std::uint64_t>(std::count(refs_.begin(), refs_.end(), 0U));
    ASSERT_EQ(done.has_value(), count <= num_free);
    if (!done) return;
    for (const PageId id : ids) {
      ASSERT_EQ(refs_.at(index(id)), 0U) << "a page in use was handed out";
      refs_[index(id)] = 1;
    }
  }

  // Ids may be out of range, unused or repeated: then both sides refuse.
  void retain(const std::vector<PageId>& ids) {
    std::vector<std::uint32_t> after = refs_;
    const bool valid = std::all_of(ids.begin(), ids.end(), [&](PageId id) {
      return is_valid(id) && after[index(id)] > 0 && ++after[index(id)] > 0;
    });
    ASSERT_EQ(pool_.retain(ids).has_value(), valid);
    if (valid) refs_ = after;
  }
  void release(const std::vector<PageId>& ids) {
    std::vector<std::uint32_t> after = refs_;
    const bool valid = std::all_of(ids.begin(), ids.end(), [&](PageId id) {
      if (!is_valid(id) || after[index(id)] == 0) return false;
      --after[index(id)];
      return true;
    });
    ASSERT_EQ(pool_.release(ids).has_value(), valid);
    if (valid) refs_ = after;
  }

  void check() {
    const PoolStats stats = pool_.stats();
    const auto num_used =
        static_cast<std::uint64_t>(kCapacity) - static_cast<std::uint64_t>(std::count(refs_.begin(), refs_.end(), 0U));
    ASSERT_EQ(stats.used_pages, num_used);
    ASSERT_EQ(stats.free_pages, kCapacity - num_used);
    ASSERT_EQ(stats.shared_pages, static_cast<std::uint64_t>(std::count_if(refs_.begin(), refs_.end(),
                                                                           [](std::uint32_t r) { return r > 1; })));
    ASSERT_EQ(pool_.available_pages(), kCapacity - num_used);
    for (std::size_t i = 0; i < kCapacity; ++i) {
      ASSERT_EQ(pool_.ref_count(PageId{static_cast<std::int32_t>(i)}), refs_[i]);
    }
  }

  void apply(std::uint32_t kind, const std::vector<PageId>& ids) {
    switch (kind % 5) {
      case 0: allocate(ids.size()); break;
      case 1: retain(ids); break;
      case 4: ASSERT_TRUE(pool_.trim()); break;
      default: release(ids); break;
    }
  }

 private:
  static std::size_t index(PageId id) { return static_cast<std::size_t>(to_index(id)); }
  static bool is_valid(PageId id) { return to_index(id) >= 0 && index(id) < kCapacity; }

  PagePool pool_ =
      PagePool::create({.page_bytes = 512, .capacity_pages = kCapacity, .huge_pages = HugePages::kNever}).value();
  std::vector<std::uint32_t> refs_ = std::vector<std::uint32_t>(kCapacity, 0);
};

RC_GTEST_PROP(PoolProperty, AnyOperationsAgreeWithTheModel,
              (const std::vector<std::pair<std::uint32_t, std::vector<std::int8_t>>>& ops)) {
  PoolMachine machine;
  for (const auto& [kind, raw_ids] : ops) {
    std::vector<PageId> ids;
    for (const std::int8_t raw : raw_ids) ids.push_back(PageId{raw % 44});  // some negative, some out of range
    machine.apply(kind, ids);
    machine.check();
    RC_ASSERT(!::testing::Test::HasFatalFailure());
  }
}

TEST(PoolRandom, LongRunAgreesWithTheModel) {
  std::mt19937_64 random = random_engine();
  PoolMachine machine;
  const std::uint64_t num_ops = num_random_ops(300'000);
  std::vector<PageId> ids;
  for (std::uint64_t i = 0; i < num_ops; ++i) {
    const std::uint64_t bits = random();
    ids.resize(bits % 6);
    for (PageId& id : ids) id = PageId{static_cast<std::int32_t>(random() % (bits % 97 == 0 ? 44 : 40))};
    machine.apply(static_cast<std::uint32_t>(bits >> 40), ids);
    if (i % 16 == 0) machine.check();
    ASSERT_FALSE(::testing::Test::HasFatalFailure()) << "operation " << i;
  }
  machine.check();
}

}  // namespace
}  // namespace pagedkv::testing
