// What a sequence remembers of its published prefix: made by prefix/, carried by sequence/.
#pragma once

#include <cstdint>
#include <memory>

#include "pagedkv/types.h"

namespace pagedkv {

namespace prefix {
struct Namespace;
}

/// The first `num_pages` pages of a page table are published, `last` is the last of them. Copied by fork. A side table
/// (prefix_index.h) uses num_pages alone.
struct PrefixChain {
  std::shared_ptr<prefix::Namespace> name_space;  ///< Null: the sequence does not take part in the prefix cache.
  std::uint64_t num_pages = 0;
  PageId last = kNullPage;
  std::uint64_t hash = 0;          ///< Of everything up to `last`.
  std::uint64_t num_restarts = 0;  ///< Of this chain; of a side table: of the chain that it was published beside.

  /// Forgets how far it was published; the next publication walks from the beginning.
  void restart() noexcept {
    num_pages = 0;
    last = kNullPage;
    ++num_restarts;
  }
};

}  // namespace pagedkv
