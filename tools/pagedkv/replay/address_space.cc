// First fit over an ordered map of holes.
#include "replay/address_space.h"

#include <algorithm>
#include <iterator>

namespace pagedkv::tool {

std::optional<std::uint64_t> AddressSpace::allocate(std::uint64_t size) {
  if (size > free_total_) return std::nullopt;
  const auto hole = std::find_if(holes_.begin(), holes_.end(), [size](const auto& h) { return h.second >= size; });
  if (hole == holes_.end()) return std::nullopt;
  const auto [begin, hole_size] = *hole;
  holes_.erase(hole);
  if (hole_size > size) holes_.emplace(begin + size, hole_size - size);
  free_total_ -= size;
  return begin;
}

void AddressSpace::release(std::uint64_t begin, std::uint64_t size) {
  free_total_ += size;
  const auto next = holes_.lower_bound(begin);
  if (next != holes_.end() && next->first == begin + size) size += holes_.extract(next).mapped();
  const auto after = holes_.lower_bound(begin);
  if (after != holes_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == begin) {
      before->second += size;
      return;
    }
  }
  holes_.emplace(begin, size);
}

std::uint64_t AddressSpace::largest_hole() const {
  std::uint64_t largest = 0;
  for (const auto& [begin, size] : holes_) largest = std::max(largest, size);
  return largest;
}

}  // namespace pagedkv::tool
