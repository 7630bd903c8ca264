// The policy `cells`: one array of token cells for all sequences, searched for free ones, as llama.cpp does.
#pragma once

#include <cstdint>
#include <vector>

#include "replay/arena.h"
#include "replay/kv_memory.h"

namespace pagedkv::tool {

/// New tokens take the next free cells behind a head that wanders round the array; freeing a sequence visits all cells.
///
/// Source: llama_kv_cache_unified::find_slot and seq_rm of llama.cpp
class CellMemory final : public KvMemory {
 public:
  CellMemory(std::uint64_t capacity_tokens, std::uint32_t max_seqs, std::uint64_t slot_bytes);

  [[nodiscard]] bool can_ever_hold(std::uint64_t total_tokens) const override { return total_tokens <= cells_.size(); }
  bool open(SequenceKey key, const Demand& demand) override;
  bool grow(SequenceKey key, std::uint32_t num_tokens) override;
  void close(SequenceKey key, bool finished) override;
  [[nodiscard]] MemoryUsage usage() const override;
  [[nodiscard]] MemoryTotals totals() const override { return {}; }
  [[nodiscard]] std::vector<SlotRun> layout() const override;

 private:
  std::vector<std::int32_t> cells_;  ///< Key of the owner, or -1.
  Arena arena_;
  std::vector<std::uint64_t> held_, promised_;  ///< By key; promised to a prefill and not yet taken.
  std::uint64_t promised_total_ = 0, num_held_ = 0;
  std::uint64_t head_ = 0;
};

}  // namespace pagedkv::tool
