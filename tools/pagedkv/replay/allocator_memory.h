// Policies that grow one contiguous buffer a sequence with a general-purpose allocator.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "replay/allocators.h"
#include "replay/kv_memory.h"

namespace pagedkv::tool {

/// Buffers double as under `doubling`, but realloc decides where they lie and whether they are copied. The buffers
/// asked for add up to the capacity at most; what the allocator takes from the system for them is its own affair, and
/// shows as resident memory.
class AllocatorMemory final : public KvMemory {
 public:
  AllocatorMemory(std::unique_ptr<Allocator> allocator, std::uint64_t capacity_tokens, std::uint64_t max_seq_len,
                  std::uint32_t max_seqs, std::uint64_t slot_bytes);
  ~AllocatorMemory() override;

  [[nodiscard]] bool can_ever_hold(std::uint64_t total_tokens) const override;
  /// Throws BadInput if the allocator has no memory for a sequence that is alone: it would never come to run.
  bool open(SequenceKey key, const Demand& demand) override;
  bool grow(SequenceKey key, std::uint32_t num_tokens) override;
  void close(SequenceKey key, bool finished) override;
  [[nodiscard]] MemoryUsage usage() const override { return {reserved_slots_, held_tokens_, 0, 0}; }
  [[nodiscard]] MemoryTotals totals() const override { return totals_; }

 private:
  struct Buffer {
    std::byte* memory = nullptr;
    std::uint64_t size = 0, held = 0;  ///< Slots, tokens.
  };

  [[nodiscard]] std::uint64_t size_for(std::uint64_t tokens) const;

  std::unique_ptr<Allocator> allocator_;
  std::uint64_t capacity_, max_seq_len_, slot_bytes_;
  std::vector<Buffer> buffers_;
  std::uint64_t reserved_slots_ = 0, held_tokens_ = 0;
  MemoryTotals totals_;
};

}  // namespace pagedkv::tool
