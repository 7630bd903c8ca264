// One block of keys as the generic kernels see it: row pointers gathered through the page table, run by run.
//
// Layer: kernels. Blocks lie at absolute positions, so that a row's arithmetic depends neither on page size nor on
// where pages are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attend.h"

namespace pagedkv::kernels {

inline constexpr std::int64_t kBlockKeys = 64;  // keys of a block
inline constexpr std::size_t kSlabDims = 64;    // elements of a row that are converted and computed at a time

/// Rows of K and V of keys begin .. begin + kBlockKeys - 1 of one head. Entries outside [first, last) repeat the
/// nearest valid row, so that every pointer may be read.
struct Block {
  /// Bytes that lie side by side.
  struct Run {
    const std::byte* begin;
    const std::byte* end;
  };

  std::int64_t begin = 0;
  std::int64_t first = 0, last = 0;  ///< Valid keys, relative to `begin`; first < last.
  const std::byte* k[kBlockKeys];
  const std::byte* v[kBlockKeys];
  Run runs[2 * kBlockKeys];  ///< The same rows, joined where they touch; V only if it does not lie inside K.
  std::size_t num_runs = 0;

  /// Block that holds the task's key `key`.
  void gather(const AttendParams& params, const AttendTask& task, std::int64_t key) noexcept {
    begin = key / kBlockKeys * kBlockKeys;
    first = std::max(task.kv_begin, begin) - begin;
    last = std::min(task.kv_end, begin + kBlockKeys) - begin;
    num_runs = 0;
    const KvView& view = params.pages;
    const std::int64_t page_size = params.page_size, head = task.kv_head;
    const std::int64_t element = static_cast<std::int64_t>(size_of(params.kv_dtype));
    const bool reads_values = !values_lie_in_keys(params);
    const std::int32_t* page = task.page_table + (begin + first) / page_size;
    std::int64_t slot = (begin + first) % page_size;
    for (std::int64_t index = first; index < last; ++page, slot = 0) {
      const std::int64_t count = std::min(last - index, page_size - slot);
      const auto* const k_row = static_cast<const std::byte*>(view.k) + *page * view.k_page_stride +
                                head * view.k_head_stride + slot * view.k_token_stride;
      const auto* const v_row = static_cast<const std::byte*>(view.v) + *page * view.v_page_stride +
                                head * view.v_head_stride + slot * view.v_token_stride;
      add_rows(k + index, k_row, count, view.k_token_stride, params.head_dim * element, true);
      add_rows(v + index, v_row, count, view.v_token_stride, params.v_head_dim * element, reads_values);
      index += count;
    }
    std::fill_n(k, first, k[first]);
    std::fill_n(v, first, v[first]);
    std::fill(k + last, k + kBlockKeys, k[last - 1]);
    std::fill(v + last, v + kBlockKeys, v[last - 1]);
  }

 private:
  void add_rows(const std::byte** rows, const std::byte* row, std::int64_t count, std::int64_t stride,
                std::int64_t bytes, bool is_new) noexcept {
    if (is_new && stride == bytes) add_run(row, count * bytes);
    for (std::int64_t i = 0; i < count; ++i, row += stride) {
      rows[i] = row;
      if (is_new && stride != bytes) add_run(row, bytes);
    }
  }

  void add_run(const std::byte* from, std::int64_t bytes) noexcept {
    if (num_runs > 0 && runs[num_runs - 1].end == from) {
      runs[num_runs - 1].end = from + bytes;
    } else {
      runs[num_runs++] = {from, from + bytes};
    }
  }
};

/// Brings the rows of a later block into the caches, a few lines at each step of the work on this one.
///
/// Memory delivers at its full rate only if requests are spread evenly: in bursts they fill the buffers that the work
/// at hand needs.
class Prefetcher {
 public:
  /// Nothing to bring.
  Prefetcher() = default;

  /// The rows of `block`, over about `steps` steps.
  Prefetcher(const Block& block, std::size_t steps) noexcept
      : run_(block.runs), last_run_(block.runs + block.num_runs), at_(block.runs[0].begin) {
    std::size_t lines = 0;
    for (const Block::Run* run = run_; run != last_run_; ++run) {
      lines += static_cast<std::size_t>(run->end - run->begin + kLineBytes - 1) / kLineBytes;
    }
    pace_ = (lines << kFraction) / (steps + 1) + 1;
  }

  void step() noexcept {
    credit_ += pace_;
    const std::byte* at = at_;
    for (std::size_t count = credit_ >> kFraction; count > 0 && run_ != last_run_; --count) {
      __builtin_prefetch(at);
      at += kLineBytes;
      if (at < run_->end) continue;
      if (++run_ != last_run_) at = run_->begin;
    }
    at_ = at;
    credit_ &= (std::size_t{1} << kFraction) - 1;
  }

 private:
  static constexpr std::ptrdiff_t kLineBytes = 64;
  static constexpr int kFraction = 16;  // bits of `pace_` and `credit_` behind the point

  const Block::Run* run_ = nullptr;
  const Block::Run* last_run_ = nullptr;
  const std::byte* at_ = nullptr;
  std::size_t pace_ = 0, credit_ = 0;  // lines a step, and lines owed
};

/// Keys of a block that one row sees by causality and window, relative to the block's begin; empty if first >= last.
struct Span {
  std::int64_t first, last;
};

}  // namespace pagedkv::kernels
