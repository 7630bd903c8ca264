// Cuts sequences into units of work.
#include "attention/schedule.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

namespace pagedkv::attention {
namespace {

// Few rows: a part is large enough that its partial state costs under 1 % of its keys, and small enough that one
// sequence feeds many threads. More rows have parallelism of their own and larger states.
constexpr std::int64_t kFewRows = 16, kFewRowsKeys = 1024;
constexpr std::int64_t kSomeRows = 128, kSomeRowsKeys = 8192;

double visible_pairs(const kernels::AttendParams& params, const SequenceView& sequence) noexcept {
  double pairs = 0;
  for (std::int64_t row = 0; row < sequence.q_len; ++row) {
    const KeyRange keys = visible_keys(params, sequence.kv_len, sequence.q_start + row, 1);
    pairs += static_cast<double>(keys.end - keys.begin);
  }
  return pairs;
}

// Relative cost of a unit: keys to read and pairs to compute.
std::uint64_t cost(const Unit& unit) noexcept {
  return static_cast<std::uint64_t>(unit.kv_end - unit.kv_begin) * static_cast<std::uint64_t>(8 + unit.num_rows) + 64;
}

}  // namespace

std::int64_t split_keys(std::int64_t q_len) noexcept {
  if (q_len <= kFewRows) return kFewRowsKeys;
  return q_len <= kSomeRows ? kSomeRowsKeys : std::numeric_limits<std::int64_t>::max() / 2;
}

void add_sequence(Schedule& schedule, const kernels::AttendParams& params, cpu::Target target,
                  const SequenceView& sequence, const std::int32_t* page_table) {
  if (sequence.q_len == 0) return;
  const kernels::AttendKernel* const kernel = kernels::select_attend(target, params, sequence.q_len);
  const std::int64_t split = split_keys(sequence.q_len);
  const KeyRange all = visible_keys(params, sequence.kv_len, sequence.q_start, sequence.q_len);
  schedule.kv_keys += static_cast<std::uint64_t>(all.end - all.begin);
  schedule.pairs += visible_pairs(params, sequence);
  std::int32_t tallest = 0;
  for (std::int64_t row = 0; row < sequence.q_len;) {
    const std::int64_t rows = std::min<std::int64_t>(kernel->max_rows, sequence.q_len - row);
    tallest = std::max(tallest, static_cast<std::int32_t>(rows));
    const KeyRange keys = visible_keys(params, sequence.kv_len, sequence.q_start + row, rows);
    Unit unit = {.kernel = kernel,
                 .page_table = page_table,
                 .kv_begin = keys.begin,
                 .kv_end = keys.end,
                 .first_pos = sequence.q_start + row,
                 .mask_offset = sequence.mask_offset + row * sequence.mask_row_stride,
                 .mask_row_stride = sequence.mask_row_stride,
                 .mask_head_stride = sequence.mask_head_stride,
                 .first_row = static_cast<std::int32_t>(sequence.first_row + row),
                 .num_rows = static_cast<std::int32_t>(rows)};
    const std::int64_t first_part = keys.begin / split, last_part = std::max(first_part, (keys.end - 1) / split);
    if (first_part == last_part) {
      schedule.units.push_back(unit);
    } else {
      const auto num_parts = static_cast<std::int32_t>(last_part - first_part + 1);
      unit.merge = static_cast<std::int32_t>(schedule.merges.size());
      schedule.merges.push_back({schedule.num_states, unit.first_row, unit.num_rows, num_parts});
      schedule.num_states += static_cast<std::size_t>(num_parts) * static_cast<std::size_t>(rows) * params.num_q_heads;
      for (; unit.part < num_parts; ++unit.part) {
        unit.kv_begin = std::max(keys.begin, (first_part + unit.part) * split);
        unit.kv_end = std::min(keys.end, (first_part + unit.part + 1) * split);
        schedule.units.push_back(unit);
      }
    }
    row += rows;
  }
  schedule.scratch_bytes = std::max(schedule.scratch_bytes, kernel->scratch_bytes(params, tallest));
}

void finish(Schedule& schedule, const kernels::AttendParams&) {
  // Longest first leaves no thread with a long task at the end. Powers of two are fine enough an order, and cheap.
  constexpr std::size_t kClasses = 65;
  std::array<std::size_t, kClasses> place = {};
  const auto class_of = [](const Unit& unit) { return static_cast<std::size_t>(std::countl_zero(cost(unit))); };
  for (const Unit& unit : schedule.units) ++place[class_of(unit)];
  std::size_t begin = 0;
  for (std::size_t& count : place) begin += std::exchange(count, begin);
  std::vector<Unit> sorted(schedule.units.size());
  for (const Unit& unit : schedule.units) sorted[place[class_of(unit)]++] = unit;
  schedule.units.swap(sorted);
  schedule.scratch_bytes = (schedule.scratch_bytes + 63) / 64 * 64;
}

}  // namespace pagedkv::attention
