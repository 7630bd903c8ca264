// Rows as they are stored, read in parts: what kernels for a few query rows share. Compiled once a target and format.
//
// Layer: kernels. A part is one of two vectors that hold 2 * kLanes elements of a row: for bf16 the even and the odd
// ones.
#include <algorithm>
#include <cstring>

#include "format/codec-inl.h"
#include "hwy/highway.h"
#include "kernels/block.h"
#include "kernels/tile-inl.h"

#if defined(PAGEDKV_KERNELS_PARTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_KERNELS_PARTS_INL_H_
#undef PAGEDKV_KERNELS_PARTS_INL_H_
#else
#define PAGEDKV_KERNELS_PARTS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using format::HWY_NAMESPACE::F32;
using format::HWY_NAMESPACE::VecF32;

// Part kPart of the 2 * kLanes elements of a row from `dim` on.
template <class Codec, int kPart>
HWY_INLINE VecF32 load_part(const std::byte* row, std::size_t dim) {
  return Codec::template load_part<kPart>(reinterpret_cast<const typename Codec::Stored*>(row) + dim);
}

// `count` <= kLanes elements of a row from `dim` on, and zeros.
template <class Codec>
HWY_INLINE VecF32 load_rest(const std::byte* row, std::size_t dim, std::size_t count) {
  if (count == kLanes) return Codec::load(reinterpret_cast<const typename Codec::Stored*>(row) + dim);
  typename Codec::Stored elements[kLanes] = {};
  std::memcpy(elements, row + dim * sizeof(elements[0]), count * sizeof(elements[0]));
  return Codec::load(elements);
}

// Between elements in order and the halves of blocks, either way round.
inline void exchange_halves_of_blocks([[maybe_unused]] float* row, [[maybe_unused]] std::size_t dims) {
#if HWY_TARGET == HWY_AVX2
  const F32 d;
  for (std::size_t dim = 0; dim + 2 * kLanes <= dims; dim += 2 * kLanes) {
    const VecF32 before = hn::LoadU(d, row + dim), behind = hn::LoadU(d, row + dim + kLanes);
    hn::StoreU(hn::ConcatLowerLower(d, behind, before), d, row + dim);
    hn::StoreU(hn::ConcatUpperUpper(d, behind, before), d, row + dim + kLanes);
  }
#endif
}

/// The order in which a few rows keep queries and sums: part 0 and part 1 of each 2 * kLanes elements, then the rest.
template <class Codec>
void to_parts(float* row, std::size_t dims) noexcept {
  using format::HWY_NAMESPACE::Parts;
  if constexpr (Codec::kParts == Parts::kEvenOdd) {
    const F32 d;
    for (std::size_t dim = 0; dim + 2 * kLanes <= dims; dim += 2 * kLanes) {
      VecF32 even, odd;
      hn::LoadInterleaved2(d, row + dim, even, odd);
      hn::StoreU(even, d, row + dim);
      hn::StoreU(odd, d, row + dim + kLanes);
    }
  } else if constexpr (Codec::kParts == Parts::kHalvesOfBlocks) {
    exchange_halves_of_blocks(row, dims);
  }
}

/// A query row in parts, `width` elements at a time, to q [dims / width][stride]: a product finds those of all rows
/// side by side. `row` has zeros up to a whole vector.
template <class Codec>
void spread_query(float* row, std::size_t dims, std::size_t width, float* q, std::size_t stride) noexcept {
  to_parts<Codec>(row, dims);
  for (std::size_t dim = 0; dim < dims; dim += width, q += stride) std::copy_n(row + dim, width, q);
}

/// The inverse of to_parts.
template <class Codec>
void from_parts(float* row, std::size_t dims) noexcept {
  using format::HWY_NAMESPACE::Parts;
  if constexpr (Codec::kParts == Parts::kEvenOdd) {
    const F32 d;
    for (std::size_t dim = 0; dim + 2 * kLanes <= dims; dim += 2 * kLanes) {
      const VecF32 even = hn::LoadU(d, row + dim), odd = hn::LoadU(d, row + dim + kLanes);
      hn::StoreInterleaved2(even, odd, d, row + dim);
    }
  } else if constexpr (Codec::kParts == Parts::kHalvesOfBlocks) {
    exchange_halves_of_blocks(row, dims);
  }
}

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_KERNELS_PARTS_INL_H_
