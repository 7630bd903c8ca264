// One block of keys as the generic kernels see it: row pointers gathered through the page table, run by run.
//
// Layer: kernels. Blocks lie at absolute positions, so that a row's arithmetic depends neither on page size nor on
// where pages are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attend.h"
#include "kernels/prefetch.h"

namespace pagedkv::kernels {

inline constexpr std::int64_t kBlockKeys = 64;  // keys of a block

/// Calls `use(index, k_row, v_row, count)` for the rows of keys [first, last) of a task's block at `begin`, page by
/// page.
template <class Use>
void for_rows_of_block(const AttendParams& params, const AttendTask& task, std::int64_t begin, std::int64_t first,
                       std::int64_t last, const Use& use) noexcept {
  const KvView& view = params.pages;
  const std::int64_t page_size = params.page_size, head = task.kv_head;
  const std::int32_t* page = task.page_table + (begin + first) / page_size;
  std::int64_t slot = (begin + first) % page_size;
  for (std::int64_t index = first; index < last; ++page, slot = 0) {
    const std::int64_t count = std::min(last - index, page_size - slot);
    const auto* const k_row = static_cast<const std::byte*>(view.k) + *page * view.k_page_stride +
                              head * view.k_head_stride + slot * view.k_token_stride;
    const auto* const v_row = static_cast<const std::byte*>(view.v) + *page * view.v_page_stride +
                              head * view.v_head_stride + slot * view.v_token_stride;
    use(index, k_row, v_row, count);
    index += count;
  }
}

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
    for_rows_of_block(params, task, begin, first, last,
                      [&](std::int64_t index, const std::byte* k_row, const std::byte* v_row, std::int64_t count) {
                        for (std::int64_t i = 0; i < count; ++i) {
                          k[index + i] = k_row + i * params.pages.k_token_stride;
                          v[index + i] = v_row + i * params.pages.v_token_stride;
                        }
                      });
    std::fill_n(k, first, k[first]);
    std::fill_n(v, first, v[first]);
    std::fill(k + last, k + kBlockKeys, k[last - 1]);
    std::fill(v + last, v + kBlockKeys, v[last - 1]);
  }
};

/// The rows of the block that lies `blocks` blocks behind the one of the task's key `key`: of this task or, behind its
/// end, of the next one. V only if it does not lie inside K.
inline void find_rows_ahead(RowsAhead& ahead, const AttendParams& params, const AttendTask& task, std::int64_t key,
                            std::int64_t blocks) noexcept {
  ahead.clear();
  const AttendTask* of = &task;
  std::int64_t begin = key / kBlockKeys * kBlockKeys + blocks * kBlockKeys;
  if (begin >= task.kv_end) {
    of = task.next;
    if (of == nullptr || of->kv_begin >= of->kv_end) return;
    begin += of->kv_begin / kBlockKeys * kBlockKeys - (task.kv_end + kBlockKeys - 1) / kBlockKeys * kBlockKeys;
    if (begin >= of->kv_end) return;
  }
  const std::int64_t element = static_cast<std::int64_t>(size_of(params.kv_dtype));
  const bool values_in_keys = values_lie_in_keys(params);
  const auto add = [&](const std::byte* row, std::int64_t count, std::int64_t stride, std::int64_t bytes) {
    if (stride == bytes) return ahead.add(row, count * bytes);
    for (std::int64_t i = 0; i < count; ++i) ahead.add(row + i * stride, bytes);
  };
  for_rows_of_block(params, *of, begin, std::max(of->kv_begin - begin, std::int64_t{0}),
                    std::min(of->kv_end - begin, kBlockKeys),
                    [&](std::int64_t, const std::byte* k_row, const std::byte* v_row, std::int64_t count) {
                      add(k_row, count, params.pages.k_token_stride, params.head_dim * element);
                      if (values_in_keys) return;
                      add(v_row, count, params.pages.v_token_stride, params.v_head_dim * element);
                    });
}

using Prefetcher = StreamPrefetcher<8, PrefetchToL2, true>;

/// Keys of a block that one row sees by causality and window, relative to the block's begin; empty if first >= last.
struct Span {
  std::int64_t first, last;
};

}  // namespace pagedkv::kernels
