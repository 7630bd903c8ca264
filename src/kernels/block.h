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

/// Keys of a block that one row sees by causality and window, relative to the block's begin; empty if first >= last.
struct Span {
  std::int64_t first, last;
};

}  // namespace pagedkv::kernels
