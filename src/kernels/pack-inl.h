// Turns stored rows of a block into f32 slabs: K transposed to [dim][key], V as [key][dim]. Compiled once a target.
//
// Layer: kernels. While a line of this block is converted, the same line of the next block is prefetched: one for one,
// spread over the work, in page-table order. This is what keeps paging off the clock.
#include "format/codec-inl.h"
#include "format/convert.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/block.h"

#if defined(PAGEDKV_KERNELS_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_KERNELS_PACK_INL_H_
#undef PAGEDKV_KERNELS_PACK_INL_H_
#else
#define PAGEDKV_KERNELS_PACK_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using format::HWY_NAMESPACE::F32;
using format::HWY_NAMESPACE::U32;
using format::HWY_NAMESPACE::VecF32;
using format::HWY_NAMESPACE::VecU32;

constexpr std::size_t kLineBytes = 64;
constexpr std::size_t kUnitBytes = 4;

// Elements of 32 bits that a transposition of 4 x 4 takes from a row.
constexpr std::size_t kTileUnits = HWY_TARGET == HWY_SCALAR ? 1 : 4;

#if HWY_TARGET != HWY_SCALAR
using Block128 = hn::Full128<std::uint32_t>;

HWY_INLINE hn::Vec<Block128> load_units(const std::byte* row) {
  return hn::LoadU(Block128(), reinterpret_cast<const std::uint32_t*>(row));
}

// 128-bit block b of the result is the row of key 4 * b + kRow.
template <int kRow>
HWY_INLINE VecU32 load_rows(const std::byte* const* rows, std::size_t offset) {
#if HWY_MAX_BYTES >= 64
  const hn::Half<U32> d_half;
  const auto low = hn::Combine(d_half, load_units(rows[4 + kRow] + offset), load_units(rows[kRow] + offset));
  const auto high = hn::Combine(d_half, load_units(rows[12 + kRow] + offset), load_units(rows[8 + kRow] + offset));
  return hn::Combine(U32(), high, low);
#elif HWY_MAX_BYTES == 32
  return hn::Combine(U32(), load_units(rows[4 + kRow] + offset), load_units(rows[kRow] + offset));
#else
  return load_units(rows[kRow] + offset);
#endif
}

HWY_INLINE VecU32 interleave_low(VecU32 a, VecU32 b) {
  const hn::Repartition<std::uint64_t, U32> d64;
  return hn::BitCast(U32(), hn::InterleaveLower(hn::BitCast(d64, a), hn::BitCast(d64, b)));
}
HWY_INLINE VecU32 interleave_high(VecU32 a, VecU32 b) {
  const hn::Repartition<std::uint64_t, U32> d64;
  return hn::BitCast(U32(), hn::InterleaveUpper(d64, hn::BitCast(d64, a), hn::BitCast(d64, b)));
}
#endif

template <class Codec>
HWY_INLINE void store_unit(VecU32 units, float* slab) {
  hn::StoreU(Codec::template split<0>(units), F32(), slab);
  if constexpr (Codec::kPerUnit == 2) hn::StoreU(Codec::template split<1>(units), F32(), slab + kBlockKeys);
}

// Units offset .. offset + kTileUnits of as many keys as a vector has lanes, to consecutive rows of the slab.
template <class Codec>
HWY_INLINE void transpose_tile(const std::byte* const* rows, std::size_t offset, float* slab) {
#if HWY_TARGET == HWY_SCALAR
  std::uint32_t unit = 0;
  std::memcpy(&unit, rows[0] + offset, sizeof(unit));
  store_unit<Codec>(hn::Set(U32(), unit), slab);
#else
  constexpr std::size_t kRow = static_cast<std::size_t>(kBlockKeys) * Codec::kPerUnit;
  const VecU32 r0 = load_rows<0>(rows, offset), r1 = load_rows<1>(rows, offset);
  const VecU32 r2 = load_rows<2>(rows, offset), r3 = load_rows<3>(rows, offset);
  const VecU32 low01 = hn::InterleaveLower(U32(), r0, r1), low23 = hn::InterleaveLower(U32(), r2, r3);
  const VecU32 high01 = hn::InterleaveUpper(U32(), r0, r1), high23 = hn::InterleaveUpper(U32(), r2, r3);
  store_unit<Codec>(interleave_low(low01, low23), slab);
  store_unit<Codec>(interleave_high(low01, low23), slab + kRow);
  store_unit<Codec>(interleave_low(high01, high23), slab + 2 * kRow);
  store_unit<Codec>(interleave_high(high01, high23), slab + 3 * kRow);
#endif
}

