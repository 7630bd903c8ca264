// Where the K and V rows of a task lie, in page-table order: runs, gathers and a prefetch that follows them; query and
// output rows.
//
// Layer: kernels, only for the x86_amx_*.cc files (see x86_amx_instructions.h for the compile region).
#pragma once

#include "kernels/attend.h"
#include "kernels/prefetch.h"
#include "kernels/x86_avx512_math.h"

#if defined(__x86_64__)
#include <algorithm>

PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

PAGEDKV_AMX_INLINE int ceil_to(int value, int multiple) noexcept {
  return (value + multiple - 1) / multiple * multiple;
}

/// Copies `bytes` and fills up to `padded_bytes` (a multiple of 64) with zeros; reads nothing beyond `bytes`.
PAGEDKV_AMX_INLINE void copy_row(std::byte* to, const std::byte* from, std::int64_t bytes,
                                 std::int64_t padded_bytes) noexcept {
  for (std::int64_t i = 0; i < padded_bytes; i += 64) {
    const std::int64_t left = bytes - i;
    const __mmask64 lanes = left >= 64 ? ~__mmask64{0} : left <= 0 ? __mmask64{0} : (std::uint64_t{1} << left) - 1;
    _mm512_store_si512(to + i, _mm512_maskz_loadu_epi8(lanes, from + i));
  }
}

PAGEDKV_AMX_INLINE void prefetch_lines(const std::byte* from, std::int64_t bytes) noexcept {
  for (std::int64_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(from) + i, _MM_HINT_T0);
}

/// The K and V rows of one kv head of one sequence. Tokens are counted from the start of the sequence.
class KvRows {
 public:
  /// Rows of consecutive tokens in one page.
  struct Run {
    const std::byte* k;
    const std::byte* v;
    std::int64_t rows;
  };

  KvRows(const AttendParams& params, const AttendTask& task) noexcept
      : table_(task.page_table),
        k_(static_cast<const std::byte*>(params.pages.k) + task.kv_head * params.pages.k_head_stride),
        v_(static_cast<const std::byte*>(params.pages.v) + task.kv_head * params.pages.v_head_stride),
        page_size_(params.page_size),
        k_page_stride_(params.pages.k_page_stride),
        v_page_stride_(params.pages.v_page_stride),
        k_stride(params.pages.k_token_stride),
        v_stride(params.pages.v_token_stride),
        k_bytes(2 * params.head_dim),
        v_bytes(2 * params.v_head_dim),
        v_is_part_of_k(values_lie_in_keys(params)) {}

  /// The rows from `token` to the end of its page.
  PAGEDKV_AMX_INLINE Run at(std::int64_t token) const noexcept {
    const auto t = static_cast<std::uint32_t>(token);
    const std::uint32_t page_index = t / page_size_, offset = t % page_size_;
    const std::int64_t page = table_[page_index];
    return {k_ + page * k_page_stride_ + offset * k_stride, v_ + page * v_page_stride_ + offset * v_stride,
            static_cast<std::int64_t>(page_size_ - offset)};
  }

 private:
  const std::int32_t* table_;
  const std::byte* k_;
  const std::byte* v_;
  std::uint32_t page_size_;
  std::int64_t k_page_stride_, v_page_stride_;

 public:
  std::int64_t k_stride, v_stride;  ///< Bytes from token to token.
  std::int64_t k_bytes, v_bytes;    ///< Bytes of a row.
  bool v_is_part_of_k;              ///< MLA: the values are elements of the keys.
};

enum class RowParts { kKeys, kValues, kBoth };

