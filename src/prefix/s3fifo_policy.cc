// S3-FIFO: a small queue on probation, a main queue, and a memory of what was evicted from probation.
//
// Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. Differences: a page leaves its
// queue while it is referenced and comes back at the end, and the memory is a table of fingerprints with ages, one a
// slot, so that everything is O(1).
#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "memory/page_array.h"
#include "pagedkv/prefix_cache.h"
#include "prefix/page_queue.h"

namespace pagedkv {

namespace {

class S3FifoPolicy final : public EvictionPolicy {
 public:
  Result<void> attach(std::uint64_t num_pages) noexcept override {
    auto links = memory::PageArray<prefix::PageLink>::create(memory::system_memory(), num_pages);
    if (!links) return links.error();
    auto facts = memory::PageArray<Facts>::create(memory::system_memory(), num_pages);
    if (!facts) return facts.error();
    const std::uint64_t num_slots = std::bit_ceil(num_pages);
    auto ghosts = memory::PageArray<Ghost>::create(memory::system_memory(), num_slots);
    if (!ghosts) return ghosts.error();
    links_ = std::move(*links);
    facts_ = std::move(*facts);
    ghosts_ = std::move(*ghosts);
    ghost_mask_ = num_slots - 1;
    return {};
  }

  void on_published(const PublishedPage& page) noexcept override {
    facts_[to_index(page.page)] = {.hash = page.hash, .hits = 0, .is_main = is_remembered(page.hash)};
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
        if (from_small) remember(facts.hash);
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
  struct Ghost {
    std::uint32_t fingerprint = 0;
    std::uint32_t evicted_at = 0;  // number of evictions from probation, modulo 2^32
  };

  prefix::PageQueue& queue_of(PageId page) noexcept { return facts_[to_index(page)].is_main ? main_ : small_; }

  static std::uint32_t fingerprint(std::uint64_t hash) noexcept { return static_cast<std::uint32_t>(hash >> 32) | 1U; }
  [[nodiscard]] Ghost& ghost(std::uint64_t hash) noexcept {
    return ghosts_[static_cast<std::int64_t>(hash & ghost_mask_)];
  }
  // As many evictions back as the table has slots.
  bool is_remembered(std::uint64_t hash) noexcept {
    const Ghost& known = ghost(hash);
    return known.fingerprint == fingerprint(hash) && num_evicted_ - known.evicted_at <= ghost_mask_;
  }
  void remember(std::uint64_t hash) noexcept {
    ghost(hash) = {.fingerprint = fingerprint(hash), .evicted_at = num_evicted_++};
  }

  memory::PageArray<prefix::PageLink> links_;  // [num_pages]
  memory::PageArray<Facts> facts_;             // [num_pages]
  memory::PageArray<Ghost> ghosts_;            // [ghost_mask_ + 1]
  std::uint64_t ghost_mask_ = 0;
  std::uint32_t num_evicted_ = 0;
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
