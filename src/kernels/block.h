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
  std::int64_t begin = 0;
  std::int64_t first = 0, last = 0;  ///< Valid keys, relative to `begin`; first < last.
  const std::byte* k[kBlockKeys];
  const std::byte* v[kBlockKeys];

  /// Block that holds the task's key `key`.
  void gather(const AttendParams& params, const AttendTask& task, std::int64_t key) noexcept {
    begin = key / kBlockKeys * kBlockKeys;
    first = std::max(task.kv_begin, begin) - begin;
    last = std::min(task.kv_end, begin + kBlockKeys) - begin;
    const KvView& view = params.pages;
    const std::int64_t page_size = params.page_size, head = task.kv_head;
    std::int64_t index = first;
    while (index < last) {
      const std::int64_t token = begin + index, slot = token % page_size;
      const std::int64_t page = task.page_table[token / page_size];
      const std::int64_t run_end = std::min(last, index + page_size - slot);
      const auto* k_row = static_cast<const std::byte*>(view.k) + page * view.k_page_stride +
                          head * view.k_head_stride + slot * view.k_token_stride;
      const auto* v_row = static_cast<const std::byte*>(view.v) + page * view.v_page_stride +
                          head * view.v_head_stride + slot * view.v_token_stride;
      for (; index < run_end; ++index) {
        k[index] = k_row;
        v[index] = v_row;
        k_row += view.k_token_stride;
        v_row += view.v_token_stride;
      }
    }
    std::fill_n(k, first, k[first]);
    std::fill_n(v, first, v[first]);
    std::fill(k + last, k + kBlockKeys, k[last - 1]);
    std::fill(v + last, v + kBlockKeys, v[last - 1]);
  }
};

/// Brings the rows of a later block into the caches, a few lines at each step of the work on this one.
///
/// Memory delivers at its full rate only if requests are spread evenly: in bursts they fill the buffers that the work
/// at hand needs. `pace` sets how many lines a step asks for, as a fraction of 2^16.
class Prefetcher {
 public:
  /// Nothing to bring.
  Prefetcher() = default;

  /// The rows of `block`, over about `steps` steps. `v_bytes` is 0 if V lies inside K.
  Prefetcher(const Block& block, std::size_t k_bytes, std::size_t v_bytes, std::size_t steps) noexcept
      : row_(block.k + block.first),
        k_end_(block.k + block.last),
        v_begin_(block.v + block.first),
        bytes_(k_bytes),
        v_bytes_(v_bytes) {
    const auto rows = static_cast<std::size_t>(block.last - block.first);
    lines_ = rows * (lines_of(k_bytes) + lines_of(v_bytes));
    pace_ = (lines_ << 16) / (steps + 1) + 1;
  }

  void step() noexcept {
    credit_ += pace_;
    for (; credit_ >= kLine; credit_ -= kLine) line();
  }

 private:
  static constexpr std::size_t kLineBytes = 64, kLine = std::size_t{1} << 16;

  static std::size_t lines_of(std::size_t bytes) noexcept { return (bytes + kLineBytes - 1) / kLineBytes; }

  void line() noexcept {
    if (lines_ == 0) return;
    --lines_;
    __builtin_prefetch(*row_ + offset_);
    offset_ += kLineBytes;
    if (offset_ < bytes_) return;
    offset_ = 0;
    if (++row_ != k_end_) return;
    row_ = v_begin_;
    bytes_ = v_bytes_;
  }

  const std::byte* const* row_ = nullptr;
  const std::byte* const* k_end_ = nullptr;
  const std::byte* const* v_begin_ = nullptr;
  std::size_t bytes_ = 0, v_bytes_ = 0, offset_ = 0;
  std::size_t lines_ = 0, pace_ = 0, credit_ = 0;
};

/// Keys of a block that one row sees by causality and window, relative to the block's begin; empty if first >= last.
struct Span {
  std::int64_t first, last;
};

}  // namespace pagedkv::kernels
