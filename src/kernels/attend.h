// The seam between scheduling and SIMD: what one task of a plan asks of a kernel, and the table of kernels.
//
// Layer: kernels. An ordinary header without SIMD; `attention/` fills tasks, every target implements AttendFn.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pagedkv/attention.h"
#include "pagedkv/types.h"

namespace pagedkv::kernels {

/// What is common to all tasks of one run. Plain data, borrowed pointers.
struct AttendParams {
  std::uint32_t num_q_heads, num_kv_heads;
  std::uint32_t group;  ///< Query heads a kv head.
  std::uint32_t head_dim, v_head_dim, page_size;
  DType kv_dtype, q_dtype, out_dtype;
  bool f16_as_bf16;  ///< Kernels may round f16 pages, their queries and weights to bf16. Not set for other pages.
  bool causal;
  std::int32_t window_left;  ///< -1 = off.
  std::uint32_t
      sink_tokens;  ///< Kernels need not know them: the planner gives tasks of theirs params without a window.
  float sm_scale, logits_soft_cap;
  const float* alibi_slopes;  ///< [num_q_heads] or null.
  const float* sinks;         ///< [num_q_heads] or null; joined by the part that begins a row's keys.
  MaskKind mask_kind;
  KvView pages;
  const void* q;  ///< [rows][num_q_heads][head_dim]
  void* out;      ///< [rows][num_q_heads][v_head_dim]
  float* lse;     ///< [rows][num_q_heads] or null.
};

/// A query row of a task that lists its rows, with all that may differ between the sequences they are of.
struct ListedRow {
  std::int32_t row;               ///< Of q.
  std::int64_t position;          ///< In its sequence.
  std::int64_t mask_offset;       ///< Entry (bit) index of (this row, query head 0, key 0).
  std::int64_t mask_head_stride;  ///< Entries.
};

/// One task: the attention of some query rows, all heads of the group of one kv head, over one range of keys.
///
/// The result depends on the task's own rows and keys alone: this is what makes batches bitwise invariant. How a row is
/// rounded may depend on how many rows the task has (few or many), not on which they are.
struct AttendTask {
  const std::int32_t* page_table;  ///< Page of token t is page_table[t / page_size].
  std::int64_t kv_begin, kv_end;   ///< Keys of this part; non-empty except for rows that see nothing.
  std::uint32_t kv_head;
  std::int32_t num_rows;   ///< Query rows (positions), each with `group` heads.
  std::int32_t first_row;  ///< Row of q and out of the task's first query.
  std::int64_t first_pos;  ///< Its position; row r of the task has first_pos + r.
  /// [num_rows], or null if they follow first_row and first_pos: rows of several sequences that share these pages.
  /// Neither causality nor window hides a key of the part from any of them, and the result is a partial state.
  const ListedRow* rows = nullptr;
  const std::byte* mask;     ///< Masks of all sequences, or null.
  std::int64_t mask_offset;  ///< Entry (bit) index of (first row of the task, kv head's first query head, key 0).
  std::int64_t mask_row_stride, mask_head_stride;  ///< Entries.
  bool first_part;                                 ///< Sinks join here.
  /// Null: write final rows to params.out / params.lse. Else the partial state of this part goes to
  /// partial_out [num_rows][group][v_head_dim] f32, normalised, and partial_lse [num_rows][group], natural logarithm.
  float* partial_out;
  float* partial_lse;
  /// The task that this thread will run next, unless another takes it, or null: its first keys are prefetched while
  /// this one ends. A hint for speed alone; what it points at must stay valid during the call.
  const AttendTask* next = nullptr;
};

/// Row of q of the task's row `row`, and its position in its sequence.
inline std::int64_t query_row(const AttendTask& task, std::int64_t row) noexcept {
  return task.rows != nullptr ? task.rows[row].row : task.first_row + row;
}
inline std::int64_t query_position(const AttendTask& task, std::int64_t row) noexcept {
  return task.rows != nullptr ? task.rows[row].position : task.first_pos + row;
}

/// Mask entry of key 0 for the task's row `row` and head `head` of its group.
inline std::int64_t mask_entry(const AttendParams& params, const AttendTask& task, std::int64_t row,
                               std::int64_t head) noexcept {
  if (task.rows == nullptr) return task.mask_offset + row * task.mask_row_stride + head * task.mask_head_stride;
  const ListedRow& listed = task.rows[row];
  return listed.mask_offset + (std::int64_t{task.kv_head} * params.group + head) * listed.mask_head_stride;
}

/// True if every value row is a part of its key row (MLA), so that who reads the keys has read the values.
inline bool values_lie_in_keys(const AttendParams& params) noexcept {
  const KvView& pages = params.pages;
  const auto element = static_cast<std::int64_t>(size_of(params.kv_dtype));
  const auto offset =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(pages.v) - reinterpret_cast<std::uintptr_t>(pages.k));
  return pages.k_page_stride == pages.v_page_stride && pages.k_head_stride == pages.v_head_stride &&
         pages.k_token_stride == pages.v_token_stride && offset >= 0 &&
         offset + params.v_head_dim * element <= params.head_dim * element;
}

/// Computes one task. `scratch` is 64-byte aligned and holds at least scratch_bytes(params).
using AttendFn = void (*)(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept;

/// A kernel and what the planner must know of it.
struct AttendKernel {
  AttendFn attend;
  std::size_t (*scratch_bytes)(const AttendParams& params, std::int32_t max_rows) noexcept;
  std::int32_t max_rows;  ///< Query rows that one task may carry.
};

}  // namespace pagedkv::kernels
