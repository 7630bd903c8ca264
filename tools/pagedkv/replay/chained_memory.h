// The policy `chained`: a sequence is a chain of contiguous chunks, each as large as all before it; nothing is copied.
#pragma once

#include <cstdint>
#include <vector>

#include "replay/arena.h"
#include "replay/kv_memory.h"
#include "replay/slot_space.h"

namespace pagedkv::tool {

class ChainedMemory final : public KvMemory {
 public:
  ChainedMemory(std::uint64_t capacity_tokens, std::uint32_t max_seqs, std::uint64_t slot_bytes);

  [[nodiscard]] bool can_ever_hold(std::uint64_t total_tokens) const override { return total_tokens <= capacity_; }
  bool open(SequenceKey key, const Demand& demand) override;
  bool grow(SequenceKey key, std::uint32_t num_tokens) override;
  void close(SequenceKey key, bool finished) override;
  [[nodiscard]] MemoryUsage usage() const override;
  [[nodiscard]] MemoryTotals totals() const override { return {}; }
  [[nodiscard]] std::vector<SlotRun> layout() const override;

 private:
  struct Chunk {
    std::uint64_t begin = 0, size = 0;
  };
  struct Chain {
    std::vector<Chunk> chunks;
    std::uint64_t size = 0, held = 0;  ///< Slots of all chunks; tokens.
  };

  bool extend(Chain& chain, std::uint64_t size);

  std::uint64_t capacity_;
  FirstFitSpace space_;
  Arena arena_;
  std::vector<Chain> chains_;
  std::uint64_t reserved_slots_ = 0, held_tokens_ = 0, num_chunks_ = 0;
  std::uint64_t last_asked_ = 1;
};

}  // namespace pagedkv::tool
