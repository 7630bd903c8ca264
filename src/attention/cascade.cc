// Finds the runs of sequences with the same leading pages, level by level, and adds the units of what they share.
#include "attention/cascade.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace pagedkv::attention {
namespace {

// Leading parts of a sequence behind which no row sees a part whole, but for masks. Beside a window the part of the
// last key is not among them: learned sinks and sink tokens need a part of the sequence's own.
std::int64_t whole_parts(const kernels::AttendParams& params, const SequenceView& view) noexcept {
  if (view.q_len == 0 || view.q_len > kDecodeRows) return 0;
  const std::int64_t keys = params.causal ? std::min(view.kv_len, view.q_start + 1) : view.kv_len;
  return std::max<std::int64_t>(0, params.window_left < 0 ? keys : keys - 1) / kPartKeys;
}

// Pages that hold those parts.
std::span<const std::int32_t> pages_of(const PlannedBatch& batch, const SequenceView& view) noexcept {
  const std::int64_t page_size = batch.config.page_size, keys = whole_parts(batch.params, view) * kPartKeys;
  return {view.pages, static_cast<std::size_t>(std::min((keys + page_size - 1) / page_size, view.num_pages))};
}

std::int64_t common_parts(const PlannedBatch& batch, std::size_t a, std::size_t b) noexcept {
  const auto of_a = pages_of(batch, batch.sequence(a)), of_b = pages_of(batch, batch.sequence(b));
  const std::int64_t pages = std::ranges::mismatch(of_a, of_b).in1 - of_a.begin();
  return pages * std::int64_t{batch.config.page_size} / kPartKeys;
}

// Lists the rows of those of a run that see keys from `begin` on, behind the rows listed before, and says how many.
std::int32_t list_rows(Schedule& schedule, const PlannedBatch& batch, std::span<const std::uint32_t> run,
                       std::int64_t begin) {
  const std::size_t first_listed = schedule.shared_rows.size();
  for (const std::uint32_t index : run) {
    const SequenceView sequence = batch.sequence(index);
    if (seen_from(batch.params, sequence) > begin) continue;
    for (std::int64_t row = 0; row < sequence.q_len; ++row) {
      schedule.shared_rows.push_back({.row = static_cast<std::int32_t>(sequence.first_row + row),
                                      .position = sequence.q_start + row,
                                      .mask_offset = sequence.mask_offset + row * sequence.mask_row_stride,
                                      .mask_head_stride = sequence.mask_head_stride});
    }
  }
  return static_cast<std::int32_t>(schedule.shared_rows.size() - first_listed);
}

// Keys of a part that `num_rows` rows share. More rows make for larger states and more work on a part: fewer parts save
// a tenth of it, and still feed as many threads.
std::int64_t shared_part_keys(std::int64_t num_rows) noexcept {
  return num_rows <= kDecodeRows ? kPartKeys : 2 * kPartKeys;
}

// Adds the units of what those of the sequences order[first] .. order[shared.end_of_run - 1] share that see all of it.
void add_shared(Schedule& schedule, const PlannedBatch& batch, std::size_t first, SharedKeys shared) {
  const auto run = std::span(schedule.order).subspan(first, shared.end_of_run - first);
  const auto first_listed = static_cast<std::int32_t>(schedule.shared_rows.size());
  const std::int32_t num_rows = list_rows(schedule, batch, run, shared.begin);
  const std::int64_t part_keys = shared_part_keys(num_rows);
  const auto num_parts = static_cast<std::size_t>((shared.end - shared.begin + part_keys - 1) / part_keys);
  shared.states = add_states(schedule, batch.params, num_rows, num_parts);
  shared.first_unit = schedule.units.size();
  const kernels::AttendKernel* const kernel = kernels::select_attend(batch.target, batch.params, num_rows);
  const RowSlices slices(num_rows, *kernel);
  for (std::int64_t slice = 0; slice < slices.count; ++slice) {
    const std::int32_t row = slices.begin(slice);
    for (std::size_t part = 0; part < num_parts; ++part) {
      const std::int64_t begin = shared.begin + static_cast<std::int64_t>(part) * part_keys,
                         end = std::min(begin + part_keys, shared.end);
      schedule.units.push_back(
          {.kernel = kernel,
           .page_table = batch.page_table(run[0]),
           .kv_begin = begin,
           .kv_end = end,
           .is_windowed = false,
           .is_first = begin == 0,
           .first_pos = end,  // every row sees every key, but for its mask
           .num_rows = slices.height(slice),
           .first_listed = first_listed + row,
           .first_merge = static_cast<std::int32_t>(schedule.merges.size()),
           .state = shared.states.index(0, part) + static_cast<std::size_t>(row) * batch.params.group,
           .head_stride = shared.states.head_stride});
    }
  }
  shared.num_units = schedule.units.size() - shared.first_unit;
  schedule.kv_keys += static_cast<std::uint64_t>(shared.end - shared.begin);
  schedule.scratch_bytes = std::max(schedule.scratch_bytes, kernel->scratch_bytes(batch.params, slices.tallest()));
  schedule.shared.push_back(shared);
}

// Adds what the sequences order[first] .. order[run.end_of_run - 1], whose pages are the same there, share of run.begin
// .. run.end. Where windows begin, fewer of them see the keys before: two at least share what both see.
void add_run(Schedule& schedule, const PlannedBatch& batch, std::size_t first, SharedKeys run) {
  for (SharedKeys piece = run; piece.begin < run.end; piece.begin = piece.end) {
    std::size_t num_members = 0;
    piece.end = run.end;
    for (std::size_t i = first; i < run.end_of_run; ++i) {
      const std::int64_t from = seen_from(batch.params, batch.sequence(schedule.order[i]));
      if (from <= piece.begin) ++num_members;
      if (from > piece.begin) piece.end = std::min(piece.end, from);
    }
    if (num_members > 1) add_shared(schedule, batch, first, piece);
  }
  const bool is_open = !schedule.shared.empty() && schedule.shared.back().end == run.end;
  if (!is_open) schedule.shared.push_back({.end_of_run = run.end_of_run, .begin = run.end, .end = run.end});
}

}  // namespace

