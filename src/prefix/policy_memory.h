// What a policy with ghosts allocates when it is attached to a pool.
#pragma once

#include <cstdint>
#include <utility>

#include "memory/page_array.h"
#include "prefix/ghost_table.h"
#include "prefix/page_queue.h"

namespace pagedkv::prefix {

/// Makes room for `num_pages` links, facts and ghosts, or says why not; links and facts are as they were then.
template <class Facts>
Result<void> make_policy_memory(std::uint64_t num_pages, memory::PageArray<PageLink>& links,
                                memory::PageArray<Facts>& facts, GhostTable& ghosts) noexcept {
  auto new_links = memory::PageArray<PageLink>::create(memory::system_memory(), num_pages);
  if (!new_links) return new_links.error();
  auto new_facts = memory::PageArray<Facts>::create(memory::system_memory(), num_pages);
  if (!new_facts) return new_facts.error();
  if (Result<void> attached = ghosts.attach(num_pages); !attached) return attached;
  links = std::move(*new_links);
  facts = std::move(*new_facts);
  return {};
}

}  // namespace pagedkv::prefix
