// What the index knows of one published page: one cache line, so that a lookup costs one miss for it.
#pragma once

#include <cstdint>

#include "core/align.h"

namespace pagedkv::prefix {

struct Namespace;

/// Where an unreferenced page waits to be taken.
enum class Place : std::uint8_t {
  kNowhere,  ///< Referenced, or being taken.
  kPolicy,   ///< A candidate of the eviction policy.
  kClass,    ///< In the list of its retention priority.
  kParked,   ///< Chosen already, but pages that continue it are published.
  kReady,    ///< Chosen already, and a leaf by now.
};

/// One published page. Links to other pages are ids, -1 for none.
struct alignas(kCacheLineBytes) Entry {
  std::uint64_t hash = 0;  ///< Of the tokens from the beginning of the prefix to the end of this page.
  Namespace* name_space = nullptr;
  std::uint64_t expires_ms = 0;  ///< When the priority falls back to the default; 0 = never.
  std::int32_t parent = -1;      ///< Page of the tokens before; -1: the first page of a prefix.
  std::int32_t next_in_bucket = -1;
  std::int32_t first_child = -1, next_sibling = -1, previous_sibling = -1;
  std::uint32_t num_pins = 0;
  std::uint8_t priority = 0;
  Place place = Place::kNowhere;
};

}  // namespace pagedkv::prefix
