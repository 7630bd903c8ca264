// Products of many query rows with a block of keys by AVX512_BF16: `vdpbf16ps` multiplies 32 pairs of bf16.
//
// Layer: kernels. An ordinary header; what its functions take is said at ManyRows (many_rows.h).
#pragma once

#include "kernels/many_rows.h"

namespace pagedkv::kernels::bf16_dots {

inline constexpr std::size_t kSlabUnits = 64;              // from one query row to the next, and of a key in a slab
inline constexpr std::size_t kValueDims = 2 * kSlabUnits;  // from one pair of keys to the next in a slab of V
inline constexpr std::size_t kMaxRows = 6;

void score(std::size_t rows, const float* q, std::size_t term_stride, const float* slab, std::size_t units, Span keys,
           float* scores, bool accumulate, float scale, Prefetcher& prefetcher) noexcept;

void weigh(std::size_t rows, const float* weights, Span keys, const float* slab, std::size_t dims, const float* decay,
           float* out, std::size_t out_stride, Prefetcher& prefetcher) noexcept;

}  // namespace pagedkv::kernels::bf16_dots
