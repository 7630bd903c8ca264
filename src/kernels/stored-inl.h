// What the generic kernels do with rows as they are stored. Compiled once a target and format.
//
// Layer: kernels. Many query rows: a block becomes f32 slabs, K transposed to [dim][key], V as [key][dim], converted
// once for all of them. A few query rows: rows are converted in registers on their way into the products. Both ways
// round alike, bit for bit.
#include <cmath>

#include "format/codec-inl.h"
#include "format/convert.h"
#include "hwy/highway.h"
#include "kernels/block.h"
#include "kernels/tile-inl.h"

#if defined(PAGEDKV_KERNELS_STORED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_KERNELS_STORED_INL_H_
#undef PAGEDKV_KERNELS_STORED_INL_H_
#else
#define PAGEDKV_KERNELS_STORED_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using format::HWY_NAMESPACE::F32;
using format::HWY_NAMESPACE::U32;
using format::HWY_NAMESPACE::VecF32;
using format::HWY_NAMESPACE::VecU32;

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

// Units at `offset` of as many keys as a vector has lanes: units[i] holds unit i of every key.
HWY_INLINE void transpose_units(const std::byte* const* rows, std::size_t offset, VecU32 (&units)[kTileUnits]) {
#if HWY_TARGET == HWY_SCALAR
  std::uint32_t unit = 0;
  std::memcpy(&unit, rows[0] + offset, sizeof(unit));
  units[0] = hn::Set(U32(), unit);
#else
  const VecU32 r0 = load_rows<0>(rows, offset), r1 = load_rows<1>(rows, offset);
  const VecU32 r2 = load_rows<2>(rows, offset), r3 = load_rows<3>(rows, offset);
  const VecU32 low01 = hn::InterleaveLower(U32(), r0, r1), low23 = hn::InterleaveLower(U32(), r2, r3);
  const VecU32 high01 = hn::InterleaveUpper(U32(), r0, r1), high23 = hn::InterleaveUpper(U32(), r2, r3);
  units[0] = interleave_low(low01, low23);
  units[1] = interleave_high(low01, low23);
  units[2] = interleave_low(high01, high23);
  units[3] = interleave_high(high01, high23);
#endif
}

// Element `dim` of as many keys as a vector has lanes: for the last few dims of a row, never past it.
template <class Codec>
HWY_INLINE VecF32 gather_dim(const std::byte* const* rows, std::size_t dim) {
  float elements[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) {
    typename Codec::Stored element;
    std::memcpy(&element, rows[i] + dim * sizeof(element), sizeof(element));
    elements[i] = format::to_f32(element);
  }
  return hn::LoadU(F32(), elements);
}

// Elements of a row that one transposition takes.
template <class Codec>
constexpr std::size_t kTileDims = kTileUnits * Codec::kPerUnit;

// Vector of element `i` of a tile of dims that transpose_units returned.
template <class Codec>
HWY_INLINE VecF32 tile_dim(const VecU32 (&units)[kTileUnits], std::size_t i) {
  if constexpr (Codec::kPerUnit == 2) {
    return i % 2 == 0 ? Codec::template split<0>(units[i / 2]) : Codec::template split<1>(units[i / 2]);
  }
  return Codec::template split<0>(units[i / Codec::kPerUnit]);
}

/// Elements dim_begin .. dim_begin + dims of keys [block.first, block.last), rounded out to whole vectors, to
/// slab [dims][kBlockKeys].
template <class Codec>
void pack_keys(const Block& block, std::size_t dim_begin, std::size_t dims, float* slab,
               Prefetcher& prefetcher) noexcept {
  const std::size_t key_begin = static_cast<std::size_t>(block.first) / kLanes * kLanes;
  for (std::size_t key = key_begin; key < static_cast<std::size_t>(block.last); key += kLanes) {
    const std::byte* const* const rows = block.k + key;
    std::size_t dim = 0;
    for (; dim + kTileDims<Codec> <= dims; dim += kTileDims<Codec>) {
      prefetcher.step();
      float* const to = slab + dim * kBlockKeys + key;
      VecU32 units[kTileUnits];
      transpose_units(rows, (dim_begin + dim) * sizeof(typename Codec::Stored), units);
      PAGEDKV_UNROLL
      for (std::size_t i = 0; i < kTileDims<Codec>; ++i) {
        hn::StoreU(tile_dim<Codec>(units, i), F32(), to + i * kBlockKeys);
      }
    }
    for (; dim < dims; ++dim) {
      hn::StoreU(gather_dim<Codec>(rows, dim_begin + dim), F32(), slab + dim * kBlockKeys + key);
    }
  }
}

