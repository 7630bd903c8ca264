// Every allocation and every call of the system fails, the n-th for every n, through every public operation. The model
// of the cache says whether anything changed.
#include <gtest/gtest.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task.h>

#include <array>
#include <functional>
#include <sstream>
#include <utility>
#include <vector>

#include "model/cache_machine.h"
#include "pagedkv/attention.h"
#include "pagedkv/dense_cache.h"
#include "pagedkv/interleaved_cache.h"
#include "pagedkv/kv_cache.h"
#include "pagedkv/reference.h"
#include "support/failing_new.h"
#include "support/failing_os.h"

namespace pagedkv::testing {
namespace {

// oneTBB ends the process if it cannot set itself up in a thread, which it does at its first use: let it do so before.
void set_up_tbb() {
  oneapi::tbb::parallel_for(0, 64, [](int) {});
  static_cast<void>(oneapi::tbb::task::current_context());
}

class MemoryFaults final : public Faults {
 public:
  MemoryFaults() { set_up_tbb(); }
  void arm(std::int64_t fail_at) override { allocations_until_failure = fail_at; }
  bool disarm() override { return std::exchange(allocations_until_failure, -1) < 0; }
};

class SystemFaults final : public Faults {
 public:
  SystemFaults() { set_up_tbb(); }
  void arm(std::int64_t fail_at) override { os_calls_until_failure = fail_at; }
  bool disarm() override { return std::exchange(os_calls_until_failure, -1) < 0; }
};

// Returns how many failures the library reported.
std::uint64_t run_scripts(Faults& faults, int num_scripts) {
  std::uint64_t num_faults = 0;
  for (int i = 0; i < num_scripts; ++i) {
    const CacheScript script = random_script(static_cast<std::uint64_t>(i), 300);
    try {
      CacheMachine machine(script.on, &faults);
      for (const CacheOp& op : script.ops) machine.run(op);
      machine.finish();
      num_faults += machine.num_faults();
    } catch (const std::exception& difference) {
      std::ostringstream text;
      text << script;
      ADD_FAILURE() << difference.what() << "\n" << text.str();
      return num_faults;
    }
  }
  return num_faults;
}

TEST(CacheFaults, AFailedAllocationAnywhereChangesNothing) {
  MemoryFaults faults;
  EXPECT_GT(run_scripts(faults, 150), 20000U);
}

TEST(CacheFaults, AFailedCallOfTheSystemAnywhereChangesNothing) {
  SystemFaults faults;
  const std::int64_t mapped_before = mapped_os_bytes;
  EXPECT_GT(run_scripts(faults, 150), 100U);
  EXPECT_EQ(mapped_os_bytes, mapped_before) << "address space leaked";
}

// Tries `operation` with a failure at every point. It returns the code that it got.
int failures_of(const std::function<Errc()>& operation) {
  int num_failures = 0;
  MemoryFaults of_memory;
  SystemFaults of_system;
  for (Faults* const faults : std::initializer_list<Faults*>{&of_memory, &of_system}) {
    for (std::int64_t fail_at = 0;; ++fail_at) {
      const std::int64_t mapped_before = mapped_os_bytes;
      faults->arm(fail_at);
      const Errc code = operation();
      const bool failed = faults->disarm();
      EXPECT_EQ(mapped_os_bytes, mapped_before) << "address space leaked at " << fail_at;
      if (!failed) {
        EXPECT_EQ(code, Errc::kOk);
        break;
      }
      EXPECT_TRUE(code == Errc::kOk || code == Errc::kOutOfMemory || code == Errc::kOsError) << to_string(code);
      num_failures += code != Errc::kOk ? 1 : 0;
    }
  }
  return num_failures;
}

TEST(CacheFaults, CachesOfEveryKindAreCreatedOrNot) {
  const ModelShape shape{.num_layers = 2, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 8, .dtype = DType::f32};
  const std::array<std::uint32_t, 1> first{0}, second{1};
  const std::array<KvLayerGroup, 2> groups{{{first, -1}, {second, 4}}};
  const std::vector<float> rows(2 * 2 * 3 * 8, 0.5F), row(4, 0.5F);
  std::vector<float> out(rows.size());
  EXPECT_GT(failures_of([&] {
              KvCacheOptions options{.shape = shape, .capacity_pages = 8, .layer_groups = groups};
              options.prefix.event_capacity = 16;
              return KvCache::create(options).error().code;
            }),
            20);
  EXPECT_GT(failures_of([&] {
              Result<DenseCache> dense =
                  DenseCache::create({.batch_size = 2, .num_layers = 2, .num_heads = 2, .head_dim = 8});
              if (!dense) return dense.error().code;
              Result<DenseKv> updated = dense->update(0, rows, rows);
              if (!updated) return updated.error().code;
              return dense->cached_attention(1, rows, rows, rows, out).error().code;
            }),
            5);
  EXPECT_GT(failures_of([&] {
              Result<InterleavedCache> cache = InterleavedCache::create(8, 4);
              if (!cache) return cache.error().code;
              Result<void> done = cache->append(row, row);
              return done ? cache->attend(row, std::span(out).first(4)).error().code : done.error().code;
            }),
            3);
  EXPECT_GT(failures_of([&] {
              Result<PagePool> pool = PagePool::create({.page_bytes = 4096, .capacity_pages = 8});
              return pool ? SequenceStore::create(*pool, 4).error().code : pool.error().code;
            }),
            3);
}

TEST(CacheFaults, APinOverManyPageTablesIsThereOrNot) {
  const std::array<std::uint32_t, 1> first{0}, second{1}, third{2};
  const std::array<KvLayerGroup, 3> groups{{{first}, {second}, {third}}};
  KvCache cache =
      KvCache::create(
          {.shape = {.num_layers = 3, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 4, .dtype = DType::f32},
           .page_size = 2,
           .capacity_pages = 64,
           .layer_groups = groups})
          .value();
  const std::vector<Token> prompt(20, 5);
  {
    Sequence sequence = cache.open(prompt).value();
    ASSERT_TRUE(cache.begin_step({{&sequence, 20}}).value().commit());
  }
  MemoryFaults faults;
  int num_failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    faults.arm(fail_at);
    const Result<PinId> pin = cache.pin(prompt);
    const bool failed = faults.disarm();
    if (!failed) {
      EXPECT_EQ(cache.stats().prefix.pinned_pages, 30U);
      EXPECT_TRUE(cache.unpin(pin.value()));
      break;
    }
    if (pin) continue;
    ++num_failures;
    EXPECT_EQ(pin.error(), Errc::kOutOfMemory);
    EXPECT_EQ(cache.stats().prefix.pinned_pages, 0U);
    EXPECT_EQ(cache.stats().pool.used_pages, 0U) << "allocation " << fail_at;
  }
  EXPECT_GT(num_failures, 3);
}

TEST(CacheFaults, ADenseCacheGivesBackThePagesOfACallThatFailed) {
  const std::vector<float> rows(2 * 2 * 40 * 8, 0.5F);
  std::vector<float> out(rows.size());
  MemoryFaults faults;
  int num_failures = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    DenseCache dense =
        DenseCache::create({.batch_size = 2, .num_layers = 1, .num_heads = 2, .head_dim = 8, .page_size = 4}).value();
    faults.arm(fail_at);
    const Errc code = dense.cached_attention(0, rows, rows, rows, out).error().code;
    const bool failed = faults.disarm();
    const PoolStats stats = dense.pool_stats();
    if (!failed) {
      EXPECT_EQ(stats.used_pages, 2U * 10);
      break;
    }
    if (code == Errc::kOk) continue;
    ++num_failures;
    EXPECT_EQ(stats.used_pages, 0U) << "allocation " << fail_at;
    EXPECT_EQ(dense.seq_length(0).value(), 0U);
    EXPECT_TRUE(dense.cached_attention(0, rows, rows, rows, out)) << "the next attempt succeeds";
  }
  EXPECT_GT(num_failures, 3);
}

