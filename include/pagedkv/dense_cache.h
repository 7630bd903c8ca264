// DenseCache: the cache of a fixed batch with dense tensors, over pages: for code that thinks in [batch, heads, len,
// dim].
//
// Layer: cache. Nothing is reserved beyond the tokens held, and growing copies nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "pagedkv/attention.h"
#include "pagedkv/export.h"
#include "pagedkv/page_pool.h"
#include "pagedkv/result.h"
#include "pagedkv/types.h"

namespace pagedkv {

struct DenseCacheOptions {
  std::uint32_t batch_size = 0;  ///< 1..65536.
  std::uint32_t num_layers = 0;  ///< 1..4096.
  std::uint32_t num_heads = 0;
  std::uint32_t head_dim = 0;        ///< 1..1024.
  std::uint32_t max_seq_len = 2048;  ///< At most kMaxSequenceTokens.
  DType dtype = DType::f32;          ///< Of what is stored; tensors given are converted.
  std::uint32_t page_size = 16;      ///< Tokens a page, 1..256. A page holds one layer of one row of the batch.
  /// Lets the new tokens of one `cached_attention` see those after them, as caches without a mask do.
  bool new_tokens_see_later_ones = false;
  /// A pool to take pages from, of page_bytes equal to `DenseCache::page_bytes(options)`; kept alive. Null = its own.
  const PagePool* pool = nullptr;
  std::string_view target = {};  ///< Kernel target by name; empty = the active one. Copied.
};

/// K and V of one layer, in place: [batch_size][num_heads][seq_len][head_dim]. Rows of a head are contiguous within
/// each run of `page_size` tokens. Valid until the next `reset` or the end of the cache.
struct DenseKv {
  std::uint32_t batch_size = 0, num_heads = 0, head_dim = 0;
  std::uint64_t seq_len = 0;
  std::uint32_t page_size = 0;
  DType dtype = DType::f32;
  KvView pages = {};
  std::span<const std::int32_t> page_table = {};  ///< [batch_size][page_table_stride], set as far as there are tokens
  std::size_t page_table_stride = 0;

  /// Row of a token: [head_dim] elements. Requires: indices in range.
  [[nodiscard]] const void* k_row(std::uint32_t batch, std::uint32_t head, std::uint64_t token) const noexcept {
    return static_cast<const std::byte*>(pages.k) + page_of(batch, token) * pages.k_page_stride +
           head * pages.k_head_stride + static_cast<std::int64_t>(token % page_size) * pages.k_token_stride;
  }
  [[nodiscard]] const void* v_row(std::uint32_t batch, std::uint32_t head, std::uint64_t token) const noexcept {
    return static_cast<const std::byte*>(pages.v) + page_of(batch, token) * pages.v_page_stride +
           head * pages.v_head_stride + static_cast<std::int64_t>(token % page_size) * pages.v_token_stride;
  }

 private:
  [[nodiscard]] std::int64_t page_of(std::uint32_t batch, std::uint64_t token) const noexcept {
    return page_table[batch * page_table_stride + token / page_size];
  }
};

/// Threads: one at a time.
class PAGEDKV_API DenseCache {
 public:
  /// Errors: kInvalidArgument (a shape out of range, a pool of other pages), kClosed (a pool that was moved from),
  ///         kUnsupported (unknown target), kOsError, kOutOfMemory
  static Result<DenseCache> create(const DenseCacheOptions& options) noexcept;
  /// Bytes of the pages that a cache of these options takes. Errors: kInvalidArgument
  static Result<std::uint64_t> page_bytes(const DenseCacheOptions& options) noexcept;

  /// Appends new tokens to a layer and gives all that the layer holds. Layers have lengths of their own.
  ///
  /// Shape:  new_k, new_v [batch_size][num_heads][new_len][head_dim], any dtype; new_len is found from their size
  /// Errors: kInvalidArgument  a layer or size out of range, or more than max_seq_len tokens; nothing changed
  ///         kOutOfPages (of a shared pool), kCancelled, kOsError, kOutOfMemory; nothing changed
  /// Cost:   one pass over the new tokens; what is held is not touched.
  Result<DenseKv> update(std::uint32_t layer, ConstTensor new_k, ConstTensor new_v) noexcept;
  /// What a layer holds, perhaps nothing. Errors: kInvalidArgument (layer)
  Result<DenseKv> get(std::uint32_t layer) const noexcept;
  /// Copies what a layer holds.
  ///
  /// Shape:  k, v [batch_size][num_heads][seq_len][head_dim], any dtype
  /// Errors: kInvalidArgument (layer or size)
  Result<void> copy(std::uint32_t layer, Tensor k, Tensor v) const noexcept;

  /// Appends k and v to a layer, then attends with q over all that the layer holds; each new token sees those up to its
  /// own. Scores are scaled by 1 / sqrt(head_dim).
  ///
  /// Shape:  q, k, v [batch_size][num_heads][new_len][head_dim]; out [batch_size][new_len][num_heads * head_dim]
  /// Errors: as `update`, and kInvalidArgument (batch_size * new_len * num_heads above kMaxHeadRows); the layer is as
  /// it
  ///         was then.
  Result<void> cached_attention(std::uint32_t layer, ConstTensor q, ConstTensor k, ConstTensor v, Tensor out) noexcept;

  /// Empties all layers and keeps their memory.
  void reset() noexcept;
  [[nodiscard]] Result<std::uint64_t> seq_length(std::uint32_t layer) const noexcept;  ///< Errors: kInvalidArgument
  [[nodiscard]] const DenseCacheOptions& options() const noexcept;
  [[nodiscard]] PoolStats pool_stats() const noexcept;

  DenseCache(DenseCache&&) noexcept;
  DenseCache& operator=(DenseCache&&) noexcept;
  ~DenseCache();

 private:
  struct PAGEDKV_LOCAL Impl;
  explicit DenseCache(std::unique_ptr<Impl>) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pagedkv