std::int64_t seen_from(const kernels::AttendParams& params, const SequenceView& view) noexcept {
  const std::int64_t last_window = params.window_left < 0 ? 0 : view.q_start + view.q_len - 1 - params.window_left;
  if (last_window <= std::int64_t{params.sink_tokens}) return 0;
  return (last_window + kPartKeys - 1) / kPartKeys * kPartKeys;
}

void find_order(Schedule& schedule, const PlannedBatch& batch) {
  schedule.order.resize(num_sequences(batch.batch));
  std::iota(schedule.order.begin(), schedule.order.end(), 0U);
  schedule.common.clear();
  if (!batch.config.cascade) return;
  std::ranges::stable_sort(schedule.order, [&](std::uint32_t a, std::uint32_t b) {
    return std::ranges::lexicographical_compare(pages_of(batch, batch.sequence(a)), pages_of(batch, batch.sequence(b)));
  });
  schedule.common.resize(schedule.order.size());
  for (std::size_t i = 1; i < schedule.order.size(); ++i) {
    schedule.common[i] = common_parts(batch, schedule.order[i - 1], schedule.order[i]);
  }
}

void open_shared(Schedule& schedule, const PlannedBatch& batch, std::size_t first) {
  for (;;) {
    // The run of those that have more in common than what is open already. What the whole run has in common is what
    // the neighbour has that has least.
    const std::int64_t begin = schedule.shared.empty() ? 0 : schedule.shared.back().end;
    std::int64_t end = std::numeric_limits<std::int64_t>::max();
    std::size_t end_of_run = first + 1;
    for (; end_of_run < schedule.common.size() && schedule.common[end_of_run] * kPartKeys > begin; ++end_of_run) {
      end = std::min(end, schedule.common[end_of_run] * kPartKeys);
    }
    if (end_of_run == first + 1) return;
    add_run(schedule, batch, first, {.end_of_run = end_of_run, .begin = begin, .end = end});
  }
}

void close_shared(Schedule& schedule, std::size_t next) noexcept {
  for (; !schedule.shared.empty() && schedule.shared.back().end_of_run == next; schedule.shared.pop_back()) {
    const SharedKeys& shared = schedule.shared.back();
    for (Unit& unit : std::span(schedule.units).subspan(shared.first_unit, shared.num_units)) {
      unit.num_merges = static_cast<std::int32_t>(schedule.merges.size()) - unit.first_merge;
    }
  }
}

}  // namespace pagedkv::attention