/// Adds the K and V rows of `count` tokens to `ahead`, or one of them.
[[maybe_unused]] void add_rows_ahead(RowsAhead& ahead, const KvRows& rows, std::int64_t token, std::int64_t count,
                                     RowParts parts) noexcept {
  while (count > 0) {
    const KvRows::Run run = rows.at(token);
    const std::int64_t n = std::min(run.rows, count);
    const auto add = [&](const std::byte* row, std::int64_t stride, std::int64_t bytes) {
      if (stride == bytes) return ahead.add(row, n * bytes);
      for (std::int64_t i = 0; i < n; ++i) ahead.add(row + i * stride, bytes);
    };
    if (parts != RowParts::kValues) add(run.k, rows.k_stride, rows.k_bytes);
    if (parts != RowParts::kKeys && !rows.v_is_part_of_k) add(run.v, rows.v_stride, rows.v_bytes);
    token += n, count -= n;
  }
}

/// Sixteen rows of K and of V that one tile load can take: in place, or copied together.
struct TileRows {
  const std::byte* k;
  const std::byte* v;
  std::int64_t k_stride, v_stride;
};

/// For prefill: the lines of rows to come, in order of use, handed out a few at a time.
class ChunkPrefetcher {
 public:
  static constexpr int kMaxRuns = 2 * 64;

  PAGEDKV_AMX_INLINE void clear() noexcept { num_runs_ = next_run_ = 0, line_ = end_ = nullptr, num_lines_ = 0; }

  /// Adds the K and V rows of `count` tokens (at most 64 a round).
  void add(const KvRows& rows, std::int64_t token, std::int64_t count) noexcept {
    while (count > 0) {
      const KvRows::Run run = rows.at(token);
      const std::int64_t n = std::min(run.rows, count);
      add_rows(run.k, n, rows.k_stride, rows.k_bytes);
      if (!rows.v_is_part_of_k) add_rows(run.v, n, rows.v_stride, rows.v_bytes);
      token += n, count -= n;
    }
  }

  PAGEDKV_AMX_INLINE int num_lines() const noexcept { return num_lines_; }

  /// Asks for the first line of each run, all at once, so that their page walks overlap: see StreamPrefetcher.
  void touch() const noexcept {
    for (int i = 0; i < num_runs_; ++i) __builtin_prefetch(runs_[i].begin, 0, 2);
  }

  /// Hands out `count` lines that follow each other (some perhaps behind the end of their run); null if none is left.
  PAGEDKV_AMX_INLINE const std::byte* take(int count) noexcept {
    if (!find_line()) return nullptr;
    const std::byte* const first = line_;
    line_ += count * 64;
    return first;
  }

  PAGEDKV_AMX_INLINE void emit(int count) noexcept {
    for (; count > 0 && find_line(); --count) {
      _mm_prefetch(reinterpret_cast<const char*>(line_), _MM_HINT_T1);
      line_ += 64;
    }
  }

 private:
  struct Lines {
    const std::byte* begin;
    const std::byte* end;
  };

  PAGEDKV_AMX_INLINE void add_rows(const std::byte* first, std::int64_t count, std::int64_t stride,
                                   std::int64_t bytes) noexcept {
    if (stride == bytes) bytes *= count, count = 1;
    for (std::int64_t i = 0; i < count && num_runs_ < kMaxRuns; ++i, first += stride) {
      const std::byte* begin = first - (reinterpret_cast<std::uintptr_t>(first) & 63);
      runs_[num_runs_++] = {begin, first + bytes};
      num_lines_ += static_cast<int>((first + bytes - begin + 63) / 64);
    }
  }

  /// Goes on to the next run behind the end of one; false if none is left.
  PAGEDKV_AMX_INLINE bool find_line() noexcept {
    if (line_ < end_) return true;
    if (next_run_ == num_runs_) return false;
    line_ = runs_[next_run_].begin, end_ = runs_[next_run_++].end;
    return true;
  }

  const std::byte* line_ = nullptr;
  const std::byte* end_ = nullptr;
  int next_run_ = 0, num_runs_ = 0, num_lines_ = 0;
  Lines runs_[kMaxRuns];
};

/// Element offset of (task row, head of the group) in rows [rows][num_q_heads][dim].
PAGEDKV_AMX_INLINE std::int64_t row_offset(const AttendParams& params, const AttendTask& task, int row, int head,
                                           std::uint32_t dim) noexcept {
  return (query_row(task, row) * params.num_q_heads + std::int64_t{task.kv_head} * params.group + head) * dim;
}

