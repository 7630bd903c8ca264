// The promises of Step that types and counters can check: noexcept, no allocation in the layer loop, and nothing
// changed when an allocation fails.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "pagedkv/kv_cache.h"
#include "support/failing_new.h"

namespace pagedkv {
namespace {

static_assert(noexcept(std::declval<Step&>().write(0, ConstTensor(), ConstTensor())));
static_assert(noexcept(std::declval<Step&>().attend(0, ConstTensor(), Tensor())));
static_assert(noexcept(std::declval<Step&>().commit()));
static_assert(noexcept(std::declval<Step&>().rollback()));
static_assert(noexcept(std::declval<KvCache&>().begin_step(std::span<const StepItem>())));
static_assert(noexcept(std::declval<KvCache&>().can_admit(1)));
static_assert(noexcept(KvCache::create(KvCacheOptions())));
static_assert(std::is_nothrow_move_constructible_v<Step> && !std::is_copy_constructible_v<Step>);
static_assert(std::is_nothrow_move_constructible_v<KvCache> && !std::is_copy_constructible_v<KvCache>);

constexpr std::uint32_t kLayers = 4;

KvCache small_cache() {
  return KvCache::create(
             {.shape = {.num_layers = kLayers, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 8, .dtype = DType::f32},
              .page_size = 2,
              .capacity_pages = 64})
      .value();
}

TEST(StepContract, LayersAfterTheFirstAllocateNothing) {
  KvCache cache = small_cache();
  Sequence a = cache.open().value(), b = cache.open().value();
  ASSERT_TRUE(a.append(9));
  Step step = cache.begin_step({{&a, 1}, {&b, 7}}).value();
  const std::vector<float> rows(8 * 8, 0.5f), q(8 * 16, 0.5f);
  std::vector<float> out(8 * 16);
  {
    const testing::FailingNew counter(-1);
    ASSERT_TRUE(step.write(0, rows, rows));
    ASSERT_TRUE(step.attend(0, q, out));
    EXPECT_GT(counter.count(), 0) << "the first layer makes slots and plan";
  }
  const testing::FailingNew counter(-1);
  for (std::uint32_t layer = 1; layer < kLayers; ++layer) {
    ASSERT_TRUE(step.write(layer, rows, rows));
    ASSERT_TRUE(step.attend(layer, q, out));
  }
  ASSERT_TRUE(step.commit());
  EXPECT_EQ(counter.count(), 0);
}

// A decode loop that writes with kernels of its own makes no plan: its steps find everything grown already.
TEST(StepContract, StepsThatFitTheGrownArraysAllocateNothingToBeginAndCommit) {
  KvCache cache = small_cache();
  Sequence a = cache.open().value();
  ASSERT_TRUE(cache.begin_step({{&a, 1}}).value().commit());
  const testing::FailingNew counter(-1);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(cache.begin_step({{&a, 1}}).value().commit());
  EXPECT_EQ(counter.count(), 0);
  ASSERT_TRUE(cache.trim());
  ASSERT_TRUE(cache.begin_step({{&a, 1}}).value().commit());
  EXPECT_GT(counter.count(), 0) << "trim freed what the steps had grown";
}

TEST(StepContract, FailedAllocationsOfAStepLeaveEverythingAsItWas) {
  KvCache cache = small_cache();
  const std::vector<float> rows(40 * 8, 0.5f), q(40 * 16, 0.5f);
  std::vector<float> out(40 * 16);
  const std::vector<Token> ids(39, 7);
  int num_failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    Sequence a = cache.open().value(), b = cache.open().value();
    std::array<StepItem, 2> items{{{&a, 39, ids}, {&b, 1, {}}}};
    Error error;
    {
      const testing::FailingNew failing(fail_at);
      Result<Step> step = cache.begin_step(items);
      if (step) {
        Result<void> done = step->write(0, rows, rows);
        if (done) done = step->attend(0, q, out);
        error = done.error();
        if (done) done = step->commit();
      } else {
        error = step.error();
      }
    }
    if (error == Errc::kOk) break;
    ++num_failures;
    EXPECT_EQ(error, Errc::kOutOfMemory) << "allocation " << fail_at;
    EXPECT_EQ(a.num_tokens(), 0u);
    EXPECT_TRUE(a.pages().empty());
    EXPECT_TRUE(a.tokens().empty());
    EXPECT_EQ(cache.stats().pool.used_pages, 0u);
    EXPECT_TRUE(a.close()) << "not busy";
  }
  EXPECT_GT(num_failures, 3);
}

TEST(StepContract, FailedAllocationsOfCreateAndOpenAreReported) {
  const std::vector<Token> prompt(3, 1);
  int num_failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    Error error;
    {
      const testing::FailingNew failing(fail_at);
      Result<KvCache> cache = KvCache::create({.shape = {.num_q_heads = 1, .num_kv_heads = 1, .head_dim = 8},
                                               .capacity_pages = 4,
                                               .attention = {.sinks = std::array<float, 1>{0.5f}}});
      error = cache.error();
      if (cache) {
        error = cache->open(prompt).error();
      }
    }
    if (error == Errc::kOk) break;
    ++num_failures;
    EXPECT_EQ(error, Errc::kOutOfMemory) << "allocation " << fail_at;
  }
  EXPECT_GT(num_failures, 5);
}

}  // namespace
}  // namespace pagedkv
