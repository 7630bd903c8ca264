// First fit and buddies.
#include "replay/slot_space.h"

#include <algorithm>
#include <bit>
#include <iterator>

namespace pagedkv::tool {
namespace {

constexpr std::uint64_t kTreeNodeBytes = 48;  ///< A node of a std::map of two words, as libstdc++ makes them.

}  // namespace

FirstFitSpace::FirstFitSpace(std::uint64_t size) : free_total_(size) {
  if (size > 0) holes_.emplace(0, size);
}

std::optional<std::uint64_t> FirstFitSpace::allocate(std::uint64_t size) {
  if (size > free_total_) return std::nullopt;
  const auto hole = std::find_if(holes_.begin(), holes_.end(), [size](const auto& h) { return h.second >= size; });
  if (hole == holes_.end()) return std::nullopt;
  const auto [begin, hole_size] = *hole;
  holes_.erase(hole);
  if (hole_size > size) holes_.emplace(begin + size, hole_size - size);
  free_total_ -= size;
  return begin;
}

void FirstFitSpace::release(std::uint64_t begin, std::uint64_t size) {
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

std::uint64_t FirstFitSpace::largest_hole() const {
  std::uint64_t largest = 0;
  for (const auto& [begin, size] : holes_) largest = std::max(largest, size);
  return largest;
}

std::uint64_t FirstFitSpace::unusable_for(std::uint64_t size) const {
  std::uint64_t unusable = 0;
  for (const auto& [begin, hole] : holes_) unusable += hole < size ? hole : 0;
  return unusable;
}

std::uint64_t FirstFitSpace::metadata_bytes() const { return holes_.size() * kTreeNodeBytes; }

BuddySpace::BuddySpace(std::uint64_t size) : holes_(static_cast<std::size_t>(std::bit_width(size))), free_total_(size) {
  // A size that is no power of two is a row of blocks that are, each at a multiple of its own size.
  std::uint64_t begin = 0;
  for (std::size_t order = holes_.size(); order-- > 0;) {
    if ((size >> order & 1) == 0) continue;
    holes_[order].insert(begin);
    begin += std::uint64_t{1} << order;
  }
}

std::uint64_t BuddySpace::rounded(std::uint64_t size) const { return std::bit_ceil(size); }

std::optional<std::uint64_t> BuddySpace::allocate(std::uint64_t size) {
  const auto wanted = static_cast<std::size_t>(std::bit_width(rounded(size)) - 1);
  std::size_t order = wanted;
  while (order < holes_.size() && holes_[order].empty()) ++order;
  if (order >= holes_.size()) return std::nullopt;
  const std::uint64_t begin = holes_[order].extract(holes_[order].begin()).value();
  while (order > wanted) {
    --order;
    holes_[order].insert(begin + (std::uint64_t{1} << order));
  }
  free_total_ -= std::uint64_t{1} << wanted;
  return begin;
}

void BuddySpace::release(std::uint64_t begin, std::uint64_t size) {
  free_total_ += size;
  auto order = static_cast<std::size_t>(std::bit_width(size) - 1);
  for (; order + 1 < holes_.size(); ++order) {
    const auto buddy = holes_[order].find(begin ^ std::uint64_t{1} << order);
    if (buddy == holes_[order].end()) break;
    begin = std::min(begin, *buddy);
    holes_[order].erase(buddy);
  }
  holes_[order].insert(begin);
}

std::uint64_t BuddySpace::largest_hole() const {
  for (std::size_t order = holes_.size(); order-- > 0;) {
    if (!holes_[order].empty()) return std::uint64_t{1} << order;
  }
  return 0;
}

std::uint64_t BuddySpace::unusable_for(std::uint64_t size) const {
  std::uint64_t unusable = 0;
  for (std::size_t order = 0; order < holes_.size() && std::uint64_t{1} << order < size; ++order) {
    unusable += holes_[order].size() << order;
  }
  return unusable;
}

std::uint64_t BuddySpace::metadata_bytes() const {
  std::uint64_t nodes = 0;
  for (const auto& holes : holes_) nodes += holes.size();
  return nodes * kTreeNodeBytes;
}

}  // namespace pagedkv::tool
