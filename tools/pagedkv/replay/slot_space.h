// How contiguous ranges of one linear space of slots are found: first fit, or buddies.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

namespace pagedkv::tool {

/// Hands out disjoint ranges of [0, size).
class SlotSpace {
 public:
  virtual ~SlotSpace() = default;
  /// The size of the range that a request for `size` gets.
  [[nodiscard]] virtual std::uint64_t rounded(std::uint64_t size) const { return size; }
  /// Begin of a free range of `rounded(size)`, size at least 1, or nothing if no hole is large enough.
  virtual std::optional<std::uint64_t> allocate(std::uint64_t size) = 0;
  /// Gives back exactly what was allocated.
  virtual void release(std::uint64_t begin, std::uint64_t size) = 0;
  [[nodiscard]] virtual std::uint64_t largest_hole() const = 0;
  /// Free slots in holes smaller than `size`.
  [[nodiscard]] virtual std::uint64_t unusable_for(std::uint64_t size) const = 0;
  [[nodiscard]] virtual std::uint64_t free_total() const = 0;
  [[nodiscard]] virtual std::uint64_t metadata_bytes() const = 0;
};

/// First fit over an ordered map of holes, neighbours merged.
class FirstFitSpace final : public SlotSpace {
 public:
  explicit FirstFitSpace(std::uint64_t size);

  std::optional<std::uint64_t> allocate(std::uint64_t size) override;
  void release(std::uint64_t begin, std::uint64_t size) override;
  [[nodiscard]] std::uint64_t largest_hole() const override;
  [[nodiscard]] std::uint64_t unusable_for(std::uint64_t size) const override;
  [[nodiscard]] std::uint64_t free_total() const override { return free_total_; }
  [[nodiscard]] std::uint64_t metadata_bytes() const override;

 private:
  std::map<std::uint64_t, std::uint64_t> holes_;  ///< Begin to size.
  std::uint64_t free_total_;
};

/// Binary buddies: sizes are powers of two, a block lies at a multiple of its size and merges with its buddy alone.
///
/// Source: Knuth, The Art of Computer Programming 1, 2.5
class BuddySpace final : public SlotSpace {
 public:
  explicit BuddySpace(std::uint64_t size);

  [[nodiscard]] std::uint64_t rounded(std::uint64_t size) const override;
  std::optional<std::uint64_t> allocate(std::uint64_t size) override;
  void release(std::uint64_t begin, std::uint64_t size) override;
  [[nodiscard]] std::uint64_t largest_hole() const override;
  [[nodiscard]] std::uint64_t unusable_for(std::uint64_t size) const override;
  [[nodiscard]] std::uint64_t free_total() const override { return free_total_; }
  [[nodiscard]] std::uint64_t metadata_bytes() const override;

 private:
  std::vector<std::set<std::uint64_t>> holes_;  ///< By log2 of the size: begins.
  std::uint64_t free_total_;
};

}  // namespace pagedkv::tool
