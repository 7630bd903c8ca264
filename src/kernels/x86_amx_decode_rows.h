// The K and V rows of a decode step: tiles in place or copied, rows that are not finite set aside, steps ahead
// prefetched.
//
// Layer: kernels, only for the x86_amx_decode*.cc files (see x86_amx_instructions.h for the compile region).
#pragma once

#include "kernels/x86_amx_kernels.h"
#include "kernels/x86_amx_rows.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

/// Scratch for rows that cannot stand in place, of a step and of the one beside it. K32 and V32 are the head dimensions
/// rounded up to 32.
struct RowCopies {
  std::byte* k[2];  ///< [step][K32]
  std::byte* v[2];  ///< [step][V32]
};

/// Cuts scratch into pieces that are 64-byte aligned; with a null base, only counts their bytes.
class ScratchCutter {
 public:
  explicit ScratchCutter(std::byte* base) noexcept : base_(base) {}

  std::byte* take(std::size_t count) noexcept {
    std::byte* const piece = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += (count + 63) / 64 * 64;
    return piece;
  }
  float* take_floats(std::size_t count) noexcept { return reinterpret_cast<float*>(take(count * 4)); }
  RowCopies take_rows(const AttendParams& params, std::size_t step) noexcept {
    const auto k32 = static_cast<std::size_t>(ceil_to(static_cast<int>(params.head_dim), 32));
    const auto v32 = static_cast<std::size_t>(ceil_to(static_cast<int>(params.v_head_dim), 32));
    RowCopies copies{};
    for (std::byte*& piece : copies.k) piece = take(step * k32 * 2);
    for (std::byte*& piece : copies.v) piece = take(step * v32 * 2);
    return copies;
  }

  std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

/// The rows of two steps of kTiles tiles each, `half` 0 and 1.
template <int kTiles>
class StepRows {
 public:
  static constexpr int kStep = kTiles * kTileRows;  ///< Tokens.

  /// A token of the step whose V is not finite, and that row.
  struct Exception {
    int index;
    const std::byte* v;
  };

  StepRows(const AttendParams& params, const AttendTask& task, const KvRows& rows, const RowCopies& copies) noexcept
      : params_(params),
        task_(task),
        rows_(rows),
        copies_(copies),
        k_bytes_(ceil_to(static_cast<int>(params.head_dim), 32) * 2),
        v_bytes_(ceil_to(static_cast<int>(params.v_head_dim), 32) * 2) {
    place_last_tiles(false);
  }

  /// Lets tiles take rows that are not whole tiles wide in place, or not (the default: such rows are copied beside
  /// zeros). A tile in place reads no more than its row: the last one begins earlier, and repeats dims of the one
  /// before.
  void place_last_tiles(bool in_place) noexcept {
    const auto last = [in_place](std::uint32_t dim) {
      const int end = static_cast<int>(dim);
      return (in_place && end >= 32 ? end : ceil_to(end, 32)) - 32;
    };
    last_key_dim_ = last(params_.head_dim), last_value_dim_ = last(params_.v_head_dim);
    are_in_place_ = last_key_dim_ + 32 == static_cast<int>(params_.head_dim) &&
                    last_value_dim_ + 32 == static_cast<int>(params_.v_head_dim);
  }

  /// The first dim of tile `i` of a row.
  PAGEDKV_AMX_INLINE int key_dim(int i) const noexcept { return std::min(i * 32, last_key_dim_); }
  PAGEDKV_AMX_INLINE int value_dim(int i) const noexcept { return std::min(i * 32, last_value_dim_); }

  /// Finds the tiles of the step at token `step`.
  void find(std::int64_t step, std::size_t half) noexcept {
    for (int u = 0; u < kTiles; ++u) tiles_[half][u] = find_tile(step + u * kTileRows, u, half);
  }

  PAGEDKV_AMX_INLINE const TileRows& tile(std::size_t half, int index) const noexcept { return tiles_[half][index]; }

  /// Rows of V that hold an infinity or a NaN become zeros, to be added by themselves to the columns that see them.
  void set_exceptions_aside(std::int64_t step, std::size_t half) noexcept {
    num_exceptions_ = 0;
    const std::int64_t end = std::min(step + kStep, task_.kv_end);
    for (std::int64_t token = std::max(step, task_.kv_begin); token < end; ++token) {
      const int index = static_cast<int>(token - step), tile = index / kTileRows, row = index % kTileRows;
      TileRows& rows = tiles_[half][tile];
      if (is_finite_row(rows.v + row * rows.v_stride, params_.kv_dtype, params_.v_head_dim)) continue;
      std::byte* const copy = copies_.v[half] + tile * kTileRows * v_bytes_;
      for (int r = 0; rows.v != copy && r < kTileRows; ++r) {
        copy_row(copy + r * v_bytes_, rows.v + r * rows.v_stride, rows_.v_bytes, v_bytes_);
      }
      rows.v = copy, rows.v_stride = v_bytes_;
      std::memset(copy + row * v_bytes_, 0, static_cast<std::size_t>(v_bytes_));
      exceptions_[num_exceptions_++] = {index, rows_.at(token).v};
    }
  }

  const Exception* begin() const noexcept { return exceptions_; }  ///< Rows of V set aside.
  const Exception* end() const noexcept { return exceptions_ + num_exceptions_; }

