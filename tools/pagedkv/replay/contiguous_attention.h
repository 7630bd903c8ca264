// Contiguous buffers that hold real keys and values, and real attention over them.
#pragma once

#include <cstdint>
#include <vector>

#include "pagedkv/attention.h"
#include "pagedkv/page_pool.h"
#include "replay/attention_load.h"
#include "replay/contiguous_memory.h"

namespace pagedkv::tool {

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
