// Pages taken and given back: one, a batch under one lock, by two threads at once; and their memory after a burst.
#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <span>
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

/// Bytes of the pool's range that are in memory now.
std::uint64_t resident_bytes(const PagePool& pool) {
  const auto os_page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t num_bytes = pool.max_capacity_pages() * pool.page_bytes();
  std::vector<unsigned char> in_core((num_bytes + os_page - 1) / os_page);
  if (::mincore(pool.base(), num_bytes, in_core.data()) != 0) return 0;
  return os_page * static_cast<std::uint64_t>(
                       std::count_if(in_core.begin(), in_core.end(), [](unsigned char c) { return (c & 1U) != 0; }));
}

// 256 MiB of pages in use, of which one in eight lives on, scattered: the time in which the others' memory is given
// back, and what is resident then, as multiple of what lives.
void trim_after_burst(benchmark::State& state) {
  const auto page_bytes = static_cast<std::uint64_t>(state.range(0)) << 10;
  const std::uint64_t num_pages = (std::uint64_t{256} << 20) / page_bytes, num_live = num_pages / 8;
  double resident = 0;
  std::optional<PagePool> pool;
  for (auto _ : state) {
    state.PauseTiming();  // the pool of the round before goes here: unmapping what is left of it is not what is timed
    pool.reset();
    pool.emplace(PagePool::create({.page_bytes = page_bytes, .capacity_pages = num_pages}).value());
    std::vector<PageId> pages(num_pages);
    if (!pool->allocate(pages)) state.SkipWithError("the pool refused pages");
    for (const PageId page : pages) std::memset(pool->page_data(page), 1, page_bytes);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(7));
    if (!pool->release(std::span(pages).subspan(num_live))) state.SkipWithError("the pool refused a release");
    state.ResumeTiming();
    if (!pool->trim()) state.SkipWithError("the pool could not give memory back");
    state.PauseTiming();
    resident = static_cast<double>(resident_bytes(*pool)) / static_cast<double>(num_live * page_bytes);
    state.ResumeTiming();
  }
  state.counters["resident_to_live"] = resident;
  report_bytes(state, static_cast<double>((num_pages - num_live) * page_bytes));
  state.SetLabel("limit: the system's unmapping");
}
BENCHMARK(trim_after_burst)->Arg(4)->Arg(64)->Arg(2048)->ArgName("page_KiB")->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace pagedkv::bench
