// Memories that hold real keys and values and compute real attention: the library's cache, and contiguous buffers.
#pragma once

#include <cstdint>
#include <vector>

#include "pagedkv/attention.h"
#include "pagedkv/kv_cache.h"
#include "replay/attention_load.h"
#include "replay/contiguous_memory.h"
#include "replay/kv_memory.h"
#include "replay/paged_memory.h"

namespace pagedkv::tool {

/// The policy `paged` as a server would run it: a KvCache and one Step for each step.
class PagedAttentionMemory final : public KvMemory {
 public:
  /// Throws BadInput if the library refuses.
  PagedAttentionMemory(const AttentionShape& shape, std::uint64_t capacity_tokens, std::uint32_t page_size,
                       std::uint32_t max_seqs);

  [[nodiscard]] bool can_ever_hold(std::uint64_t total_tokens) const override;
  bool open(SequenceKey key, const Demand& demand) override;
  bool grow(SequenceKey key, std::uint32_t num_tokens) override;
  void compute() override;
  void close(SequenceKey key, bool finished) override;
  [[nodiscard]] MemoryUsage usage() const override;
  [[nodiscard]] MemoryTotals totals() const override { return totals_; }

 private:
  AttentionShape shape_;
  KvCache cache_;
  AttentionLoad load_;
  PagePromises promises_;
  std::vector<Sequence> sequences_;
  std::vector<StepItem> items_;  ///< Of the step that is being put together.
  std::vector<NewTokens> parts_;
  std::uint64_t pending_pages_ = 0;  ///< That the step will take.
  std::uint64_t held_tokens_ = 0;
  MemoryTotals totals_;
};

/// A contiguous policy over real memory: the same layout and kernels, each buffer a run of neighbouring pages.
class ContiguousAttentionMemory final : public ContiguousMemory {
 public:
  /// Throws BadInput if the library refuses.
  ContiguousAttentionMemory(Sizing sizing, const AttentionShape& shape, std::uint64_t capacity_tokens,
                            std::uint64_t max_seq_len, std::uint32_t page_size, std::uint32_t max_seqs);

  bool open(SequenceKey key, const Demand& demand) override;
  bool grow(SequenceKey key, std::uint32_t num_tokens) override;
  void compute() override;

 private:
  void copy(const Buffer& from, const Buffer& to) override;
  void describe_batch();

  AttentionShape shape_;
  std::uint32_t page_size_;
  PagePool arena_;  ///< All pages are allocated once; their memory is what buffers are cut from.
  AttentionConfig config_;
  AttentionLoad load_;
  std::vector<NewTokens> parts_;
  std::vector<std::int32_t> qo_indptr_, kv_indptr_, kv_indices_, kv_last_page_len_;
  std::vector<std::int64_t> slots_;  ///< [rows] of the step.
};

}  // namespace pagedkv::tool
