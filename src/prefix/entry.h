// What the index knows of one published page: one cache line, so that a lookup costs one miss for it.
#pragma once

#include <cstdint>

#include "core/align.h"

namespace pagedkv::prefix {

struct Namespace;

/// One published page. Links to other pages are ids, -1 for none.
struct alignas(kCacheLineBytes) Entry {
  std::uint64_t hash = 0;  ///< Of the tokens from the beginning of the prefix to the end of this page.
  Namespace* name_space = nullptr;
  std::int32_t parent = -1;  ///< Page of the tokens before, -1: the first page of a prefix; of a side page its chain's.
  std::int32_t next_in_bucket = -1;
  std::int32_t children = -1;          ///< Root of the tree of the pages that continue it (sibling_tree.h).
  std::int32_t left = -1, right = -1;  ///< Its links in the tree of its siblings.
  std::int32_t first_side = -1;        ///< Side pages with the same tokens, a list.
  std::int32_t next_side = -1, previous_side = -1;
  std::uint32_t num_pins = 0;
  bool is_side = false;

  [[nodiscard]] bool is_leaf() const noexcept { return children < 0 && first_side < 0; }
};

static_assert(sizeof(Entry) == kCacheLineBytes);

}  // namespace pagedkv::prefix