/// Elements dim_begin .. dim_begin + dims of keys [block.first, block.last) to slab [kBlockKeys][kSlabDims], padded
/// with zeros to whole vectors.
template <class Codec>
void pack_values(const Block& block, std::size_t dim_begin, std::size_t dims, float* slab,
                 Prefetcher& prefetcher) noexcept {
  using Stored = typename Codec::Stored;
  for (std::int64_t key = block.first; key < block.last; ++key) {
    const std::byte* const row = block.v[key] + dim_begin * sizeof(Stored);
    float* const to = slab + static_cast<std::size_t>(key) * kSlabDims;
    if (key % static_cast<std::int64_t>(kStepLength) == 0) prefetcher.step();
    std::size_t dim = 0;
    for (; dim + kLanes <= dims; dim += kLanes) {
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

// Scores of kGroups vectors of keys, straight from stored rows.
template <class Codec, std::size_t kRows, std::size_t kGroups>
HWY_INLINE void score_stored(const std::byte* const* rows, std::size_t dims, const float* HWY_RESTRICT q,
                             float* HWY_RESTRICT scores, Prefetcher& prefetcher) {
  const F32 d;
  VecF32 sum[kRows][kGroups];
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) {
    PAGEDKV_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) sum[r][g] = hn::Zero(d);
  }
  const auto add = [&](std::size_t dim, const VecF32(&k)[kGroups]) HWY_ATTR {
    PAGEDKV_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) {
      const VecF32 element = hn::Set(d, q[r * dims + dim]);
      PAGEDKV_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) sum[r][g] = hn::MulAdd(element, k[g], sum[r][g]);
    }
  };
  std::size_t dim = 0;
  for (; dim + kTileDims<Codec> <= dims; dim += kTileDims<Codec>) {
    VecU32 units[kGroups][kTileUnits];
    PAGEDKV_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) {
      prefetcher.step();
      transpose_units(rows + g * kLanes, dim * sizeof(typename Codec::Stored), units[g]);
    }
    PAGEDKV_UNROLL
    for (std::size_t i = 0; i < kTileDims<Codec>; ++i) {
      VecF32 k[kGroups];
      PAGEDKV_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) k[g] = tile_dim<Codec>(units[g], i);
      add(dim + i, k);
    }
  }
  for (; dim < dims; ++dim) {
    VecF32 k[kGroups];
    for (std::size_t g = 0; g < kGroups; ++g) k[g] = gather_dim<Codec>(rows + g * kLanes, dim);
    add(dim, k);
  }
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) {
    PAGEDKV_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) hn::StoreU(sum[r][g], d, scores + r * kBlockKeys + g * kLanes);
  }
}

/// Scores of a few query rows, q [rows][dims], against the block's keys: what pack_keys and score_rows compute.
template <class Codec>
void score_few(const Block& block, std::size_t dims, const float* q, std::size_t rows, float* scores,
               Prefetcher& prefetcher) noexcept {
  const std::size_t last = static_cast<std::size_t>(block.last);
  std::size_t key = static_cast<std::size_t>(block.first) / kLanes * kLanes;
  with_rows<kFewRows>(rows, [&](auto count) HWY_ATTR {
    // Chains of dependent sums run side by side: two at least for each query row, four for one or two.
    constexpr std::size_t kGroups = count() <= 2 ? 4 : 2;
    for (; key + (kGroups - 1) * kLanes < last && key + kGroups * kLanes <= kBlockKeys; key += kGroups * kLanes) {
      score_stored<Codec, count(), kGroups>(block.k + key, dims, q, scores + key, prefetcher);
    }
    for (; key < last; key += kLanes) {
      score_stored<Codec, count(), 1>(block.k + key, dims, q, scores + key, prefetcher);
    }
  });
}

