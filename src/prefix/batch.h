// A run of pages that a lookup or publication handles under one hold of the lock.
#pragma once

#include <array>
#include <cstdint>

#include "pagedkv/types.h"
#include "prefix/prefix_index.h"

namespace pagedkv::prefix {

/// Hashes are computed before the lock is taken; what they point to is prefetched before it is compared.
struct PrefixIndex::Batch {
  static constexpr std::uint64_t kMaxPages = 64;

  const Token* tokens = nullptr;  ///< [num_pages][page_size]
  std::uint64_t num_pages = 0;
  std::array<std::uint64_t, kMaxPages> hashes;  ///< [num_pages] of the prefix up to the end of each page
};

}  // namespace pagedkv::prefix