 private:
  /// The rows of tokens [token, token + 16): in place if they are whole in one page, else copied, zeros where the task
  /// has no key.
  TileRows find_tile(std::int64_t token, int tile, std::size_t half) noexcept {
    const std::int64_t begin = std::max(token, task_.kv_begin), end = std::min(token + kTileRows, task_.kv_end);
    if (end - begin == kTileRows) {
      const KvRows::Run run = rows_.at(token);
      if (run.rows >= kTileRows && are_in_place_) return {run.k, run.v, rows_.k_stride, rows_.v_stride};
    }
    std::byte* const k = copies_.k[half] + tile * kTileRows * k_bytes_;
    std::byte* const v = copies_.v[half] + tile * kTileRows * v_bytes_;
    std::memset(k, 0, static_cast<std::size_t>(kTileRows * k_bytes_));
    std::memset(v, 0, static_cast<std::size_t>(kTileRows * v_bytes_));
    for (std::int64_t t = begin; t < end;) {
      const KvRows::Run run = rows_.at(t);
      const std::int64_t count = std::min(run.rows, end - t);
      for (std::int64_t i = 0; i < count; ++i) {
        copy_row(k + (t - token + i) * k_bytes_, run.k + i * rows_.k_stride, rows_.k_bytes, k_bytes_);
        copy_row(v + (t - token + i) * v_bytes_, run.v + i * rows_.v_stride, rows_.v_bytes, v_bytes_);
      }
      t += count;
    }
    return {k, v, k_bytes_, v_bytes_};
  }

  const AttendParams& params_;
  const AttendTask& task_;
  const KvRows& rows_;
  const RowCopies copies_;
  const std::int64_t k_bytes_, v_bytes_;  // of a copied row
  int last_key_dim_, last_value_dim_;     // first dim of a row's last tile
  bool are_in_place_;                     // tiles take rows as they lie in pages
  TileRows tiles_[2][std::size_t{kTiles}];
  int num_exceptions_ = 0;
  Exception exceptions_[std::size_t{kStep}];
};

/// While a step is at hand, the one after the next is prefetched, here or, behind the end, in the next task; V a step
/// later than K if it is needed later and lies in OS pages of its own.
template <int kStep>
class StepPrefetcher {
 public:
  StepPrefetcher(const AttendParams& params, const AttendTask& task, const KvRows& rows, std::int64_t end_key) noexcept
      : params_(params),
        task_(task),
        rows_(rows),
        end_key_(end_key),
        values_lag_(!rows.v_is_part_of_k && kTileRows * std::min(rows.k_bytes, rows.v_bytes) >= kOsPageBytes) {}

  /// Before the task's first step.
  void begin(std::int64_t step) noexcept { find_rows(ahead_[step / kStep % 2], step + 2 * kStep); }

  /// When `step` is at hand; step() will be called about `num_steps` times.
  void start(std::int64_t step, int num_steps) noexcept {
    const RowsAhead& next = ahead_[step / kStep % 2];
    RowsAhead& after = ahead_[(step / kStep + 1) % 2];
    find_rows(after, step + 3 * kStep);
    lines_.start(next, &after, static_cast<std::size_t>(num_steps));
  }

  PAGEDKV_AMX_INLINE void step() noexcept { lines_.step(); }

  /// Asks for the query rows of the next task, if that is a decode too.
  void fetch_next_queries() const noexcept {
    if (task_.next == nullptr || task_.next->num_rows * std::int64_t{params_.group} > kDecodeColumns) return;
    const auto bytes = static_cast<std::int64_t>(size_of(params_.q_dtype));
    for (int row = 0; row < task_.next->num_rows; ++row) {
      prefetch_lines(
          static_cast<const std::byte*>(params_.q) + row_offset(params_, *task_.next, row, 0, params_.head_dim) * bytes,
          std::int64_t{params_.group} * params_.head_dim * bytes);
    }
  }

 private:
  void find_rows(RowsAhead& ahead, std::int64_t token) const noexcept {
    ahead.clear();
    if (values_lag_) add_step(ahead, token - kStep, RowParts::kValues);
    add_step(ahead, token, values_lag_ ? RowParts::kKeys : RowParts::kBoth);
  }

  void add_step(RowsAhead& ahead, std::int64_t token, RowParts parts) const noexcept {
    if (token < end_key_) {
      add_rows_ahead(ahead, rows_, token, std::min<std::int64_t>(kStep, end_key_ - token), parts);
    } else if (const AttendTask* next = task_.next; next != nullptr) {
      const std::int64_t end_step = (end_key_ + kStep - 1) / kStep * kStep;
      const std::int64_t begin = next->kv_begin / kStep * kStep + (token - end_step);
      const std::int64_t first = std::max(begin, next->kv_begin), end = std::min(begin + kStep, next->kv_end);
      if (first < end) add_rows_ahead(ahead, KvRows(params_, *next), first, end - first, parts);
    }
  }

  const AttendParams& params_;
  const AttendTask& task_;
  const KvRows& rows_;
  const std::int64_t end_key_;
  const bool values_lag_;
  RowsAhead ahead_[2];         // of the step that is being prefetched and of the one behind it
  StreamPrefetcher<4> lines_;  // more are slower here: the tile loads make streams of their own
};

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
