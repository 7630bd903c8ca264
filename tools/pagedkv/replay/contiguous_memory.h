// Policies that give each sequence one contiguous buffer: reserved at once, or growing by doubling and copying.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "replay/arena.h"
#include "replay/kv_memory.h"
#include "replay/slot_space.h"

namespace pagedkv::tool {

enum class Sizing {
  kMaxLen,    ///< max_seq_len slots for every sequence, as dense caches do.
  kOracle,    ///< Exactly the length that the sequence will have: needs to know the future.
  kDoubling,  ///< A power of two that doubles, up to max_seq_len; the old buffer is copied into the new one.
  kBuddy,     ///< The same over binary buddies: a power of two always.
};

struct ContiguousOptions {
  Sizing sizing = Sizing::kMaxLen;
  std::uint64_t capacity_tokens = 0;
  std::uint64_t max_seq_len = 0;
  std::uint32_t unit = 1;  ///< Sizes and places are multiples of so many slots.
  std::uint32_t max_seqs = 0;
  std::uint64_t slot_bytes = 0;  ///< Of real memory, which is touched and copied; 0 = none.
};

class ContiguousMemory : public KvMemory {
 public:
  explicit ContiguousMemory(const ContiguousOptions& options);

  [[nodiscard]] bool can_ever_hold(std::uint64_t total_tokens) const override;
  bool open(SequenceKey key, const Demand& demand) override;
  bool grow(SequenceKey key, std::uint32_t num_tokens) override;
  void close(SequenceKey key, bool finished) override;
  [[nodiscard]] MemoryUsage usage() const override;
  [[nodiscard]] MemoryTotals totals() const override { return totals_; }
  [[nodiscard]] std::vector<SlotRun> layout() const override;

 protected:
  struct Buffer {
    std::uint64_t begin = 0, size = 0;  ///< Slots.
    std::uint64_t held = 0;             ///< Tokens.
  };

  [[nodiscard]] const Buffer& buffer(SequenceKey key) const { return buffers_[key]; }
  /// Moves the tokens of a buffer that is about to be freed.
  virtual void copy(const Buffer& from, const Buffer& to);

  MemoryTotals totals_;

 private:
  [[nodiscard]] std::uint64_t size_for(std::uint64_t tokens, std::uint64_t total_tokens) const;
  bool allocate(std::uint64_t size, Buffer& buffer);
  void release(const Buffer& buffer);

  ContiguousOptions options_;
  std::unique_ptr<SlotSpace> space_;  ///< In units.
  Arena arena_;
  std::vector<Buffer> buffers_;
  std::uint64_t reserved_slots_ = 0, held_tokens_ = 0;
  std::uint64_t last_asked_ = 1;  ///< Units.
};

}  // namespace pagedkv::tool