TEST(CacheFaults, PlansAreMadeOrNot) {
  const AttentionConfig config{.num_q_heads = 2, .num_kv_heads = 1, .head_dim = 8, .page_size = 2};
  const std::array<std::int32_t, 2> qo_indptr{0, 1}, short_kv{0, 3}, long_kv{0, 40};
  const std::array<std::int32_t, 1> last{1};
  std::vector<std::int32_t> indices(40);
  const AttentionBatch small{.qo_indptr = qo_indptr,
                             .kv_indptr = short_kv,
                             .kv_indices = std::span(indices).first(3),
                             .kv_last_page_len = last};
  const AttentionBatch large{
      .qo_indptr = qo_indptr, .kv_indptr = long_kv, .kv_indices = indices, .kv_last_page_len = last};
  EXPECT_GT(failures_of([&] { return AttentionPlan::create(config, small).error().code; }), 2);
  EXPECT_GT(failures_of([&] { return AttentionPlan::workspace_bytes(config, small).error().code; }), 0);
  EXPECT_GT(failures_of([&] {
              Result<AttentionPlan> plan = AttentionPlan::create(config, small);
              return plan ? plan->extend(large).error().code : plan.error().code;
            }),
            2);
  std::vector<float> k(3 * 2 * 8, 0.5F), q(16, 0.5F);
  std::vector<double> out(16);
  const KvView view{k.data(), k.data(), 64, 64, 32, 64, 64, 32, 3};
  AttentionConfig of_f32 = config;
  of_f32.kv_dtype = DType::f32;
  failures_of([&] { return reference_attention(of_f32, small, view, q, out).error().code; });
}

// A failed `extend` leaves a plan that still gives what it gave.
TEST(CacheFaults, APlanThatCouldNotBeExtendedIsAsItWas) {
  const AttentionConfig config{
      .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 8, .page_size = 2, .kv_dtype = DType::f32};
  const std::array<std::int32_t, 2> qo_indptr{0, 1}, short_kv{0, 3}, long_kv{0, 40};
  const std::array<std::int32_t, 1> last{1};
  std::vector<std::int32_t> indices(40);
  for (std::size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<std::int32_t>(i);
  const AttentionBatch small{.qo_indptr = qo_indptr,
                             .kv_indptr = short_kv,
                             .kv_indices = std::span(indices).first(3),
                             .kv_last_page_len = last};
  const AttentionBatch large{
      .qo_indptr = qo_indptr, .kv_indptr = long_kv, .kv_indices = indices, .kv_last_page_len = last};
  std::vector<float> pages(40 * 16);
  for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<float>(i % 13) / 8;
  const KvView view{pages.data(), pages.data(), 64, 64, 32, 64, 64, 32, 40};
  const std::vector<float> q(8, 0.5F);
  std::vector<float> want(8), got(8);
  ASSERT_TRUE(AttentionPlan::create(config, small).value().run(view, q, want));
  for (std::int64_t fail_at = 0;; ++fail_at) {
    AttentionPlan plan = AttentionPlan::create(config, small).value();
    allocations_until_failure = fail_at;
    const Result<void> extended = plan.extend(large);
    const bool failed = std::exchange(allocations_until_failure, -1) < 0;
    if (!failed) break;
    if (extended) continue;
    ASSERT_TRUE(plan.run(view, q, got));
    EXPECT_EQ(got, want) << "allocation " << fail_at;
  }
}

}  // namespace
}  // namespace pagedkv::testing
