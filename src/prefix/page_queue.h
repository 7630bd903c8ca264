// A queue of pages with removal from the middle, linked through an array with an element for each page.
#pragma once

#include <cstdint>

#include "memory/page_array.h"
#include "pagedkv/types.h"

namespace pagedkv::prefix {

struct PageLink {
  std::int32_t previous = -1, next = -1;
};

/// A page is in at most one queue over the same links.
class PageQueue {
 public:
  [[nodiscard]] bool is_empty() const noexcept { return first_ < 0; }
  [[nodiscard]] std::uint64_t num_pages() const noexcept { return num_pages_; }
  [[nodiscard]] PageId front() const noexcept { return PageId{first_}; }

  void push_back(memory::PageArray<PageLink>& links, PageId page) noexcept {
    links[to_index(page)] = {.previous = last_, .next = -1};
    (last_ < 0 ? first_ : links[last_].next) = to_index(page);
    last_ = to_index(page);
    ++num_pages_;
  }
  void erase(memory::PageArray<PageLink>& links, PageId page) noexcept {
    const PageLink link = links[to_index(page)];
    (link.previous < 0 ? first_ : links[link.previous].next) = link.next;
    (link.next < 0 ? last_ : links[link.next].previous) = link.previous;
    --num_pages_;
  }

 private:
  std::int32_t first_ = -1, last_ = -1;
  std::uint64_t num_pages_ = 0;
};

}  // namespace pagedkv::prefix
