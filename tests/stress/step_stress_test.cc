// Steps over disjoint sequences from many threads at once, on one pool that is too small for all of them.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "pagedkv/kv_cache.h"
#include "support/threads.h"

namespace pagedkv {
namespace {

using testing::kNumThreads;
using testing::run_threads;
using testing::start_threads;

constexpr std::uint32_t kLayers = 2, kDim = 4, kPageSize = 4;
constexpr int kRounds = 2000;

KvCacheOptions small_options(std::uint64_t capacity_pages) {
  return {.shape = {.num_layers = kLayers, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = kDim, .dtype = DType::f32},
          .page_size = kPageSize,
          .capacity_pages = capacity_pages};
}
KvCache small_cache(std::uint64_t capacity_pages) { return KvCache::create(small_options(capacity_pages)).value(); }

/// Writes `value` in every element of the step's rows and checks that the attention of equal rows is that value.
void write_and_attend(Step& step, float value) {
  const std::vector<float> rows(step.num_rows() * kDim, value), q(step.num_rows() * 2 * kDim, 0.25f);
  std::vector<float> out(q.size());
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(step.write(layer, rows, rows));
    ASSERT_TRUE(step.attend(layer, q, out));
    for (const float x : out) ASSERT_FLOAT_EQ(x, value);
  }
}

// A thread's sequences hold rows of that thread's value alone, so that a row of another thread shows in the output.
void serve(KvCache& cache, float value, std::atomic<int>& refusals) {
  Sequence chat = cache.open().value();
  Sequence branch;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<StepItem> items{{&chat, 1 + static_cast<std::uint32_t>(round) % 5, {}}};
    if (branch.is_open()) items.push_back({&branch, 1, {}});
    Result<Step> step = cache.begin_step(items);
    if (!step) {  // out of pages: make room
      ASSERT_EQ(step.error(), Errc::kOutOfPages);
      ++refusals;
      ASSERT_TRUE(branch.close());
      ASSERT_TRUE(chat.truncate(chat.num_tokens() / 2));
      continue;
    }
    write_and_attend(*step, value);
    if (round % 7 == 3) continue;  // rolled back
    ASSERT_TRUE(step->commit());
    if (round % 11 == 5) {
      Result<Sequence> forked = chat.fork();
      ASSERT_TRUE(forked);
      branch = std::move(*forked);
    }
  }
}

TEST(StepStress, DisjointSequencesStepFromManyThreads) {
  KvCache cache = small_cache(60);
  std::atomic<int> refusals{0};
  {
    const auto threads = start_threads([&](int t) { serve(cache, static_cast<float>(t + 1), refusals); });
    for (int i = 0; i < 200; ++i) {  // what a monitor asks meanwhile
      const CacheStats stats = cache.stats();
      ASSERT_EQ(stats.pool.used_pages + stats.pool.evictable_pages + stats.pool.free_pages, stats.pool.capacity_pages);
      ASSERT_LE(cache.pages_available(), 60u);
      (void)cache.can_admit(10);
      ASSERT_TRUE(cache.trim());
    }
  }
  const CacheStats stats = cache.stats();
  EXPECT_GT(refusals.load(), 0) << "the pool was meant to be too small";
  EXPECT_EQ(stats.pool.used_pages, 0u);
  EXPECT_EQ(stats.open_sequences, 0u);
  EXPECT_EQ(stats.steps_begun, stats.steps_committed + stats.steps_rolled_back);
}

// Forks that share their last page step at once: whoever writes first copies, and nobody sees another's rows.
TEST(StepStress, ForksOfOneSequenceStepAtOnce) {
  KvCache cache = small_cache(256);
  for (int round = 0; round < 50; ++round) {
    Sequence trunk = cache.open().value();
    {
      Step step = cache.begin_step({{&trunk, 6}}).value();
      write_and_attend(step, 1);
      ASSERT_TRUE(step.commit());
    }
    std::array<Sequence, kNumThreads> branches;
    for (Sequence& branch : branches) branch = trunk.fork().value();
    ASSERT_TRUE(trunk.close());
    run_threads([&](int thread) {
      Sequence& branch = branches[static_cast<std::size_t>(thread)];
      for (int i = 0; i < 3; ++i) {
        Step step = cache.begin_step({{&branch, 1}}).value();
        write_and_attend(step, 1);
        ASSERT_TRUE(step.commit());
      }
      ASSERT_TRUE(branch.close());
    });
  }
  EXPECT_EQ(cache.stats().pool.used_pages, 0u);
}

// Tenants open prompts of a few shared prefixes, fork, step and close, while others trim, clear and change the
// capacity. K and V of a token are the tenant's number, so that a page of another tenant shows in the output.
void serve_tenant(KvCache& cache, int tenant) {
  const std::string salt(1, static_cast<char>('a' + tenant));
  const auto value = static_cast<float>(tenant + 1);
  for (int round = 0; round < kRounds; ++round) {
    std::vector<Token> prompt(12);
    for (std::size_t t = 0; t < prompt.size(); ++t) prompt[t] = t < 6 ? 0 : round % 3;
    Sequence chat = cache.open(prompt, {.cache_salt = salt}).value();
    const auto num_new = static_cast<std::uint32_t>(prompt.size() - chat.num_tokens());
    Result<Step> prefill = cache.begin_step({{&chat, num_new}});
    if (!prefill) continue;  // out of pages
    write_and_attend(*prefill, value);
    ASSERT_TRUE(prefill->commit());
    Sequence branch = chat.fork().value();
    const Token next = round;
    Result<Step> decode = cache.begin_step({{&chat, 1, {&next, 1}}, {&branch, 1}});
    if (!decode) continue;
    write_and_attend(*decode, value);
    ASSERT_TRUE(decode->commit());
  }
}

void serve_tenants(KvCacheOptions options) {
  options.max_capacity_pages = 40;
  options.prefix.event_capacity = 64;
  KvCache cache = KvCache::create(options).value();
  {
    const auto threads = start_threads([&](int thread) { serve_tenant(cache, thread); });
    const auto ignore = [](void*, const CacheEvent&) noexcept {};
    for (int i = 0; i < 300; ++i) {
      ASSERT_TRUE(cache.trim());
      (void)cache.set_capacity(20 + static_cast<std::uint64_t>(i) % 20);
      (void)cache.poll_events(ignore, nullptr);
      if (i % 50 == 0) cache.clear_prefix_cache();
      const std::vector<Token> prefix(6, 0);
      Result<PinId> pin = cache.pin(prefix, {.cache_salt = "a"});
      if (pin) {
        ASSERT_TRUE(cache.unpin(*pin));
      }
    }
  }
  const CacheStats stats = cache.stats();
  EXPECT_GT(stats.prefix.hit_tokens, 0u);
  EXPECT_EQ(stats.pool.used_pages, 0u);
}

TEST(StepStress, OpensForksStepsEvictionsTrimsAndCapacityChangesAtOnce) { serve_tenants(small_options(24)); }

TEST(StepStress, TheSameWithALayerGroupThatSlides) {
  const std::vector<std::uint32_t> full = {0}, sliding = {1};
  const KvLayerGroup groups[] = {{full}, {sliding, 3, 2}};
  KvCacheOptions options = small_options(36);
  options.layer_groups = groups;
  serve_tenants(options);
}

}  // namespace
}  // namespace pagedkv
