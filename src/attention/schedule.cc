// Cuts sequences into units of work.
#include "attention/schedule.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <numeric>

namespace pagedkv::attention {
namespace {

// Few rows: a part is large enough that its partial state costs under 1 % of its keys, and small enough that one
// sequence feeds many threads. More rows have parallelism of their own and larger states.
constexpr std::int64_t kFewRows = 16, kFewRowsKeys = 1024;
constexpr std::int64_t kSomeRows = 128, kSomeRowsKeys = 8192;

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

// Adds the unit, cut at multiples of `split`; rows that share parts begin behind them.
void add_parts(Schedule& schedule, const kernels::AttendParams& params, Unit unit, std::int64_t split,
               const SharedParts& shared) {
  const KeyRange keys = {unit.kv_begin, unit.kv_end};
  const std::int32_t shared_parts = shared.states.num_parts;
  const std::int64_t origin = keys.begin / split;  // index of the part that becomes part 0
  const auto last_part = static_cast<std::int32_t>(std::max(origin, (keys.end - 1) / split) - origin);
  if (last_part == 0 && shared_parts == 0) {
    schedule.units.push_back(unit);
    return;
  }
  Merge merge;
  merge.shared = shared.states;
  merge.own = {.first = schedule.num_states,
               .first_row = unit.first_row,
               .num_rows = unit.num_rows,
               .first_part = shared_parts,
               .num_parts = last_part + 1 - shared_parts};
  merge.num_units = merge.own.num_parts + static_cast<std::int32_t>(shared.num_units);
  schedule.num_states +=
      static_cast<std::size_t>(merge.own.num_parts) * static_cast<std::size_t>(unit.num_rows) * params.num_q_heads;
  unit.first_merge = static_cast<std::int32_t>(schedule.merges.size());
  unit.num_merges = 1;
  schedule.merges.push_back(merge);
  for (unit.part = shared_parts; unit.part <= last_part; ++unit.part) {
    unit.kv_begin = std::max(keys.begin, (origin + unit.part) * split);
    unit.kv_end = std::min(keys.end, (origin + unit.part + 1) * split);
    schedule.units.push_back(unit);
    unit.sink_end = 0;  // the first part alone has the sinks
  }
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

// Whether sequences may share parts: those that every row sees whole.
bool may_share(const AttentionConfig& config, const kernels::AttendParams& params) noexcept {
  return config.cascade && params.window_left < 0 && params.mask_kind == MaskKind::kNone;
}

// Leading parts of a sequence that all of its rows see whole.
std::int64_t whole_parts(const kernels::AttendParams& params, const SequenceView& view) noexcept {
  if (view.q_len == 0 || view.q_len > kFewRows) return 0;
  const std::int64_t keys = params.causal ? std::min(view.kv_len, view.q_start + 1) : view.kv_len;
  return std::max<std::int64_t>(0, keys) / kFewRowsKeys;
}

// Pages that hold the first `parts` parts.
std::int64_t shared_pages(const AttentionConfig& config, const SequenceView& view, std::int64_t parts) noexcept {
  const std::int64_t page_size = config.page_size;
  return std::min((parts * kFewRowsKeys + page_size - 1) / page_size, view.num_pages);
}

}  // namespace

std::int64_t split_keys(std::int64_t q_len) noexcept {
  if (q_len <= kFewRows) return kFewRowsKeys;
  return q_len <= kSomeRows ? kSomeRowsKeys : std::numeric_limits<std::int64_t>::max() / 2;
}

void find_order(Schedule& schedule, const AttentionConfig& config, const AttentionBatch& batch,
                const kernels::AttendParams& params) {
  schedule.order.resize(num_sequences(batch));
  std::iota(schedule.order.begin(), schedule.order.end(), 0U);
  if (!may_share(config, params)) return;
  const auto pages = [&](std::uint32_t index) {
    const SequenceView view = read_sequence(config, batch, index);
    return std::span(view.pages, static_cast<std::size_t>(shared_pages(config, view, whole_parts(params, view))));
  };
  std::stable_sort(schedule.order.begin(), schedule.order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return std::ranges::lexicographical_compare(pages(a), pages(b));
  });
}

SharedParts find_shared(const AttentionConfig& config, const AttentionBatch& batch, const kernels::AttendParams& params,
                        std::span<const std::uint32_t> order) noexcept {
  SharedParts shared;
  if (!may_share(config, params)) return shared;
  const SequenceView first = read_sequence(config, batch, order[0]);
  std::int64_t parts = whole_parts(params, first), rows = first.q_len;
  std::size_t count = 1;
  for (; parts > 0 && count < order.size(); ++count) {
    const SequenceView view = read_sequence(config, batch, order[count]);
    const std::int64_t wanted = count == 1 ? std::min(parts, whole_parts(params, view)) : parts;
    if (wanted == 0 || whole_parts(params, view) < wanted) break;
    const std::int64_t pages = shared_pages(config, view, wanted);
    const std::int64_t equal = std::mismatch(first.pages, first.pages + pages, view.pages).first - first.pages;
    const std::int64_t common = std::min(wanted, equal * std::int64_t{config.page_size} / kFewRowsKeys);
    if (common == 0 || (count > 1 && common < parts)) break;
    parts = common;
    rows += view.q_len;
  }
  shared.num_sequences = count;
  if (count == 1) return shared;
  shared.states = {.first_row = static_cast<std::int32_t>(first.first_row),
                   .num_rows = static_cast<std::int32_t>(rows),
                   .num_parts = static_cast<std::int32_t>(parts)};
  return shared;
}

void add_shared(Schedule& schedule, const AttentionConfig& config, const AttentionBatch& batch,
                const kernels::AttendParams& params, cpu::Target target, SharedParts& shared,
                std::span<const std::uint32_t> order, const std::int32_t* page_table) {
  States& states = shared.states;
  states.first = schedule.num_states;
  schedule.num_states +=
      static_cast<std::size_t>(states.num_parts) * static_cast<std::size_t>(states.num_rows) * params.num_q_heads;
  schedule.kv_keys += static_cast<std::uint64_t>(states.num_parts * kFewRowsKeys);
  const auto first_listed = static_cast<std::int32_t>(schedule.shared_rows.size());
  for (const std::uint32_t index : order.first(shared.num_sequences)) {
    const SequenceView sequence = read_sequence(config, batch, index);
    for (std::int64_t row = 0; row < sequence.q_len; ++row) {
      schedule.shared_rows.push_back(static_cast<std::int32_t>(sequence.first_row + row));
      schedule.shared_positions.push_back(sequence.q_start + row);
    }
  }
  const kernels::AttendKernel* const kernel = kernels::select_attend(target, params, states.num_rows);
  shared.first_unit = schedule.units.size();
  const auto first_merge = static_cast<std::int32_t>(schedule.merges.size());
  std::int32_t tallest = 0;
  for (std::int32_t row = 0; row < states.num_rows;) {
    const std::int32_t rows = std::min(kernel->max_rows, states.num_rows - row);
    tallest = std::max(tallest, rows);
    for (std::int32_t part = 0; part < states.num_parts; ++part) {
      const std::int64_t begin = part * kFewRowsKeys, end = begin + kFewRowsKeys;
      schedule.units.push_back({.kernel = kernel,
                                .page_table = page_table,
                                .kv_begin = begin,
                                .kv_end = end,
                                .first_pos = end,  // every row sees every key
                                .first_row = states.first_row + row,
                                .num_rows = rows,
                                .first_listed = first_listed + row,
                                .part = part,
                                .first_merge = first_merge});
    }
    row += rows;
  }
  shared.num_units = schedule.units.size() - shared.first_unit;
  schedule.scratch_bytes = std::max(schedule.scratch_bytes, kernel->scratch_bytes(params, tallest));
}

void close_shared(Schedule& schedule, const SharedParts& shared) noexcept {
  for (std::size_t i = 0; i < shared.num_units; ++i) {
    Unit& unit = schedule.units[shared.first_unit + i];
    unit.num_merges = static_cast<std::int32_t>(schedule.merges.size()) - unit.first_merge;
  }
}

void add_sequence(Schedule& schedule, const kernels::AttendParams& params, cpu::Target target,
                  const SequenceView& sequence, const std::int32_t* page_table, const SharedParts& shared) {
  if (sequence.q_len == 0) return;
  const kernels::AttendKernel* const kernel = kernels::select_attend(target, params, sequence.q_len);
  const std::int64_t split = split_keys(sequence.q_len);
  const std::int32_t shared_parts = shared.states.num_parts;
  const KeyRange all = visible_keys(params, sequence.kv_len, sequence.q_start, sequence.q_len);
  schedule.kv_keys +=
      static_cast<std::uint64_t>(all.end - all.begin + sinks_before(params, all) - shared_parts * kFewRowsKeys);
  schedule.pairs += visible_pairs(params, sequence);
  std::int32_t tallest = 0;
  for (std::int64_t row = 0; row < sequence.q_len;) {
    const std::int64_t rows = std::min<std::int64_t>(kernel->max_rows, sequence.q_len - row);
    tallest = std::max(tallest, static_cast<std::int32_t>(rows));
    Unit unit = {.kernel = kernel,
                 .page_table = page_table,
                 .first_pos = sequence.q_start + row,
                 .mask_offset = sequence.mask_offset + row * sequence.mask_row_stride,
                 .mask_row_stride = sequence.mask_row_stride,
                 .mask_head_stride = sequence.mask_head_stride,
                 .first_row = static_cast<std::int32_t>(sequence.first_row + row),
                 .num_rows = static_cast<std::int32_t>(rows)};
    set_keys(unit, params, sequence.kv_len);
    if (unit.sink_end > 0) {
      schedule.sink_states = std::max(schedule.sink_states, static_cast<std::size_t>(rows) * params.group);
    }
    add_parts(schedule, params, unit, split, shared);
    row += rows;
  }
  schedule.scratch_bytes = std::max(schedule.scratch_bytes, kernel->scratch_bytes(params, tallest));
}

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
  schedule.scratch_bytes = (schedule.scratch_bytes + 63) / 64 * 64;
}

}  // namespace pagedkv::attention