/// Elements dim_begin .. dim_begin + dims of keys [block.first, block.last), rounded out to whole vectors, to
/// slab [dims][kBlockKeys]; prefetches the same of `next`.
template <class Codec>
HWY_INLINE void pack_keys(const Block& block, const Block& next, std::size_t dim_begin, std::size_t dims, float* slab) {
  constexpr std::size_t kTileDims = kTileUnits * Codec::kPerUnit;
  constexpr std::size_t kStep = hn::MaxLanes(F32());
  const std::size_t byte_begin = dim_begin * sizeof(typename Codec::Stored);
  const std::size_t key_begin = static_cast<std::size_t>(block.first) / kStep * kStep;
  for (std::size_t key = key_begin; key < static_cast<std::size_t>(block.last); key += kStep) {
    const std::byte* const* const rows = block.k + key;
    std::size_t dim = 0;
    for (; dim + kTileDims <= dims; dim += kTileDims) {
      const std::size_t offset = byte_begin + dim * sizeof(typename Codec::Stored);
      if (offset % kLineBytes == 0) {
        for (std::size_t i = 0; i < kStep; ++i) hwy::Prefetch(next.k[key + i] + offset);
      }
      transpose_tile<Codec>(rows, offset, slab + dim * kBlockKeys + key);
    }
    for (; dim < dims; ++dim) {  // fewer elements than a tile: one at a time, never past the row
      for (std::size_t i = 0; i < kStep; ++i) {
        typename Codec::Stored element;
        std::memcpy(&element, rows[i] + byte_begin + dim * sizeof(element), sizeof(element));
        slab[dim * kBlockKeys + key + i] = format::to_f32(element);
      }
    }
  }
}

/// Elements dim_begin .. dim_begin + dims of keys [block.first, block.last) to slab [kBlockKeys][kSlabDims], padded
/// with zeros to whole vectors; prefetches the same of `next`.
template <class Codec>
HWY_INLINE void pack_values(const Block& block, const Block& next, std::size_t dim_begin, std::size_t dims,
                            float* slab) {
  using Stored = typename Codec::Stored;
  constexpr std::size_t kStep = hn::MaxLanes(F32());
  const std::size_t byte_begin = dim_begin * sizeof(Stored);
  for (std::int64_t key = block.first; key < block.last; ++key) {
    const std::byte* const row = block.v[key] + byte_begin;
    float* const to = slab + static_cast<std::size_t>(key) * kSlabDims;
    for (std::size_t offset = 0; offset < dims * sizeof(Stored); offset += kLineBytes) {
      hwy::Prefetch(next.v[key] + byte_begin + offset);
    }
    std::size_t dim = 0;
    for (; dim + kStep <= dims; dim += kStep) {
      hn::StoreU(Codec::load(reinterpret_cast<const Stored*>(row) + dim), F32(), to + dim);
    }
    if (dim == dims) continue;
    hn::StoreU(hn::Zero(F32()), F32(), to + dim);
    for (; dim < dims; ++dim) {
      Stored element;
      std::memcpy(&element, row + dim * sizeof(Stored), sizeof(Stored));
      to[dim] = format::to_f32(element);
    }
  }
}

using PackFn = void (*)(const Block& block, const Block& next, std::size_t dim_begin, std::size_t dims,
                        float* slab) noexcept;

/// The two conversions of one format on this target.
struct Packers {
  PackFn keys, values;
};

Packers find_packers_f32() noexcept;
Packers find_packers_f16() noexcept;
Packers find_packers_bf16() noexcept;

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_KERNELS_PACK_INL_H_