/// Asks for the first line of each row of `count` columns, (row, head) pairs of a task from `first` on, so that their
/// page walks overlap. `rows` is [rows][num_q_heads] x row_bytes.
template <bool kToWrite>
void touch_rows(const AttendParams& params, const AttendTask& task, const void* rows, std::int64_t row_bytes,
                std::int64_t first, std::int64_t count) noexcept {
  const auto group = static_cast<std::int64_t>(params.group);
  const std::int64_t end = std::min<std::int64_t>((first + count - 1) / group + 1, task.num_rows);
  for (std::int64_t row = first / group; row < end; ++row) {
    __builtin_prefetch(
        static_cast<const std::byte*>(rows) + row_offset(params, task, static_cast<int>(row), 0, 1) * row_bytes,
        kToWrite, kToWrite ? 3 : 2);
  }
}

/// True if all factors are cut into bf16 terms that sum up to them exactly: f16 pages, unless they may be rounded.
PAGEDKV_AMX_INLINE bool is_exact(const AttendParams& params) noexcept {
  return params.kv_dtype == DType::f16 && !params.f16_as_bf16;
}

/// bf16 terms that sum up exactly to an element, cut off one after the other.
PAGEDKV_AMX_INLINE int exact_terms(DType dtype) noexcept {
  return dtype == DType::f32 ? 3 : dtype == DType::f16 ? 2 : 1;
}

/// A query row as bf16. A bf16 row is exact in one term. Beside bf16 pages f32 and f16 rows are split into two (value
/// and remainder: 16 bits of mantissa), at the price of twice the products with K; beside f16 pages, exactly; beside
/// f16 pages that are rounded, they are rounded too.
PAGEDKV_AMX_INLINE int query_terms(const AttendParams& params) noexcept {
  if (params.q_dtype == DType::bf16 || params.f16_as_bf16) return 1;
  return is_exact(params) ? exact_terms(params.q_dtype) : 2;
}

/// Elements [first, first + 32) of a row of `dim` as bf16, cut off after `term` terms, zeros from `dim` on.
PAGEDKV_AMX_INLINE __m512i exact_piece(const std::byte* row, DType dtype, int first, int dim, int term) noexcept {
  const std::int64_t bytes = static_cast<std::int64_t>(size_of(dtype));
  __m512 a = load_floats(row + bytes * first, dtype, first_lanes16(dim - first));
  __m512 b = load_floats(row + bytes * (first + 16), dtype, first_lanes16(dim - first - 16));
  for (; term > 0; --term) a = beyond_bf16(a), b = beyond_bf16(b);
  return cut_to_bf16(a, b);
}

/// The same rounded to nearest even.
PAGEDKV_AMX_INLINE __m512i rounded_piece(const std::byte* row, DType dtype, int first, int dim) noexcept {
  const std::int64_t bytes = static_cast<std::int64_t>(size_of(dtype));
  return to_bf16(load_floats(row + bytes * first, dtype, first_lanes16(dim - first)),
                 load_floats(row + bytes * (first + 16), dtype, first_lanes16(dim - first - 16)));
}

/// Elements [first, first + 32) of a query row as bf16, one of its terms, zeros from `dim` on.
PAGEDKV_AMX_INLINE __m512i query_piece(const AttendParams& params, const std::byte* row, int first, int term) noexcept {
  const DType dtype = params.q_dtype;
  const int dim = static_cast<int>(params.head_dim);
  if (dtype == DType::bf16) return _mm512_maskz_loadu_epi16(first_lanes32(dim - first), row + 2 * first);
  if (is_exact(params)) return exact_piece(row, dtype, first, dim, term);
  const std::int64_t bytes = static_cast<std::int64_t>(size_of(dtype));
  const __m512 a = load_floats(row + bytes * first, dtype, first_lanes16(dim - first));
  const __m512 b = load_floats(row + bytes * (first + 16), dtype, first_lanes16(dim - first - 16));
  const __m512i high = to_bf16(a, b);
  if (term == 0) return high;
  const __m512 high_a = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(high)), 16));
  const __m512 high_b =
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(high, 1)), 16));
  return to_bf16(_mm512_sub_ps(a, high_a), _mm512_sub_ps(b, high_b));
}

