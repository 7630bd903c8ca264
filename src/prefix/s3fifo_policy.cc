// S3-FIFO: a small queue on probation, a main queue, and a memory of what was evicted from probation.
//
// Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. Differences: a page leaves its
// queue while it is referenced and comes back at the end, and the memory is a table of fingerprints of fixed size.
#include <algorithm>
#include <new>
#include <utility>

#include "memory/page_array.h"
#include "pagedkv/prefix_cache.h"
#include "prefix/ghost_table.h"
#include "prefix/page_queue.h"
#include "prefix/policy_memory.h"

namespace pagedkv {

namespace {

class S3FifoPolicy final : public EvictionPolicy {
 public:
  Result<void> attach(std::uint64_t num_pages) noexcept override {
    return prefix::make_policy_memory(num_pages, links_, facts_, ghosts_);
  }

  void on_published(const PublishedPage& page) noexcept override {
    facts_[to_index(page.page)] = {.hash = page.hash, .hits = 0, .is_main = ghosts_.recall(page.hash).has_value()};
  }
  void on_hit(PageId page) noexcept override {
    Facts& facts = facts_[to_index(page)];
    facts.hits = std::min<std::uint8_t>(static_cast<std::uint8_t>(facts.hits + 1), kMaxHits);
  }
  void on_evictable(PageId page) noexcept override { queue_of(page).push_back(links_, page); }
  void on_withdrawn(PageId page) noexcept override { queue_of(page).erase(links_, page); }

  PageId choose() noexcept override {
    for (;;) {
      const std::uint64_t total = small_.num_pages() + main_.num_pages();
      const bool from_small = main_.is_empty() || small_.num_pages() * kSmallShare > total;
      prefix::PageQueue& queue = from_small ? small_ : main_;
      const PageId page = queue.front();
      Facts& facts = facts_[to_index(page)];
      queue.erase(links_, page);
      if (facts.hits == 0) {
        if (from_small) ghosts_.remember(facts.hash, 0);
        return page;
      }
      // Found again since it came: promoted from probation, or given another round.
      facts.hits = from_small ? std::uint8_t{0} : static_cast<std::uint8_t>(facts.hits - 1);
      facts.is_main = true;
      main_.push_back(links_, page);
    }
  }
  [[nodiscard]] const char* name() const noexcept override { return "s3fifo"; }

 private:
  static constexpr std::uint8_t kMaxHits = 3;
  static constexpr std::uint64_t kSmallShare = 10;  // the small queue holds a tenth of the candidates

  struct Facts {
    std::uint64_t hash = 0;
    std::uint8_t hits = 0;
    bool is_main = false;
  };
  prefix::PageQueue& queue_of(PageId page) noexcept { return facts_[to_index(page)].is_main ? main_ : small_; }

  memory::PageArray<prefix::PageLink> links_;  // [num_pages]
  memory::PageArray<Facts> facts_;             // [num_pages]
  prefix::GhostTable ghosts_;
  prefix::PageQueue small_, main_;
};

}  // namespace

Result<std::shared_ptr<EvictionPolicy>> make_s3fifo_policy() noexcept {
  try {
    return std::shared_ptr<EvictionPolicy>(std::make_shared<S3FifoPolicy>());
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for the eviction policy"};
  }
}

}  // namespace pagedkv
