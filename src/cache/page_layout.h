// Where the K and V rows of every layer and head lie in a page, as strides.
//
// Layer: cache. A page is [layer][kv_head][K, V][token][dim]: one head's K rows and V rows are one contiguous run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pagedkv/attention.h"
#include "pagedkv/kv_cache.h"
#include "pagedkv/result.h"
#include "pagedkv/types.h"

namespace pagedkv::cache {

inline constexpr std::uint32_t kMaxLayers = 4096;
inline constexpr std::uint32_t kMaxHeads = 65536;
inline constexpr std::uint32_t kMaxHeadDim = 1024;
inline constexpr std::uint32_t kMaxPageSize = 256;

/// Byte offsets inside a page. Rows are packed: row r of K begins `r * k_row_bytes` behind the head's first.
struct PageLayout {
  std::uint32_t num_layers = 0;  ///< Of a page.
  std::uint32_t num_kv_heads = 0, page_size = 0;
  std::uint32_t k_row_bytes = 0, v_row_bytes = 0;
  std::uint32_t v_offset = 0;     ///< From the first K row of a head to its first V row.
  std::uint64_t head_stride = 0;  ///< From one head to the next.
  std::uint64_t layer_stride = 0;
  std::uint64_t page_bytes = 0;  ///< A multiple of 64.

  /// The layout of pages that hold all layers of `shape`. Runs begin on a cache line where the padding costs at most
  /// 1/32 of the run, and are packed otherwise.
  ///
  /// Errors: kInvalidArgument (a shape out of range)
  static Result<PageLayout> create(const ModelShape& shape, std::uint32_t page_size) noexcept;

  /// Layer number `layer` of a page, in `num_pages` pages that begin at `base`. Requires: layer < num_layers.
  [[nodiscard]] KvView view(const std::byte* base, std::uint32_t layer, std::uint64_t num_pages) const noexcept;
  [[nodiscard]] KvWriteView write_view(std::byte* base, std::uint32_t layer, std::uint64_t num_pages) const noexcept;

  /// Copies the rows of the first `num_tokens` tokens, of all layers and heads. Requires: num_tokens <= page_size.
  void copy_rows(std::byte* to_page, const std::byte* from_page, std::uint32_t num_tokens) const noexcept;
};

}  // namespace pagedkv::cache
