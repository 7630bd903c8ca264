// What a policy remembers of evicted pages: fingerprints with ages, in memory that does not grow.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <utility>

#include "memory/page_array.h"

namespace pagedkv::prefix {

/// Remembers from which of two queues a page was evicted, for as many evictions from that queue as there are pages.
/// A wrong answer (one in 2^29) costs a worse choice, never a wrong page.
class GhostTable {
 public:
  Result<void> attach(std::uint64_t num_pages) noexcept {
    const std::uint64_t num_sets = std::bit_ceil(num_pages);
    auto sets = memory::PageArray<Set>::create(memory::system_memory(), num_sets);
    if (!sets) return sets.error();
    sets_ = std::move(*sets);
    mask_ = num_sets - 1;
    window_ = static_cast<std::uint32_t>(num_pages);
    return {};
  }

  /// Takes the place of the ghost of its set that is oldest.
  void remember(std::uint64_t hash, unsigned queue) noexcept {
    Set& set = set_of(hash);
    Ghost& oldest =
        *std::max_element(set.begin(), set.end(), [this](const Ghost& a, const Ghost& b) { return age(a) < age(b); });
    oldest = {.fingerprint = fingerprint(hash, queue), .evicted_at = num_evicted_[queue]++};
  }
  /// The queue that the page was evicted from, if it is remembered; it is forgotten then.
  std::optional<unsigned> recall(std::uint64_t hash) noexcept {
    for (Ghost& ghost : set_of(hash)) {
      for (unsigned queue = 0; queue < 2; ++queue) {
        if (ghost.fingerprint != fingerprint(hash, queue) || age(ghost) > window_) continue;
        ghost = {};
        return queue;
      }
    }
    return std::nullopt;
  }

 private:
  struct Ghost {
    std::uint32_t fingerprint = 0;  // 0: none
    std::uint32_t evicted_at = 0;   // evictions from that queue before it, modulo 2^32
  };
  using Set = std::array<Ghost, 4>;

  // Bits that the set does not depend on; the lowest is the queue, the next is 1 in every ghost.
  static std::uint32_t fingerprint(std::uint64_t hash, unsigned queue) noexcept {
    return static_cast<std::uint32_t>(hash >> 32 << 2) | 2U | queue;
  }
  [[nodiscard]] std::uint32_t age(const Ghost& ghost) const noexcept {
    return ghost.fingerprint == 0 ? ~0U : num_evicted_[ghost.fingerprint & 1U] - ghost.evicted_at;
  }
  [[nodiscard]] Set& set_of(std::uint64_t hash) noexcept { return sets_[static_cast<std::int64_t>(hash & mask_)]; }

  memory::PageArray<Set> sets_;  // [mask_ + 1]
  std::uint64_t mask_ = 0;
  std::uint32_t window_ = 0;
  std::array<std::uint32_t, 2> num_evicted_ = {};
};

}  // namespace pagedkv::prefix
