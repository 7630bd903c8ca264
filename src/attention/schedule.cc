// Cuts sequences into units of work.
#include "attention/schedule.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <utility>

#include "attention/cascade.h"
#include "core/align.h"

namespace pagedkv::attention {
namespace {

// More rows have parallelism of their own and larger states: a chunk of prefill has longer parts, a prompt has one.
constexpr std::int64_t kChunkRows = 128, kChunkPartKeys = 8192;

// Keys of one part of a sequence that brings `q_len` rows.
std::int64_t split_keys(std::int64_t q_len) noexcept {
  if (q_len <= kDecodeRows) return kPartKeys;
  return q_len <= kChunkRows ? kChunkPartKeys : std::numeric_limits<std::int64_t>::max() / 2;
}

// Sink tokens that a window which begins at keys.begin does not hold.
std::int64_t sinks_before(const kernels::AttendParams& params, const KeyRange& keys) noexcept {
  return std::min<std::int64_t>(params.sink_tokens, keys.begin);
}

double visible_pairs(const kernels::AttendParams& params, const SequenceView& sequence) noexcept {
  double pairs = 0;
  for (std::int64_t row = 0; row < sequence.q_len; ++row) {
    const KeyRange keys = visible_keys(params, sequence.kv_len, sequence.q_start + row, 1);
    pairs += static_cast<double>(keys.end - keys.begin + sinks_before(params, keys));
  }
  return pairs;
}

// Relative cost of a unit: keys to read and pairs to compute.
std::uint64_t cost(const Unit& unit) noexcept {
  const auto keys = static_cast<std::uint64_t>(unit.kv_end - unit.kv_begin + unit.sink_end);
  return keys * static_cast<std::uint64_t>(8 + unit.num_rows) + 64;
}

// Adds the unit's keys [begin, end), cut at multiples of `split`, to a merge.
void add_own(Schedule& schedule, const kernels::AttendParams& params, Unit& unit, KeyRange keys, std::int64_t split) {
  if (keys.begin >= keys.end) return;
  const std::int64_t first_part = keys.begin / split, last_part = (keys.end - 1) / split;
  const auto num_parts = static_cast<std::size_t>(last_part - first_part + 1);
  const States states = add_states(schedule, params, unit.num_rows, num_parts);
  schedule.states.push_back(states);
  unit.head_stride = states.head_stride;
  for (std::size_t part = 0; part < num_parts; ++part) {
    const std::int64_t begin = (first_part + static_cast<std::int64_t>(part)) * split;
    unit.kv_begin = std::max(keys.begin, begin);
    unit.kv_end = std::min(keys.end, begin + split);
    unit.state = states.index(0, part);
    schedule.units.push_back(unit);
    unit.sink_end = 0;  // the first part alone has the sinks
    unit.is_first = false;
  }
}

// Adds the unit, cut at multiples of `split`, but for the keys that its rows, which see all from `seen` on, share.
void add_parts(Schedule& schedule, const kernels::AttendParams& params, Unit unit, std::int64_t split,
               std::int64_t seen) {
  const KeyRange keys = {unit.kv_begin, unit.kv_end};
  if (keys.begin >= keys.end || (schedule.shared.empty() && keys.begin / split == (keys.end - 1) / split)) {
    schedule.units.push_back(unit);
    return;
  }
  const std::size_t first_unit = schedule.units.size();
  Merge merge = {.first_row = unit.first_row, .num_rows = unit.num_rows, .first_states = schedule.states.size()};
  unit.first_merge = static_cast<std::int32_t>(schedule.merges.size());
  unit.num_merges = 1;
  std::int64_t begin = keys.begin;
  for (SharedKeys& shared : schedule.shared) {
    merge.num_units += static_cast<std::int32_t>(shared.num_units);  // they count down all merges of the run
    if (shared.begin < seen || shared.begin == shared.end) continue;
    add_own(schedule, params, unit, {begin, shared.begin}, split);
    schedule.states.push_back(shared.states);
    shared.states.first += static_cast<std::size_t>(unit.num_rows) * params.group;  // of the rows that follow
    unit.is_first = unit.is_first && shared.begin > 0;
    begin = shared.end;
  }
  add_own(schedule, params, unit, {begin, keys.end}, split);
  merge.num_states = schedule.states.size() - merge.first_states;
  merge.num_units += static_cast<std::int32_t>(schedule.units.size() - first_unit);
  schedule.merges.push_back(merge);
}

// Gives a unit the keys that its rows see: those of the window and the sink tokens, one range if they touch.
void set_keys(Unit& unit, const kernels::AttendParams& params, std::int64_t kv_len) noexcept {
  const KeyRange keys = visible_keys(params, kv_len, unit.first_pos, unit.num_rows);
  const std::int64_t last_window = unit.first_pos + unit.num_rows - 1 - params.window_left;
  const auto sinks = static_cast<std::int64_t>(params.sink_tokens);
  unit.kv_begin = keys.begin;
  unit.kv_end = keys.end;
  if (sinks == 0) return;
  unit.is_windowed = last_window > sinks;
  unit.sink_end = unit.is_windowed ? std::min(sinks, keys.end) : 0;
  unit.kv_begin = unit.is_windowed ? std::max(unit.sink_end, keys.begin) : 0;
}

// Adds a sequence's units but for the keys that it shares.
void add_sequence(Schedule& schedule, const PlannedBatch& batch, std::size_t index) {
  const SequenceView sequence = batch.sequence(index);
  if (sequence.q_len == 0) return;
  const kernels::AttendParams& params = batch.params;
  const kernels::AttendKernel* const kernel = kernels::select_attend(batch.target, params, sequence.q_len);
  const KeyRange all = visible_keys(params, sequence.kv_len, sequence.q_start, sequence.q_len);
  schedule.kv_keys += static_cast<std::uint64_t>(all.end - all.begin + sinks_before(params, all));
  const std::int64_t seen = seen_from(params, sequence);
  for (const SharedKeys& shared : schedule.shared) {
    if (shared.begin >= seen) schedule.kv_keys -= static_cast<std::uint64_t>(shared.end - shared.begin);
  }
  schedule.pairs += visible_pairs(params, sequence);
  const RowSlices slices(sequence.q_len, *kernel);
  for (std::int64_t slice = 0; slice < slices.count; ++slice) {
    const std::int64_t row = slices.begin(slice);
    Unit unit = {.kernel = kernel,
                 .page_table = batch.page_table(index),
                 .first_pos = sequence.q_start + row,
                 .mask_offset = sequence.mask_offset + row * sequence.mask_row_stride,
                 .mask_row_stride = sequence.mask_row_stride,
                 .mask_head_stride = sequence.mask_head_stride,
                 .first_row = static_cast<std::int32_t>(sequence.first_row + row),
                 .num_rows = slices.height(slice)};
    set_keys(unit, params, sequence.kv_len);
    if (unit.sink_end > 0) {
      schedule.sink_states = std::max(schedule.sink_states, static_cast<std::size_t>(unit.num_rows) * params.group);
    }
    add_parts(schedule, params, unit, split_keys(sequence.q_len), seen);
  }
  schedule.scratch_bytes = std::max(schedule.scratch_bytes, kernel->scratch_bytes(params, slices.tallest()));
}

// Puts the most expensive units first.
void finish(Schedule& schedule) {
  // Longest first leaves no thread with a long task at the end. Powers of two are fine enough an order, and cheap.
  constexpr std::size_t kClasses = 65;
  std::array<std::size_t, kClasses> place = {};
  const auto class_of = [](const Unit& unit) { return static_cast<std::size_t>(std::countl_zero(cost(unit))); };
  for (const Unit& unit : schedule.units) ++place[class_of(unit)];
  std::size_t begin = 0;
  for (std::size_t& count : place) begin += std::exchange(count, begin);
  schedule.unsorted.swap(schedule.units);
  schedule.units.resize(schedule.unsorted.size());
  for (const Unit& unit : schedule.unsorted) schedule.units[place[class_of(unit)]++] = unit;
  schedule.scratch_bytes = round_up(schedule.scratch_bytes, kCacheLineBytes);
}

}  // namespace

States add_states(Schedule& schedule, const kernels::AttendParams& params, std::int64_t num_rows,
                  std::size_t num_parts) noexcept {
  const std::size_t pairs = static_cast<std::size_t>(num_rows) * params.group;
  const States states = {
      .first = schedule.num_states, .head_stride = num_parts * pairs, .part_stride = pairs, .num_parts = num_parts};
  schedule.num_states += params.num_kv_heads * states.head_stride;
  return states;
}

void make_schedule(Schedule& schedule, const PlannedBatch& batch) {
  schedule.clear();
  find_order(schedule, batch);
  for (std::size_t i = 0; i < schedule.order.size(); ++i) {
    close_shared(schedule, i);
    open_shared(schedule, batch, i);
    add_sequence(schedule, batch, schedule.order[i]);
  }
  close_shared(schedule, schedule.order.size());
  finish(schedule);
}

}  // namespace pagedkv::attention
