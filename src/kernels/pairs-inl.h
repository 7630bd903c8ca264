// Slabs of pairs of bf16 for the products of many query rows: dims of queries and keys, keys of values. Compiled once a
// target.
//
// Layer: kernels. Nothing is computed here but the terms of queries: the products are those of x86_bf16_dots.h.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "format/codec-inl.h"
#include "format/convert.h"
#include "hwy/highway.h"
#include "kernels/block.h"
#include "kernels/stored-inl.h"
#include "kernels/tile-inl.h"
#include "kernels/x86_bf16_dots.h"

#if defined(PAGEDKV_KERNELS_PAIRS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_KERNELS_PAIRS_INL_H_
#undef PAGEDKV_KERNELS_PAIRS_INL_H_
#else
#define PAGEDKV_KERNELS_PAIRS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
#if HWY_TARGET == HWY_AVX3
namespace hn = hwy::HWY_NAMESPACE;
using format::HWY_NAMESPACE::CodecBf16;
using format::HWY_NAMESPACE::CodecF16;
using format::HWY_NAMESPACE::CodecF32;
using format::HWY_NAMESPACE::convert_elements;
static_assert(kSlabUnits == bf16_dots::kSlabUnits && kMaxTileRows == bf16_dots::kMaxRows);

// A query in bf16 terms that sum up to it, to 8 bits of mantissa each. `row` is left with what they leave.
template <std::size_t kTerms>
void store_query_terms(float* row, std::size_t dims, float* q, std::size_t slab_stride, std::size_t term_stride) {
  constexpr std::size_t kSlabDims = 2 * kSlabUnits;
  for (; dims > 0; row += kSlabDims, q += slab_stride) {
    const std::size_t count = std::min(kSlabDims, dims);
    for (std::size_t term = 0; term < kTerms; ++term) {
      auto* const rounded = reinterpret_cast<bf16_t*>(q + term * term_stride);
      convert_elements<CodecF32, CodecBf16>(row, count, rounded);
      for (std::size_t dim = 0; dim < count; ++dim) row[dim] -= format::to_f32(rounded[dim]);
    }
    dims -= count;
  }
}

// `dims` elements of the rows of K of a vector's keys as bf16: the rows themselves or, of f16, rounded to `to`.
template <class Codec>
HWY_INLINE void rows_as_bf16(const std::byte* const* rows, std::size_t dim, std::size_t dims,
                             bf16_t (*to)[2 * kSlabUnits], const std::byte* (&as)[kLanes]) {
  for (std::size_t i = 0; i < kLanes; ++i) {
    as[i] = rows[i] + dim * sizeof(bf16_t);
    if constexpr (!std::is_same_v<Codec, CodecBf16>) {
      convert_elements<Codec, CodecBf16>(reinterpret_cast<const typename Codec::Stored*>(as[i]), dims, to[i]);
      as[i] = reinterpret_cast<const std::byte*>(to[i]);
    }
  }
}

/// K [key][dims] to slab [dims / 2][kBlockKeys], transposed.
template <class Codec>
void pack_key_pairs(const Block& block, std::size_t dim_begin, std::size_t dims, float* slab,
                    Prefetcher& prefetcher) noexcept {
  auto* const units_of = reinterpret_cast<std::uint32_t*>(slab);
  const std::size_t whole = dims / 2;
  for (std::size_t key = static_cast<std::size_t>(block.first) / kLanes * kLanes;
       key < static_cast<std::size_t>(block.last); key += kLanes) {
    bf16_t rounded[kLanes][2 * kSlabUnits];
    const std::byte* rows[kLanes];
    rows_as_bf16<Codec>(block.k + key, dim_begin, dims, rounded, rows);
    std::size_t unit = 0;
    for (; unit + kTileUnits <= whole; unit += kTileUnits) {
      prefetcher.step();
      VecU32 units[kTileUnits];
      transpose_units(rows, 2 * unit * sizeof(bf16_t), units);
      PAGEDKV_UNROLL
      for (std::size_t i = 0; i < kTileUnits; ++i) {
        hn::StoreU(units[i], U32(), units_of + (unit + i) * kBlockKeys + key);
      }
    }
    for (; 2 * unit < dims; ++unit) {  // the last unit may be half a one: never past the row
      for (std::size_t i = 0; i < kLanes; ++i) {
        std::uint32_t pair = 0;
        std::memcpy(&pair, rows[i] + 2 * unit * sizeof(bf16_t),
                    std::min<std::size_t>(2, dims - 2 * unit) * sizeof(bf16_t));
        units_of[unit * kBlockKeys + key + i] = pair;
      }
    }
  }
}

// `count` <= kLanes elements of a row as bf16, each in the low half of a lane, and zeros.
template <class Codec>
HWY_INLINE VecU32 load_halves(const std::byte* row, std::size_t dim, std::size_t count) {
  const hn::Rebind<std::uint16_t, F32> d16;
  const auto* const from = reinterpret_cast<const typename Codec::Stored*>(row) + dim;
  if (std::is_same_v<Codec, CodecBf16> && count == kLanes) {
    return hn::PromoteTo(U32(), hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from)));
  }
  bf16_t elements[kLanes] = {};
  convert_elements<Codec, CodecBf16>(from, count, elements);
  return hn::PromoteTo(U32(), hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(elements)));
}

/// V [key][dims] to slab [kBlockKeys / 2][bf16_dots::kValueDims]: two keys of a dim in a unit. A key that the block has
/// not is a row that it has: `weigh` multiplies no such half.
template <class Codec>
void pack_value_pairs(const Block& block, std::size_t dim_begin, std::size_t dims, float* slab,
                      Prefetcher& prefetcher) noexcept {
  auto* const units_of = reinterpret_cast<std::uint32_t*>(slab);
  for (std::int64_t key = block.first / 2 * 2; key < block.last; key += 2) {
    std::uint32_t* const to = units_of + static_cast<std::size_t>(key / 2) * bf16_dots::kValueDims;
    if (static_cast<std::size_t>(key) % kPackedKeys == 0) prefetcher.step();
    for (std::size_t dim = 0; dim < dims; dim += kLanes) {
      const std::size_t count = std::min(kLanes, dims - dim);
      const VecU32 even = load_halves<Codec>(block.v[key], dim_begin + dim, count);
      const VecU32 odd = load_halves<Codec>(block.v[key + 1], dim_begin + dim, count);
      hn::StoreU(hn::Or(even, hn::ShiftLeft<16>(odd)), U32(), to + dim);
    }
  }
}

/// The steps of many rows with AVX512_BF16, over pages of bf16, or of f16 that may be rounded to it with their queries.
template <class Codec>
ManyRows many_rows_in_pairs(DType q_dtype) noexcept {
  const bool is_one_term = q_dtype == DType::bf16 || std::is_same_v<Codec, CodecF16>;
  return {.dims_per_unit = 2,
          .query_terms = is_one_term ? std::size_t{1} : std::size_t{2},
          .value_dims = bf16_dots::kValueDims,
          .scales_scores = true,
          .store_query = is_one_term ? &store_query_terms<1> : &store_query_terms<2>,
          .pack_keys = &pack_key_pairs<Codec>,
          .score = &bf16_dots::score,
          .pack_values = &pack_value_pairs<Codec>,
          .weigh = &bf16_dots::weigh};
}
#endif

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_KERNELS_PAIRS_INL_H_