/// Keys that a query row sees, [first, end), of the task's range.
struct Visible {
  std::int32_t first, end;
};
PAGEDKV_AMX_INLINE Visible visible_keys(const AttendParams& params, const AttendTask& task, int row) noexcept {
  const std::int64_t position = task.first_pos + row;
  const std::int64_t left = params.window_left < 0 ? task.kv_begin : position - params.window_left;
  const std::int64_t right = params.causal ? position + 1 : task.kv_end;
  const std::int64_t first = std::clamp(left, task.kv_begin, task.kv_end);
  return {static_cast<std::int32_t>(first), static_cast<std::int32_t>(std::clamp(right, first, task.kv_end))};
}

/// What turns a row's unnormalised sums into its state: out = factor * sums.
struct RowEnd {
  float factor;
  float lse;  ///< natural logarithm; -inf for a row without keys
};
/// `max` in base 2, `sum` of 2^(logit - max). The sink of the head joins if this part begins the keys.
[[maybe_unused]] RowEnd end_row(const AttendParams& params, const AttendTask& task, int head, float max,
                                float sum) noexcept {
  if (params.sinks != nullptr && task.first_part) {
    const float logit = params.sinks[task.kv_head * params.group + static_cast<unsigned>(head)];
    if (logit != kHiddenLogit) {
      const float sink = std::clamp(logit * kLog2E, kLowestLogit, -kLowestLogit);
      const float joint_max = std::max(max, sink), scale = __builtin_exp2f(max - joint_max);
      const float joint_sum = sum * scale + __builtin_exp2f(sink - joint_max);
      return {scale / joint_sum, kLn2 * joint_max + __builtin_logf(joint_sum)};
    }
  }
  if (sum == 0) return {0.f, -__builtin_inff()};
  if (!(sum > 0)) return {sum, sum};  // NaN: weights lose it where they are rounded to bf16
  return {1 / sum, kLn2 * max + __builtin_logf(sum)};
}

[[maybe_unused]] void write_lse(const AttendParams& params, const AttendTask& task, int row, int head,
                                float lse) noexcept {
  if (task.partial_out != nullptr) {
    task.partial_lse[row * static_cast<int>(params.group) + head] = lse;
  } else if (params.lse != nullptr) {
    params.lse[row_offset(params, task, row, head, 1)] = lse;
  }
}

/// Where a row's result goes: its partial state or the output.
struct OutputRow {
  std::byte* to;
  DType dtype;

  /// Elements [first, first + 16) of a row of `dim`.
  PAGEDKV_AMX_INLINE void store(int first, int dim, __m512 x) const noexcept {
    store_floats(to + first * static_cast<int>(size_of(dtype)), dtype, first_lanes16(dim - first), x);
  }
  /// Elements [first, first + 32): whole cache lines of bf16.
  PAGEDKV_AMX_INLINE void store(int first, int dim, __m512 low, __m512 high) const noexcept {
    if (dtype == DType::bf16) {
      _mm512_mask_storeu_epi16(to + first * 2, first_lanes32(dim - first), to_bf16(low, high));
    } else {
      store(first, dim, low), store(first + 16, dim, high);
    }
  }
};
PAGEDKV_AMX_INLINE OutputRow output_row(const AttendParams& params, const AttendTask& task, int row,
                                        int head) noexcept {
  if (task.partial_out != nullptr) {
    const std::int64_t index = std::int64_t{row} * params.group + head;
    return {reinterpret_cast<std::byte*>(task.partial_out + index * params.v_head_dim), DType::f32};
  }
  return {static_cast<std::byte*>(params.out) +
              row_offset(params, task, row, head, params.v_head_dim) * static_cast<int>(size_of(params.out_dtype)),
          params.out_dtype};
}

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
