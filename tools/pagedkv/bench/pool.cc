// `pagedkv bench pool`: what a page costs to take and give back.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "bench/parts.h"
#include "bench/samples.h"
#include "json_file.h"
#include "pagedkv/page_pool.h"
#include "table.h"

namespace pagedkv::tool {
namespace {

constexpr std::size_t kBatchPages = 64;
constexpr int kRounds = 20'000;             ///< Pages a sample.
constexpr int kBatchRounds = kRounds / 16;  ///< Batches a sample.

struct Options {
  std::uint64_t pages = 16'384;
  int threads = 2;
  int samples = 25;
  std::string json;
};

/// Nanoseconds a page, over the samples of one way of using the pool.
struct Row {
  const char* name;
  const char* key;
  std::vector<double> ns_a_page;
};

/// A pool whose pages have all been used once, so that no sample pays for memory from the operating system.
PagePool make_warm_pool(std::uint64_t pages) {
  PagePool pool = value_or_bad_input(
      PagePool::create({.page_bytes = 4096, .capacity_pages = pages, .huge_pages = HugePages::kNever}), "the pool");
  std::vector<PageId> all(static_cast<std::size_t>(pages));
  value_or_bad_input(pool.allocate(all), "allocating all pages");
  value_or_bad_input(pool.release(all), "releasing all pages");
  return pool;
}

/// Whether pages come distinct, in use and counted, and go back whole: timing a broken pool would say nothing.
bool works(PagePool& pool) {
  std::vector<PageId> ids(std::min<std::size_t>(kBatchPages, static_cast<std::size_t>(pool.capacity_pages())));
  if (!pool.allocate(ids)) return false;
  const bool counted = pool.stats().used_pages == ids.size() &&
                       std::all_of(ids.begin(), ids.end(), [&pool](PageId id) { return pool.ref_count(id) == 1; });
  std::vector<PageId> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  const bool distinct = std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
  return pool.release(ids).has_value() && counted && distinct && pool.stats().used_pages == 0;
}

/// Takes and gives back one page `kRounds` times; the number of refusals, which must be 0.
int cycle_one_page(PagePool& pool) {
  int refused = 0;
  for (int i = 0; i < kRounds; ++i) {
    const Result<PageId> id = pool.allocate();
    if (!id || !pool.release({&id.value(), 1})) ++refused;
  }
  return refused;
}

int cycle_batches(PagePool& pool) {
  int refused = 0;
  std::vector<PageId> ids(kBatchPages);
  for (int i = 0; i < kBatchRounds; ++i) {
    if (!pool.allocate(ids) || !pool.release(ids)) ++refused;
  }
  return refused;
}

/// Seconds from the moment at which all threads run to the moment at which the last is done.
double contended_seconds(PagePool& pool, int num_threads, std::atomic<int>& refused) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(num_threads));
  for (int t = 0; t < num_threads; ++t) {
    threads.emplace_back([&] {
      ready.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) {
      }
      refused.fetch_add(cycle_one_page(pool));
    });
  }
  while (ready.load() < num_threads) std::this_thread::yield();
  return seconds_of([&] {
    go.store(true, std::memory_order_release);
    for (std::thread& thread : threads) thread.join();
  });
}

ExitCode run_bench_pool(const Options& options) {
  PagePool pool = make_warm_pool(options.pages);
  if (!works(pool)) {
    fmt::print(stderr, "pagedkv: the pool hands out wrong pages\n");
    return kCheckFailed;
  }
  std::vector<Row> rows = {{"one page, one thread", "one_page", {}},
                           {"64 pages in one call", "batch_64", {}},
                           {"one page, contended", "contended", {}}};
  std::atomic<int> refused{0};
  for (int i = 0; i < options.samples; ++i) {
    rows[0].ns_a_page.push_back(seconds_of([&] { refused += cycle_one_page(pool); }) * 1e9 / kRounds);
    rows[1].ns_a_page.push_back(seconds_of([&] { refused += cycle_batches(pool); }) * 1e9 /
                                (kBatchRounds * static_cast<double>(kBatchPages)));
    rows[2].ns_a_page.push_back(contended_seconds(pool, options.threads, refused) * 1e9 / kRounds);
  }
  if (refused != 0 || pool.stats().used_pages != 0) {
    fmt::print(stderr, "pagedkv: the pool refused pages that it had, or lost some\n");
    return kCheckFailed;
  }

  Json json = {{"pages", options.pages}, {"threads", options.threads}, {"samples", options.samples}};
  Table table({"allocate and release", "ns a page", "p10", "p90"});
  for (const Row& row : rows) {
    const double p10 = quantile(row.ns_a_page, 0.1), p90 = quantile(row.ns_a_page, 0.9), mid = median(row.ns_a_page);
    table.add({row.name, fmt::format("{:.2f}", mid), fmt::format("{:.2f}", p10), fmt::format("{:.2f}", p90)});
    json[std::string(row.key) + "_ns_a_page"] = mid;
    json[std::string(row.key) + "_ns_a_page_p10"] = p10;
    json[std::string(row.key) + "_ns_a_page_p90"] = p90;
  }
  if (options.json != "-") {
    fmt::print("{}contended: {} threads, ns a page as each thread sees it\n", table.to_string(), options.threads);
  }
  if (!options.json.empty()) write_json(options.json, json);
  return kDone;
}

}  // namespace

Command add_bench_pool(CLI::App& bench) {
  CLI::App* app = bench.add_subcommand("pool", "Nanoseconds to take a page and give it back");
  app->description(
      "Measures the page pool: one page allocated and released by one thread, 64 pages in one call, and one page by\n"
      "several threads at once. Medians over samples; the pool's answers are checked first and after.");
  auto options = std::make_shared<Options>();
  app->add_option("--pages", options->pages, "Pages of the pool")
      ->check(CLI::Range(std::uint64_t{256}, std::uint64_t{1} << 22))
      ->capture_default_str();
  app->add_option("--threads", options->threads, "Threads that contend")
      ->check(CLI::Range(2, 256))
      ->capture_default_str();
  app->add_option("--samples", options->samples, "Samples of each row")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  app->add_option("--json", options->json, "Write the numbers there as JSON (- = stdout)")->type_name("FILE");
  return {app, [options] { return run_bench_pool(*options); }};
}

}  // namespace pagedkv::tool
