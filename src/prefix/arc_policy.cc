// ARC: pages seen once and pages seen again in two LRU queues, whose shares follow what was evicted too early.
//
// Source: Megiddo, Modha, "ARC: A self-tuning, low overhead replacement cache", FAST 2003. Differences: only
// unreferenced pages queue, and the ghosts are a table of fingerprints of fixed size.
#include <algorithm>
#include <array>
#include <new>
#include <optional>
#include <utility>

#include "memory/page_array.h"
#include "pagedkv/prefix_cache.h"
#include "prefix/ghost_table.h"
#include "prefix/page_queue.h"
#include "prefix/policy_memory.h"

namespace pagedkv {

namespace {

class ArcPolicy final : public EvictionPolicy {
 public:
  Result<void> attach(std::uint64_t num_pages) noexcept override {
    if (Result<void> made = prefix::make_policy_memory(num_pages, links_, facts_, ghosts_); !made) return made;
    num_pages_ = num_pages;
    once_share_ = num_pages / 2;
    return {};
  }

  void on_published(const PublishedPage& page) noexcept override {
    const std::optional<unsigned> evicted_from = ghosts_.recall(page.hash);
    // A page that had to be computed again was evicted too early: its queue should be longer.
    if (evicted_from == kOnce) once_share_ = std::min(once_share_ + 1, num_pages_);
    if (evicted_from == kAgain) once_share_ -= once_share_ > 0 ? 1U : 0U;
    const bool is_again = evicted_from.has_value();
    facts_[to_index(page.page)] = {.hash = page.hash, .queue = is_again ? kAgain : kOnce};
  }
  void on_hit(PageId page) noexcept override { facts_[to_index(page)].queue = kAgain; }
  void on_evictable(PageId page) noexcept override { queue_of(page).push_back(links_, page); }
  void on_withdrawn(PageId page) noexcept override { queue_of(page).erase(links_, page); }

  PageId choose() noexcept override {
    const bool from_once =
        queues_[kAgain].is_empty() || (!queues_[kOnce].is_empty() && queues_[kOnce].num_pages() > once_share_);
    prefix::PageQueue& queue = queues_[from_once ? kOnce : kAgain];
    const PageId page = queue.front();
    queue.erase(links_, page);
    const Facts& facts = facts_[to_index(page)];
    ghosts_.remember(facts.hash, facts.queue);
    return page;
  }
  [[nodiscard]] const char* name() const noexcept override { return "arc"; }

 private:
  static constexpr unsigned kOnce = 0, kAgain = 1;

  struct Facts {
    std::uint64_t hash = 0;
    unsigned queue = kOnce;
  };

  [[nodiscard]] prefix::PageQueue& queue_of(PageId page) noexcept { return queues_[facts_[to_index(page)].queue]; }

  memory::PageArray<prefix::PageLink> links_;  // [num_pages]
  memory::PageArray<Facts> facts_;             // [num_pages]
  prefix::GhostTable ghosts_;
  std::array<prefix::PageQueue, 2> queues_;  // of unreferenced pages, least recently used first
  std::uint64_t num_pages_ = 0;
  std::uint64_t once_share_ = 0;  // pages that the first queue may keep
};

}  // namespace

Result<std::shared_ptr<EvictionPolicy>> make_arc_policy() noexcept {
  try {
    return std::shared_ptr<EvictionPolicy>(std::make_shared<ArcPolicy>());
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for the eviction policy"};
  }
}

}  // namespace pagedkv
