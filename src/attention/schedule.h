// The units of work of a plan: which query rows meet which keys, and where partial states go.
//
// Layer: attention. A unit is work for every kv head; the pair (unit, kv head) becomes one task of a kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/batch.h"
#include "cpu/targets.h"
#include "kernels/kernel_table.h"

namespace pagedkv::attention {

/// Query rows of one sequence and a range of keys, for all kv heads.
struct Unit {
  const kernels::AttendKernel* kernel = nullptr;
  const std::int32_t* page_table = nullptr;
  std::int64_t kv_begin = 0, kv_end = 0;
  std::int64_t first_pos = 0;
  std::int64_t mask_offset = 0, mask_row_stride = 0, mask_head_stride = 0;
  std::int32_t first_row = 0, num_rows = 0;
  std::int32_t part = 0;    ///< Which part of its rows' keys; 0 also if they are not split.
  std::int32_t merge = -1;  ///< Index of the merge that it belongs to, or -1.
};

/// Rows whose keys were split: their parts are merged in order once the last one is done.
struct Merge {
  std::size_t first_state = 0;  ///< Index of part 0's states of kv head 0, in (row, query head) pairs.
  std::int32_t first_row = 0, num_rows = 0;
  std::int32_t num_parts = 0;
};

/// What `create` computes from a batch. States of a merge lie [kv_head][part][row][group].
struct Schedule {
  std::vector<Unit> units;  ///< Most expensive first.
  std::vector<Merge> merges;
  std::size_t num_states = 0;     ///< (row, query head) pairs of all parts.
  std::size_t scratch_bytes = 0;  ///< Of one lane, a multiple of 64.
  std::uint64_t kv_keys = 0;      ///< Keys of all sequences that some row can see.
  double pairs = 0;               ///< Visible (query row, key) pairs.
};

/// Keys of one part of a sequence that brings `q_len` rows. Parts begin at its multiples, so that split points depend
/// on the sequence alone.
std::int64_t split_keys(std::int64_t q_len) noexcept;

/// Adds a sequence's units; may throw std::bad_alloc.
void add_sequence(Schedule& schedule, const kernels::AttendParams& params, cpu::Target target,
                  const SequenceView& sequence, const std::int32_t* page_table);

/// Puts the most expensive units first and computes the totals.
void finish(Schedule& schedule, const kernels::AttendParams& params);

}  // namespace pagedkv::attention
