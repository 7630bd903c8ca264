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

/// Where the page ids of one sequence lie in the plan's copy, with room for some more.
struct PageTable {
  std::size_t first = 0;
  std::int64_t count = 0, capacity = 0;
};

/// A checked batch with all that its schedule depends on. Borrowed while the schedule is made; units keep pointers to
/// `page_ids`.
struct PlannedBatch {
  const AttentionConfig& config;
  const AttentionBatch& batch;
  const kernels::AttendParams& params;
  cpu::Target target;
  std::span<const PageTable> tables;
  const std::int32_t* page_ids;

  [[nodiscard]] SequenceView sequence(std::size_t index) const noexcept { return read_sequence(config, batch, index); }
  [[nodiscard]] const std::int32_t* page_table(std::size_t index) const noexcept {
    return page_ids + tables[index].first;
  }
};

/// Rows, at least one, cut into as few slices as a kernel takes, of heights that differ by one at most: a kernel may
/// round few rows in another way than many, so no rest of a few rows may be left.
struct RowSlices {
  RowSlices(std::int64_t rows, const kernels::AttendKernel& kernel) noexcept
      : num_rows(rows), count((rows + kernel.max_rows - 1) / kernel.max_rows) {}
  [[nodiscard]] std::int32_t begin(std::int64_t slice) const noexcept {
    return static_cast<std::int32_t>(num_rows * slice / count);
  }
  [[nodiscard]] std::int32_t height(std::int64_t slice) const noexcept { return begin(slice + 1) - begin(slice); }
  [[nodiscard]] std::int32_t tallest() const noexcept {
    return static_cast<std::int32_t>((num_rows + count - 1) / count);
  }

  std::int64_t num_rows, count;
};

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
  bool is_first = true;       ///< No other unit has earlier keys of its rows: learned sinks join here.
  std::int64_t first_pos = 0;
  std::int64_t mask_offset = 0, mask_row_stride = 0, mask_head_stride = 0;
  std::int32_t first_row = 0, num_rows = 0;
  std::int32_t first_listed = -1;  ///< Its rows are these of Schedule::shared_rows; -1: they follow first_row.
  std::int32_t first_merge = 0;    ///< Merges [first_merge, first_merge + num_merges) wait for it; none: it is all.
  std::int32_t num_merges = 0;
  std::size_t state = 0, head_stride = 0;  ///< Its state of kv head 0, and from there to the next head's: see States.
};

/// Where the states of some rows over some parts of their keys lie. All numbers but num_parts in (row, query head)
/// pairs; the pairs of a part follow one another, [row][group].
struct States {
  std::size_t first = 0;                         ///< Of the first row, part and kv head.
  std::size_t head_stride = 0, part_stride = 0;  ///< To the next kv head and to the next part.
  std::size_t num_parts = 0;

  [[nodiscard]] std::size_t index(std::size_t head, std::size_t part) const noexcept {
    return first + head * head_stride + part * part_stride;
  }
};

/// Rows whose keys were split: their states are merged in the order of the keys once the last unit is done.
struct Merge {
  std::int32_t first_row = 0, num_rows = 0;
  std::int32_t num_units = 0;                    ///< Units to wait for.
  std::size_t first_states = 0, num_states = 0;  ///< Of Schedule::states, in the order of the keys.
};

/// Keys that a run of sequences reads once, or those of them for which no window hides any; none (begin == end) where
/// windows leave nothing to share.
struct SharedKeys {
  std::size_t end_of_run = 0;       ///< The sequences are those of Schedule::order up to here.
  std::int64_t begin = 0, end = 0;  ///< Multiples of kPartKeys.
  States states = {};               ///< Those of the next sequence of the run.
  std::size_t first_unit = 0, num_units = 0;
};

/// What `make_schedule` computes from a batch.
struct Schedule {
  std::vector<Unit> units;  ///< Most expensive first.
  std::vector<Merge> merges;
  std::vector<States> states;                   ///< Of the merges.
  std::vector<kernels::ListedRow> shared_rows;  ///< Of sequences that share keys.
  std::size_t num_states = 0;                   ///< (row, query head) pairs of all parts.
  std::size_t scratch_bytes = 0;                ///< Of one lane's kernel, a multiple of 64.
  std::size_t sink_states = 0;  ///< (row, head of a group) pairs that a lane merges with their sinks at a time.
  std::uint64_t kv_keys = 0;    ///< Keys of all sequences that some row can see, shared ones once.
  double pairs = 0;             ///< Visible (query row, key) pairs.

  /// Forgets everything but its memory.
  void clear() noexcept {
    units.clear();
    merges.clear();
    states.clear();
    shared_rows.clear();
    shared.clear();
    num_states = scratch_bytes = sink_states = 0;
    kv_keys = 0;
    pairs = 0;
  }

  std::vector<Unit> unsorted = {};        ///< Working memory of `make_schedule`, as what follows.
  std::vector<std::uint32_t> order = {};  ///< The sequences, those with the same leading pages side by side.
  std::vector<std::int64_t> common = {};  ///< Whole parts that each has in common with the one before; empty: none has.
  std::vector<SharedKeys> shared = {};    ///< What the sequence at hand shares, in the order of the keys.
};

/// Keys of a part where there are few rows: large enough that its partial state costs under 1 % of them, and small
/// enough that one sequence feeds many threads. Parts begin at multiples, so that split points depend on the sequence
/// alone.
inline constexpr std::int64_t kPartKeys = 1024;
/// Most query rows of a sequence in parts of that size: a token, or one with its drafts.
inline constexpr std::int64_t kDecodeRows = 16;

/// Cuts the sequences of a batch into units, in the order in which they should run; may throw std::bad_alloc.
void make_schedule(Schedule& schedule, const PlannedBatch& batch);

/// Makes room for the states of `num_parts` parts of `num_rows` rows.
States add_states(Schedule& schedule, const kernels::AttendParams& params, std::int64_t num_rows,
                  std::size_t num_parts) noexcept;

}  // namespace pagedkv::attention
