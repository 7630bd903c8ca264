// Contiguous ranges of one linear space, first fit, neighbours merged: what a dense cache allocates from.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace pagedkv::tool {

class AddressSpace {
 public:
  explicit AddressSpace(std::uint64_t size) : free_total_(size) {
    if (size > 0) holes_.emplace(0, size);
  }

  /// Begin of a free range of this size (at least 1), or nothing if no hole is large enough.
  std::optional<std::uint64_t> allocate(std::uint64_t size);
  /// Gives back exactly what was allocated.
  void release(std::uint64_t begin, std::uint64_t size);

  [[nodiscard]] std::uint64_t free_total() const { return free_total_; }
  [[nodiscard]] std::uint64_t largest_hole() const;

 private:
  std::map<std::uint64_t, std::uint64_t> holes_;  ///< Begin to size.
  std::uint64_t free_total_;
};

}  // namespace pagedkv::tool
