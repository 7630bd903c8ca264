// Linear: one weight matrix, packed once for oneDNN, and its product with any number of rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace serving {

enum class WeightType : std::uint8_t { kF32, kBf16 };

/// Rows beyond the last one of every activation matrix that products may read and overwrite: a product computes whole
/// tiles of rows. `padded_rows` says how many rows a buffer needs.
inline constexpr std::size_t kMaxTileRows = 64;
constexpr std::size_t padded_rows(std::size_t rows) {
  return (rows + kMaxTileRows - 1) / kMaxTileRows * kMaxTileRows + kMaxTileRows;
}

/// y = x W^T.
///
/// Result:  a row of y is bitwise the same whichever rows stand beside it (tests/linear_test.cc checks it on the
///          machine at hand): f32 products run for numbers of rows for which oneDNN's kernels sum each element in the
///          same order (measured with AVX2 and AVX-512), and bf16 products always in tiles of 16 rows, since the
///          kernels for fewer rows round differently from the AMX ones. Where oneDNN has no bf16 products (before
///          AVX-512), factors are rounded to bf16 and multiplied in f32: the same precision, twice the memory.
/// Threads: any number at once; parallel in the caller's tbb::task_arena.
class Linear {
 public:
  /// Shape: weights [out_dim][in_dim].
  Linear(std::span<const float> weights, std::size_t out_dim, std::size_t in_dim, WeightType type);
  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;
  ~Linear();

  /// Shape: x [padded_rows(rows)][in_dim], y [padded_rows(rows)][out_dim]; rows from `rows` on hold nothing of use.
  void multiply(const float* x, std::size_t rows, float* y) const;

  [[nodiscard]] std::size_t in_dim() const noexcept;
  [[nodiscard]] std::size_t out_dim() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace serving
