// The policy `paged`: sequences over one PagePool of the library, for accounting alone.
#pragma once

#include <cstdint>
#include <vector>

#include "pagedkv/page_pool.h"
#include "pagedkv/sequence.h"
#include "replay/kv_memory.h"

namespace pagedkv::tool {

/// Pages that sequences in the middle of their prefill have been promised and do not hold yet.
class PagePromises {
 public:
  explicit PagePromises(std::uint32_t max_seqs) : promised_(max_seqs, 0) {}

  [[nodiscard]] std::uint64_t total() const { return total_; }
  void promise(SequenceKey key, std::uint64_t pages);
  void keep(SequenceKey key, std::uint64_t pages_taken);  ///< Taking more than was promised is fine.
  void drop(SequenceKey key) { keep(key, promised_[key]); }

 private:
  std::vector<std::uint64_t> promised_;
  std::uint64_t total_ = 0;
};

/// The pages of each open sequence as runs of slots.
std::vector<SlotRun> layout_of(const std::vector<Sequence>& sequences, std::uint32_t page_size);

/// Real sequences and page tables over a real pool. With `slot_bytes` its pages are that large and are touched;
/// without, they are as small as they can be and never written.
class PagedMemory final : public KvMemory {
 public:
  /// Throws BadInput if the library refuses.
  PagedMemory(std::uint64_t capacity_tokens, std::uint32_t page_size, std::uint32_t max_seqs,
              std::uint64_t slot_bytes = 0);

  [[nodiscard]] bool can_ever_hold(std::uint64_t total_tokens) const override;
  bool open(SequenceKey key, const Demand& demand) override;
  bool grow(SequenceKey key, std::uint32_t num_tokens) override;
  void close(SequenceKey key, bool finished) override;
  [[nodiscard]] MemoryUsage usage() const override;
  [[nodiscard]] MemoryTotals totals() const override { return {}; }
  [[nodiscard]] std::vector<SlotRun> layout() const override { return layout_of(sequences_, page_size_); }

 private:
  void touch(const Sequence& sequence, std::uint64_t num_tokens);

  std::uint32_t page_size_;
  std::uint64_t slot_bytes_;
  PagePool pool_;
  SequenceStore store_;
  PagePromises promises_;
  std::vector<Sequence> sequences_;
  std::uint64_t held_tokens_ = 0;
  std::uint64_t table_entries_ = 0;  ///< Of all page tables.
};

/// Pages that admission leaves for sequences that run already: one in a hundred.
constexpr std::uint64_t watermark_pages(std::uint64_t capacity_pages) { return capacity_pages / 100; }

}  // namespace pagedkv::tool
