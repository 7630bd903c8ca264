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

/// Query rows of one sequence, or of several that share the keys, and a range of keys, for all kv heads.
///
/// Where a window has left sink tokens behind, rows see two ranges of keys: the sinks are a state of their own,
/// computed first by the same lane and merged with that of the window. So kernels know one range and at most a window.
struct Unit {
  const kernels::AttendKernel* kernel = nullptr;
  const std::int32_t* page_table = nullptr;
  std::int64_t kv_begin = 0, kv_end = 0;
  std::int64_t sink_end = 0;  ///< Keys [0, sink_end), before kv_begin, are seen besides; 0 = none.
  bool is_windowed = true;    ///< False: the layer's window hides no key from these rows.
  std::int64_t first_pos = 0;
  std::int64_t mask_offset = 0, mask_row_stride = 0, mask_head_stride = 0;
  std::int32_t first_row = 0, num_rows = 0;
  std::int32_t first_listed = -1;  ///< Its rows are these of Schedule::shared_rows; -1: they follow first_row.
  std::int32_t part = 0;           ///< Which part of its rows' keys; 0 also if they are not split.
  std::int32_t first_merge = 0;    ///< Merges [first_merge, first_merge + num_merges) wait for it.
  std::int32_t num_merges = 0;
};

/// Where the states of some parts of some rows lie: [kv_head][part][row][group]. Rows of several sequences count from
/// the first one's first row on, without gaps; `first_row` is then what finds the rows of one of them.
struct States {
  std::size_t first = 0;  ///< In (row, query head) pairs.
  std::int32_t first_row = 0, num_rows = 0;
  std::int32_t first_part = 0, num_parts = 0;

  /// Index of the state of (kv head, part, row, first head of the group).
  [[nodiscard]] std::size_t index(std::size_t head, std::int32_t part, std::int32_t row,
                                  std::size_t group) const noexcept {
    const std::size_t slice = head * static_cast<std::size_t>(num_parts) + static_cast<std::size_t>(part - first_part);
    return first + (slice * static_cast<std::size_t>(num_rows) + static_cast<std::size_t>(row - first_row)) * group;
  }
};

/// Rows whose keys were split: their parts are merged in order once the last one is done.
struct Merge {
  States shared;               ///< Parts 0 .. num_parts - 1 that other sequences share; none without cascade.
  States own;                  ///< The parts behind them.
  std::int32_t num_units = 0;  ///< Units to wait for.

  [[nodiscard]] const States& states(std::int32_t part) const noexcept {
    return part < shared.num_parts ? shared : own;
  }
};

/// What `create` computes from a batch.
struct Schedule {
  std::vector<Unit> units;  ///< Most expensive first.
  std::vector<Merge> merges;
  std::vector<std::int32_t> shared_rows;       ///< Rows of q of sequences that share parts, ...
  std::vector<std::int64_t> shared_positions;  ///< ... and their positions.
  std::size_t num_states = 0;                  ///< (row, query head) pairs of all parts.
  std::size_t scratch_bytes = 0;               ///< Of one lane's kernel, a multiple of 64.
  std::size_t sink_states = 0;  ///< (row, head of a group) pairs that a lane merges with their sinks at a time.
  std::uint64_t kv_keys = 0;    ///< Keys of all sequences that some row can see, shared ones once.
  double pairs = 0;             ///< Visible (query row, key) pairs.

  /// Forgets everything but its memory.
  void clear() noexcept {
    units.clear();
    merges.clear();
    shared_rows.clear();
    shared_positions.clear();
    num_states = scratch_bytes = sink_states = 0;
    kv_keys = 0;
    pairs = 0;
  }

  std::vector<Unit> unsorted = {};        ///< Working memory of `finish`.
  std::vector<std::uint32_t> order = {};  ///< Working memory of `find_order`.
};

/// Leading parts that a run of sequences in `find_order` have in common.
struct SharedParts {
  States states;  ///< num_parts == 0: nothing shared.
  std::size_t num_sequences = 1;
  std::size_t first_unit = 0, num_units = 0;
};

/// Keys of one part of a sequence that brings `q_len` rows. Parts begin at its multiples, so that split points depend
/// on the sequence alone.
std::int64_t split_keys(std::int64_t q_len) noexcept;

/// Puts the sequences of a batch in schedule.order, by their page ids if cascade is on: those with the same leading
/// pages side by side. May throw std::bad_alloc.
///
/// Cost: O(B), or O(B log B) comparisons of the pages of whole parts
void find_order(Schedule& schedule, const AttentionConfig& config, const AttentionBatch& batch,
                const kernels::AttendParams& params);

/// Finds the leading parts that the first sequence of `order` has in common with those behind it. Pages are compared,
/// so a page table that repeats another's ids shares them.
SharedParts find_shared(const AttentionConfig& config, const AttentionBatch& batch, const kernels::AttendParams& params,
                        std::span<const std::uint32_t> order) noexcept;

/// Adds the units of the parts that the first shared.num_sequences sequences of `order` share; these must follow, and
/// then close_shared. May throw std::bad_alloc.
void add_shared(Schedule& schedule, const AttentionConfig& config, const AttentionBatch& batch,
                const kernels::AttendParams& params, cpu::Target target, SharedParts& shared,
                std::span<const std::uint32_t> order, const std::int32_t* page_table);

/// Lets the units of shared parts know the merges of the sequences that were added since.
void close_shared(Schedule& schedule, const SharedParts& shared) noexcept;

/// Adds a sequence's units, behind the parts that it shares; may throw std::bad_alloc.
void add_sequence(Schedule& schedule, const kernels::AttendParams& params, cpu::Target target,
                  const SequenceView& sequence, const std::int32_t* page_table, const SharedParts& shared);

/// Puts the most expensive units first and computes the totals.
void finish(Schedule& schedule);

}  // namespace pagedkv::attention
