// InterleavedCache: one head, f32, K and V of a token side by side; for callers over a foreign function interface.
//
// Layer: cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "pagedkv/export.h"
#include "pagedkv/result.h"

namespace pagedkv {

/// Token rows [K, V][head_dim] one after another in memory that never moves. Memory comes with the tokens.
///
/// Threads: one at a time.
class PAGEDKV_API InterleavedCache {
 public:
  /// Room for `capacity_tokens` (1..2^30) of `head_dim` (1..1024).
  ///
  /// Errors: kInvalidArgument, kOsError, kOutOfMemory
  static Result<InterleavedCache> create(std::uint64_t capacity_tokens, std::uint32_t head_dim) noexcept;

  /// Appends token rows in order.
  ///
  /// Shape:  k, v [rows][head_dim], at least one row
  /// Errors: kInvalidArgument (sizes, or more than fit), kOsError, kOutOfMemory; nothing changed
  Result<void> append(std::span<const float> k, std::span<const float> v) noexcept;

  /// Attention of one query over all tokens: out = softmax(q K^T / sqrt(head_dim)) V; zeros if there are none.
  ///
  /// Shape:  q, out [head_dim]
  /// Errors: kInvalidArgument (sizes), kCancelled, kUnsupported (a bad PAGEDKV_TARGET), kOutOfMemory
  Result<void> attend(std::span<const float> q, std::span<float> out) const noexcept;
  /// Attention of the queries of the last tokens, each up to its own token.
  ///
  /// Shape:  q, out [rows][head_dim]; rows <= num_tokens() and <= kMaxHeadRows
  /// Errors: as `attend`
  /// Cost:   memory linear in rows; no score is kept.
  Result<void> attend_last(std::span<const float> q, std::span<float> out) const noexcept;

  /// Empties it and keeps its memory.
  void reset() noexcept;
  [[nodiscard]] std::uint64_t num_tokens() const noexcept;
  [[nodiscard]] std::uint64_t capacity_tokens() const noexcept;
  [[nodiscard]] std::uint32_t head_dim() const noexcept;
  /// The rows in place: [num_tokens][K, V][head_dim]. Valid while the cache lives.
  [[nodiscard]] std::span<const float> rows() const noexcept;

  InterleavedCache(InterleavedCache&&) noexcept;
  InterleavedCache& operator=(InterleavedCache&&) noexcept;
  ~InterleavedCache();

 private:
  struct PAGEDKV_LOCAL Impl;
  explicit InterleavedCache(std::unique_ptr<Impl>) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pagedkv
