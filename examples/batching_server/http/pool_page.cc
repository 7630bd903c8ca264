// Snapshots as JSON.
#include "http/pool_page.h"

#include <nlohmann/json.hpp>

namespace serving {
namespace {

using Json = nlohmann::json;

// A sequence's pages as [first, count, first, count, ...]: neighbours in the table are often neighbours in the pool.
Json runs_of(const std::vector<pagedkv::PageId>& pages) {
  Json runs = Json::array();
  std::int32_t first = -1, count = 0;
  const auto flush = [&] {
    if (count == 0) return;
    runs.push_back(first);
    runs.push_back(count);
  };
  for (pagedkv::PageId page : pages) {
    const std::int32_t index = pagedkv::to_index(page);
    if (index < 0) continue;  // Released behind a window.
    if (count > 0 && index == first + count) {
      ++count;
      continue;
    }
    flush();
    first = index;
    count = 1;
  }
  flush();
  return runs;
}

constexpr const char* kHtml =
#include "pool_page.html.inc"
    ;

}  // namespace

const char* pool_page_html() { return kHtml; }

std::string pool_json(const PoolSnapshot& snapshot, pagedkv::KvCache& cache) {
  const EngineStats& stats = snapshot.stats;
  const pagedkv::PoolStats& pool = stats.cache.pool;
  Json holders = Json::array();
  for (const PoolSnapshot::Holder& holder : snapshot.holders) {
    holders.push_back({{"request", holder.request},
                       {"choice", holder.choice},
                       {"tokens", holder.num_tokens},
                       {"cached", holder.cached_tokens},
                       {"generated", holder.generated_tokens},
                       {"pages", runs_of(holder.pages)}});
  }
  return Json{{"page_size", cache.options().page_size},
              {"page_bytes", pool.page_bytes},
              {"capacity", pool.capacity_pages},
              {"used", pool.used_pages},
              {"shared", pool.shared_pages},
              {"evictable", pool.evictable_pages},
              {"free", pool.free_pages},
              {"peak", pool.peak_used_pages},
              {"evictions", pool.evictions},
              {"copied", stats.cache.copied_pages},
              {"preemptions", stats.scheduler.preemptions},
              {"waiting", stats.scheduler.waiting},
              {"running", stats.scheduler.running},
              {"steps", stats.steps},
              {"generated_tokens", stats.generated_tokens},
              {"prompt_tokens", stats.prompt_tokens},
              {"cached_prompt_tokens", stats.cached_prompt_tokens},
              {"evictable_pages", runs_of(snapshot.evictable)},
              {"holders", holders}}
      .dump();
}

}  // namespace serving
