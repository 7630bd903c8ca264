// Least recently used: candidates in the order in which they lost their last reference.
#include <new>
#include <utility>

#include "memory/page_array.h"
#include "pagedkv/prefix_cache.h"
#include "prefix/page_queue.h"

namespace pagedkv {

namespace {

class LruPolicy final : public EvictionPolicy {
 public:
  Result<void> attach(std::uint64_t num_pages) noexcept override {
    auto links = memory::PageArray<prefix::PageLink>::create(memory::system_memory(), num_pages);
    if (!links) return links.error();
    links_ = std::move(*links);
    return {};
  }
  void on_evictable(PageId page) noexcept override { queue_.push_back(links_, page); }
  void on_withdrawn(PageId page) noexcept override { queue_.erase(links_, page); }
  PageId choose() noexcept override {
    const PageId page = queue_.front();
    queue_.erase(links_, page);
    return page;
  }
  [[nodiscard]] const char* name() const noexcept override { return "lru"; }

 private:
  memory::PageArray<prefix::PageLink> links_;  // [num_pages]
  prefix::PageQueue queue_;
};

}  // namespace

Result<std::shared_ptr<EvictionPolicy>> make_lru_policy() noexcept {
  try {
    return std::shared_ptr<EvictionPolicy>(std::make_shared<LruPolicy>());
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for the eviction policy"};
  }
}

}  // namespace pagedkv
