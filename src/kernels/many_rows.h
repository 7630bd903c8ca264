// How many query rows (prefill, large groups) are multiplied with a block of keys: the steps of one arithmetic.
//
// Layer: kernels. An ordinary header: the kernel that goes through the blocks and the products that it calls may be
// compiled for different instruction sets.
#pragma once

#include <cstddef>

#include "kernels/block.h"

namespace pagedkv::kernels {

/// Products in f32, or of pairs of bf16. A block is packed into a slab of **units** of 32 bits: one f32, or two
/// neighbours, dims of a key and keys of a value. Pointers to units are `float*`, whatever they hold.
///
/// `slab_units` units of each key are in a slab at a time, so dims of more go through the scores in between. Spans are
/// keys of the block. Sums run over units in order, whatever rows stand side by side.
struct ManyRows {
  std::size_t dims_per_unit;  ///< Of queries and keys.
  std::size_t query_terms;    ///< That a query is the sum of, one behind the other.
  std::size_t value_dims;     ///< Of V in one slab.
  bool scales_scores;         ///< `score` multiplies by sm_scale; else the queries it is given have been.

  /// A query row of f32 to its units: those of dims 0, slab_units * dims_per_unit, ... at q, q + slab_stride, ..., the
  /// next term behind all of them. What is left in `row` is nobody's.
  void (*store_query)(float* row, std::size_t dims, float* q, std::size_t slab_stride, std::size_t term_stride);
  /// K from `dim` on to slab [units][kBlockKeys].
  void (*pack_keys)(const Block& block, std::size_t dim, std::size_t dims, float* slab,
                    Prefetcher& prefetcher) noexcept;
  /// scores [rows][kBlockKeys] (+)= q [terms][rows][slab_units] slab, times `scale`; up to 6 rows, as `weigh` takes.
  void (*score)(std::size_t rows, const float* q, std::size_t term_stride, const float* slab, std::size_t units,
                Span keys, float* scores, bool accumulate, float scale, Prefetcher& prefetcher) noexcept;
  /// V from `dim` on to slab [keys / keys of a unit][value_dims], zeros up to a whole vector.
  void (*pack_values)(const Block& block, std::size_t dim, std::size_t dims, float* slab,
                      Prefetcher& prefetcher) noexcept;
  /// out [rows][out_stride] = out * decay + weights [rows][kBlockKeys] slab. No key outside `keys` is multiplied, not
  /// even by 0.
  void (*weigh)(std::size_t rows, const float* weights, Span keys, const float* slab, std::size_t dims,
                const float* decay, float* out, std::size_t out_stride, Prefetcher& prefetcher) noexcept;
};

}  // namespace pagedkv::kernels