/// out = out * decay + weights * V for a few rows that see the same keys: what pack_values and value_rows compute.
/// `dims` is a multiple of kLanes.
template <class Codec>
void weigh_few(const Block& block, Span keys, std::size_t dims, const float* weights, const float* decay,
               std::size_t rows, float* out, std::size_t out_stride, Prefetcher& prefetcher) noexcept {
  using Stored = typename Codec::Stored;
  with_rows<kFewRows>(rows, [&](auto count) HWY_ATTR {
    constexpr std::size_t kVectors = tile_vectors<count()>();
    const auto load_from = [&block](std::size_t dim) HWY_ATTR {
      return [v_rows = block.v, dim](std::size_t key, std::size_t v)
                 HWY_ATTR { return Codec::load(reinterpret_cast<const Stored*>(v_rows[key]) + dim + v * kLanes); };
    };
    std::size_t dim = 0;
    for (; dim + kVectors * kLanes <= dims; dim += kVectors * kLanes) {
      value_tile<count(), kVectors>(weights, keys, load_from(dim), decay, out + dim, out_stride, prefetcher);
    }
    for (; dim < dims; dim += kLanes) {
      value_tile<count(), 1>(weights, keys, load_from(dim), decay, out + dim, out_stride, prefetcher);
    }
  });
}

/// Which keys of the block have an infinity or a NaN among the `dims` elements of V: bit i for key i.
template <class Codec>
std::uint64_t find_exceptions(const Block& block, std::size_t dims) noexcept {
  using Stored = typename Codec::Stored;
  const F32 d;
  std::uint64_t exceptions = 0;
  for (std::int64_t key = block.first; key < block.last; ++key) {
    const std::byte* const row = block.v[key];
    VecF32 differences = hn::Zero(d);  // x - x: 0, or NaN if x is an infinity or a NaN
    std::size_t dim = 0;
    for (; dim + kLanes <= dims; dim += kLanes) {
      const VecF32 x = Codec::load(reinterpret_cast<const Stored*>(row) + dim);
      differences = hn::Or(differences, hn::Sub(x, x));
    }
    bool is_finite = hn::AllTrue(d, hn::Eq(differences, hn::Zero(d)));
    for (; dim < dims; ++dim) {
      Stored element;
      std::memcpy(&element, row + dim * sizeof(Stored), sizeof(Stored));
      is_finite = is_finite && std::isfinite(format::to_f32(element));
    }
    if (!is_finite) exceptions |= std::uint64_t{1} << key;
  }
  return exceptions;
}

/// The steps of one format on this target.
struct StoredRows {
  void (*pack_keys)(const Block& block, std::size_t dim_begin, std::size_t dims, float* slab,
                    Prefetcher& prefetcher) noexcept;
  void (*pack_values)(const Block& block, std::size_t dim_begin, std::size_t dims, float* slab,
                      Prefetcher& prefetcher) noexcept;
  void (*score_few)(const Block& block, std::size_t dims, const float* q, std::size_t rows, float* scores,
                    Prefetcher& prefetcher) noexcept;
  void (*weigh_few)(const Block& block, Span keys, std::size_t dims, const float* weights, const float* decay,
                    std::size_t rows, float* out, std::size_t out_stride, Prefetcher& prefetcher) noexcept;
  std::uint64_t (*find_exceptions)(const Block& block, std::size_t dims) noexcept;
};

template <class Codec>
StoredRows stored_rows() noexcept {
  return {&pack_keys<Codec>, &pack_values<Codec>, &score_few<Codec>, &weigh_few<Codec>, &find_exceptions<Codec>};
}

StoredRows find_stored_f32() noexcept;
StoredRows find_stored_f16() noexcept;
StoredRows find_stored_bf16() noexcept;

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_KERNELS_STORED_INL_H_
