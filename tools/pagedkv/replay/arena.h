// Real memory behind token slots, for policies that only account for them: touched and copied as a server would.
#pragma once

#include <cstdint>
#include <optional>

#include "pagedkv/page_pool.h"

namespace pagedkv::tool {

/// Bytes of this process that are in memory, or 0 if the system does not say.
std::uint64_t resident_bytes();

/// Writes a byte into each OS page of [begin, end), which makes them resident.
void touch_bytes(std::byte* begin, std::byte* end);

/// `capacity` slots of `slot_bytes` in one range of ordinary OS pages, none of which is resident before it is touched.
/// With slot_bytes 0 there is no memory, and nothing happens.
class Arena {
 public:
  /// Throws BadInput if there is not enough address space.
  Arena(std::uint64_t capacity, std::uint64_t slot_bytes);

  void touch(std::uint64_t begin, std::uint64_t num_slots);
  void copy(std::uint64_t from, std::uint64_t to, std::uint64_t num_slots);

 private:
  std::uint64_t slot_bytes_;
  std::optional<PagePool> pool_;
};

}  // namespace pagedkv::tool
