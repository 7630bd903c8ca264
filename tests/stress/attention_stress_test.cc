// Plans, arenas, cancellations, short-lived threads and child processes, all at once.
#include <gtest/gtest.h>
#include <oneapi/tbb/task.h>
#include <oneapi/tbb/task_arena.h>
#include <oneapi/tbb/task_group.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "pagedkv/attention.h"
#include "pagedkv/kv_cache.h"
#include "support/threads.h"

namespace pagedkv {
namespace {

using testing::run_threads;

constexpr int kNumRounds = 2000;

// A batch of one sequence whose length differs between threads, over pages that all threads read.
struct Problem {
  static constexpr std::uint32_t kGroup = 2, kDim = 8, kPageSize = 4;
  static constexpr std::int32_t kPages = 64;
  std::uint32_t num_kv_heads;
  std::vector<float> rows = std::vector<float>(kPages * num_kv_heads * kPageSize * kDim);
  std::vector<std::int32_t> indices = std::vector<std::int32_t>(kPages);
  std::vector<float> q = std::vector<float>(kGroup * num_kv_heads * kDim, 0.25F);

  explicit Problem(std::uint32_t kv_heads = 1) : num_kv_heads(kv_heads) {
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 7 % 31) / 16 - 1;
    std::iota(indices.begin(), indices.end(), 0);
  }
  [[nodiscard]] KvView view() const {
    constexpr std::int64_t kRow = kDim * 4, kHead = kRow * kPageSize;
    const std::int64_t page = kHead * num_kv_heads;
    return {rows.data(), rows.data(), page, kHead, kRow, page, kHead, kRow, kPages};
  }
  [[nodiscard]] AttentionPlan plan(std::int32_t num_pages) const {
    const std::array<std::int32_t, 2> qo_indptr{0, 1}, kv_indptr{0, num_pages};
    const std::array<std::int32_t, 1> last_page_len{3};
    return AttentionPlan::create({.num_q_heads = kGroup * num_kv_heads,
                                  .num_kv_heads = num_kv_heads,
                                  .head_dim = kDim,
                                  .page_size = kPageSize,
                                  .kv_dtype = DType::f32},
                                 {.qo_indptr = qo_indptr,
                                  .kv_indptr = kv_indptr,
                                  .kv_indices = std::span(indices).first(static_cast<std::size_t>(num_pages)),
                                  .kv_last_page_len = last_page_len})
        .value();
  }
};

// Eight threads on however few cores there are, each with an arena of three: far more workers than cores.
TEST(AttentionStress, PlansInArenasOfTheirCallersGiveWhatOneThreadGives) {
  const Problem problem;
  std::atomic<int> wrong{0};
  run_threads([&](int thread) {
    const AttentionPlan plan = problem.plan(8 * (thread + 1));
    oneapi::tbb::task_arena alone(1), arena(3);
    std::vector<float> want(problem.q.size()), got(problem.q.size());
    alone.execute([&] { wrong += plan.run(problem.view(), problem.q, want).has_value() ? 0 : 1; });
    for (int round = 0; round < kNumRounds; ++round) {
      arena.execute([&] { wrong += plan.run(problem.view(), problem.q, got).has_value() ? 0 : 1; });
      wrong += got == want ? 0 : 1;
    }
  });
  EXPECT_EQ(wrong.load(), 0);
}

// Many tasks over four workers: at the end of a run they take what others have claimed and not begun.
TEST(AttentionStress, EveryTaskIsComputedOnceWhicheverWorkerTakesIt) {
  const Problem problem(64);
  const AttentionPlan plan = problem.plan(Problem::kPages);
  oneapi::tbb::task_arena arena(4);
  std::vector<float> want(problem.q.size()), got(problem.q.size());
  ASSERT_TRUE(oneapi::tbb::task_arena(1).execute([&] { return plan.run(problem.view(), problem.q, want); }));
  for (int round = 0; round < kNumRounds; ++round) {
    std::fill(got.begin(), got.end(), -1.F);
    ASSERT_TRUE(arena.execute([&] { return plan.run(problem.view(), problem.q, got); }));
    ASSERT_EQ(got, want) << round;
  }
}

TEST(AttentionStress, ACancelledRunSaysSoAndTheNextOneIsWhole) {
  const Problem problem;
  std::atomic<int> wrong{0};
  run_threads([&](int thread) {
    const AttentionPlan plan = problem.plan(8 * (thread + 1));
    std::vector<float> want(problem.q.size()), got(problem.q.size());
    wrong += plan.run(problem.view(), problem.q, want).has_value() ? 0 : 1;
    for (int round = 0; round < kNumRounds; ++round) {
      oneapi::tbb::task_group_context context;
      oneapi::tbb::task_group group(context);
      group.run_and_wait([&] {
        if (round % 2 == 0) context.cancel_group_execution();
        const Result<void> done = plan.run(problem.view(), problem.q, got);
        wrong += done.error() == (round % 2 == 0 ? Errc::kCancelled : Errc::kOk) ? 0 : 1;
      });
      wrong += round % 2 == 0 || got == want ? 0 : 1;
    }
  });
  EXPECT_EQ(wrong.load(), 0);
}

KvCache small_cache() {
  return KvCache::create({.shape = {.num_q_heads = 1, .num_kv_heads = 1, .head_dim = 4, .dtype = DType::f32},
                          .page_size = 4,
                          .capacity_pages = 64})
      .value();
}

// What a thread leaves behind when it ends (arrays of its steps, oneTBB's state) belongs to nobody else.
TEST(AttentionStress, SequencesOutliveTheThreadsThatUsedThem) {
  KvCache cache = small_cache();
  Sequence sequence = cache.open().value();
  const std::vector<float> rows(4, 0.5F);
  for (int round = 0; round < 200; ++round) {
    std::thread([&] {
      Step step = cache.begin_step({{&sequence, 1}}).value();
      std::vector<float> out(4);
      ASSERT_TRUE(step.write(0, rows, rows) && step.attend(0, rows, out));
      ASSERT_FLOAT_EQ(out[0], 0.5F);
      ASSERT_TRUE(step.commit());
    }).join();
  }
  EXPECT_EQ(sequence.num_tokens(), 200U);
}

// A child may exec or _exit (docs/SECURITY.md). The parent's threads notice nothing, whatever they were doing.
TEST(AttentionStress, ChildProcessesThatExitLeaveTheParentAlone) {
  KvCache cache = small_cache();
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      const std::vector<float> rows(4, static_cast<float>(t + 1));
      while (!done) {
        Sequence sequence = cache.open().value();
        for (int i = 0; i < 9; ++i) {
          Step step = cache.begin_step({{&sequence, 1}}).value();
          std::vector<float> out(4);
          const bool ran = step.write(0, rows, rows) && step.attend(0, rows, out) && step.commit();
          wrong += ran && out == rows ? 0 : 1;
        }
      }
    });
  }
  for (int i = 0; i < 20; ++i) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(7);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(WEXITSTATUS(status), 7);
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_EQ(cache.stats().pool.used_pages, 0U);
}

}  // namespace
}  // namespace pagedkv
