// Policies that give each sequence one contiguous buffer: the longest length at once, or doubling and copying.
#pragma once

#include <cstdint>
#include <vector>

#include "replay/address_space.h"
#include "replay/kv_memory.h"

namespace pagedkv::tool {

enum class Sizing {
  kMaxLen,    ///< max_seq_len slots for every sequence, as dense caches do.
  kOracle,    ///< Exactly the length that the sequence will have: needs to know the future.
  kDoubling,  ///< A power of two that doubles, up to max_seq_len; the old buffer is copied into the new one.
};

/// One contiguous buffer a sequence, first fit in an address space of `capacity_tokens` slots. Sizes and places are
/// multiples of `unit` slots.
class ContiguousMemory : public KvMemory {
 public:
  ContiguousMemory(Sizing sizing, std::uint64_t capacity_tokens, std::uint64_t max_seq_len, std::uint32_t unit,
                   std::uint32_t max_seqs);

  [[nodiscard]] bool can_ever_hold(std::uint64_t total_tokens) const override;
  bool open(SequenceKey key, const Demand& demand) override;
  bool grow(SequenceKey key, std::uint32_t num_tokens) override;
  void close(SequenceKey key, bool finished) override;
  [[nodiscard]] MemoryUsage usage() const override { return usage_; }
  [[nodiscard]] MemoryTotals totals() const override { return totals_; }

 protected:
  struct Buffer {
    std::uint64_t begin = 0, size = 0;  ///< Slots.
    std::uint64_t held = 0;             ///< Tokens.
  };

  [[nodiscard]] const Buffer& buffer(SequenceKey key) const { return buffers_[key]; }
  /// Moves the tokens of a buffer that is about to be freed.
  virtual void copy(const Buffer& from, const Buffer& to) { totals_.copied_tokens += from.held, (void)to; }

  MemoryTotals totals_;

 private:
  [[nodiscard]] std::uint64_t size_for(std::uint64_t tokens, std::uint64_t total_tokens) const;

  Sizing sizing_;
  std::uint64_t max_seq_len_;
  std::uint64_t capacity_;  ///< Slots, a multiple of unit_.
  std::uint64_t unit_;
  AddressSpace space_;  ///< In units.
  std::vector<Buffer> buffers_;
  MemoryUsage usage_;
};

}  // namespace pagedkv::tool
