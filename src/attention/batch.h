// A caller's layer and batch, checked and read in one way for both forms of page table.
//
// Layer: attention. The plan and the oracle see batches only through this file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/attend.h"
#include "pagedkv/attention.h"

namespace pagedkv::attention {

/// One sequence of a batch. Pointers are the caller's.
struct SequenceView {
  std::int64_t first_row = 0, q_len = 0;
  std::int64_t kv_len = 0;
  std::int64_t q_start = 0;  ///< Position of the first query row; negative rows see nothing if causal.
  const std::int32_t* pages = nullptr;
  std::int64_t num_pages = 0;  ///< Pages that hold its tokens.
  std::int64_t mask_offset = 0, mask_row_stride = 0, mask_head_stride = 0;
};

/// Keys [begin, end) that some row of a sequence can see by causality and window, without the sink tokens before
/// `begin`; empty ranges have begin == end.
struct KeyRange {
  std::int64_t begin = 0, end = 0;
};

/// Learned sinks [num_q_heads] or none.
///
/// Errors: kInvalidArgument
Result<void> check_sinks(std::span<const float> sinks, std::uint32_t num_q_heads) noexcept;

/// Checks a layer and translates it; q, out, lse and pages are left null. Borrows sinks and slopes.
///
/// Errors: kInvalidArgument
Result<kernels::AttendParams> read_layer(const AttentionConfig& config) noexcept;

/// Checks everything about a batch that `create` promises to check, page ids below zero included.
///
/// Errors: kInvalidArgument
/// Cost:   O(B + pages)
Result<void> check_batch(const AttentionConfig& config, const AttentionBatch& batch) noexcept;

std::size_t num_sequences(const AttentionBatch& batch) noexcept;

/// Sequence `index` of a batch that check_batch accepted.
SequenceView read_sequence(const AttentionConfig& config, const AttentionBatch& batch, std::size_t index) noexcept;

/// Keys that the rows at positions first_pos .. first_pos + num_rows - 1 may see.
KeyRange visible_keys(const kernels::AttendParams& params, std::int64_t kv_len, std::int64_t first_pos,
                      std::int64_t num_rows) noexcept;

/// Checks the arguments of a run against the shape of a plan.
///
/// Errors: kInvalidArgument
Result<void> check_view(const kernels::AttendParams& params, const KvView& pages, std::int64_t page_id_limit) noexcept;

/// Whether logits_soft_cap is 0 or a number that kernels can divide by and multiply with without leaving f32.
bool is_soft_cap(const AttentionVariant& variant) noexcept;

}  // namespace pagedkv::attention
