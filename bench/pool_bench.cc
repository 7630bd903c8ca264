// Pages taken and given back: one, a batch under one lock, and by two threads at once.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <vector>

#include "pagedkv/page_pool.h"
#include "report.h"

namespace pagedkv::bench {
namespace {

constexpr std::uint64_t kPages = 16'384;

/// One pool for all benchmarks of this file; every page has been used once, so that none is new to the system.
PagePool& warm_pool() {
  static PagePool pool = [] {
    PagePool made =
        PagePool::create({.page_bytes = 4096, .capacity_pages = kPages, .huge_pages = HugePages::kNever}).value();
    std::vector<PageId> all(kPages);
    if (!made.allocate(all) || !made.release(all)) std::abort();
    return made;
  }();
  return pool;
}

/// Whether a batch comes distinct and counted, and goes back whole.
bool pool_works(PagePool& pool, std::size_t batch) {
  std::vector<PageId> ids(batch);
  if (!pool.allocate(ids)) return false;
  bool right = std::all_of(ids.begin(), ids.end(), [&pool](PageId id) { return pool.ref_count(id) == 1; });
  std::sort(ids.begin(), ids.end());
  right = right && std::adjacent_find(ids.begin(), ids.end()) == ids.end();
  return pool.release(ids).has_value() && right;
}

void allocate_release_one(benchmark::State& state) {
  PagePool& pool = warm_pool();
  if (!pool_works(pool, 1)) state.SkipWithError("the pool hands out wrong pages");
  for (auto _ : state) {
    const Result<PageId> id = pool.allocate();
    if (!id || !pool.release({&id.value(), 1})) {
      state.SkipWithError("the pool refused a page");
      break;
    }
  }
  report_time_each(state, "per_page", 1);
  state.SetLabel("limit: latency of the lock");
}
BENCHMARK(allocate_release_one);
BENCHMARK(allocate_release_one)->Name("allocate_release_one_contended")->Threads(2)->UseRealTime();

void allocate_release_batch(benchmark::State& state) {
  PagePool& pool = warm_pool();
  std::vector<PageId> ids(static_cast<std::size_t>(state.range(0)));
  if (!pool_works(pool, ids.size())) state.SkipWithError("the pool hands out wrong pages");
  for (auto _ : state) {
    if (!pool.allocate(ids) || !pool.release(ids)) {
      state.SkipWithError("the pool refused a batch");
      break;
    }
  }
  report_time_each(state, "per_page", static_cast<double>(ids.size()));
  state.SetLabel("limit: L1 and L2 traffic of the free list");
}
BENCHMARK(allocate_release_batch)->Arg(8)->Arg(64)->Arg(512);

}  // namespace
}  // namespace pagedkv::bench
