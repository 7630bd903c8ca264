// What the generic kernels do with rows as they are stored. Compiled once a target and format.
//
// Layer: kernels. Many query rows: a block becomes f32 slabs, K transposed to [dim][key], V as [key][dim], converted
// once for all of them. A few query rows: rows are read in the order in which they lie and converted in registers on
// their way into the products; a score is the sum of the lanes of one vector. The two ways round differently.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "format/codec-inl.h"
#include "format/convert.h"
#include "hwy/highway.h"
#include "kernels/block.h"
#include "kernels/lanes-inl.h"
#include "kernels/parts-inl.h"
#include "kernels/quads-inl.h"
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

/// Elements dim_begin .. dim_begin + dims of keys [block.first, block.last) to slab [kBlockKeys][kSlabUnits], padded
/// with zeros to whole vectors.
template <class Codec>
void pack_values(const Block& block, std::size_t dim_begin, std::size_t dims, float* slab,
                 Prefetcher& prefetcher) noexcept {
  using Stored = typename Codec::Stored;
  for (std::int64_t key = block.first; key < block.last; ++key) {
    const std::byte* const row = block.v[key] + dim_begin * sizeof(Stored);
    float* const to = slab + static_cast<std::size_t>(key) * kSlabUnits;
    if (static_cast<std::size_t>(key) % kPackedKeys == 0) prefetcher.step();
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

#if HWY_TARGET != HWY_SCALAR
// scores[r][i] = sum of the lanes of sum[r][i], four sums at a time.
template <std::size_t kRows, std::size_t kKeys>
HWY_INLINE void store_scores(const VecF32 (&sum)[kRows][kKeys], float* HWY_RESTRICT scores) {
  if constexpr (kKeys == 2) {
    PAGEDKV_UNROLL
    for (std::size_t r = 0; r < kRows; r += 2) {
      const std::size_t other = r + 1 < kRows ? r + 1 : r;
      const auto sums = fold_lanes(sum[r][0], sum[r][1], sum[other][0], sum[other][1], Add());
      const hn::Half<Quad> pair;
      hn::StoreU(hn::LowerHalf(pair, sums), pair, scores + r * kBlockKeys);
      hn::StoreU(hn::UpperHalf(pair, sums), pair, scores + other * kBlockKeys);
    }
  } else {
    PAGEDKV_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) {
      PAGEDKV_UNROLL
      for (std::size_t i = 0; i < kKeys; i += 4) {
        const auto sums = fold_lanes(sum[r][i], sum[r][i + 1], sum[r][i + 2], sum[r][i + 3], Add());
        hn::StoreU(sums, Quad(), scores + r * kBlockKeys + i);
      }
    }
  }
}
#else
template <std::size_t kRows, std::size_t kKeys>
void store_scores(const VecF32 (&sum)[kRows][kKeys], float* scores) {
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t i = 0; i < kKeys; ++i) hn::StoreU(sum[r][i], F32(), scores + r * kBlockKeys + i);
  }
}
#endif

// Keys whose products with that many rows go side by side: chains enough to hide the latency of FMA, accumulators that
// fit in registers.
template <std::size_t kRows>
constexpr std::size_t keys_side_by_side() {
  if (kRows <= (kManyRegisters ? 2 : 1)) return 8;
  return kRows <= (kManyRegisters ? 6 : 2) ? 4 : 2;
}

// Dims of K, and rows of V, from one step of the prefetcher to the next. With 16 registers a tile is so small that more
// steps would take as many instructions as its products.
constexpr std::size_t kFewStepDims = kManyRegisters ? 2 * kLanes : 4 * kLanes;
constexpr std::size_t kFewStepKeys = kManyRegisters ? 2 : 4;

// scores[r][key] = q[r] . k[key] for kKeys keys in kOrder, each a chain of FMA a lane. q [vectors of
// head_dim][q_stride]: in each vector the rows side by side.
template <class Codec, std::size_t kRows, std::size_t kKeys, KeyOrder kOrder>
HWY_INLINE void score_keys(const std::byte* const* rows, std::size_t dims, const float* HWY_RESTRICT q,
                           std::size_t q_stride, float* HWY_RESTRICT scores, Prefetcher& prefetcher) {
  const F32 d;
  VecF32 sum[kRows][kKeys];
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) {
    PAGEDKV_UNROLL
    for (std::size_t i = 0; i < kKeys; ++i) sum[r][i] = hn::Zero(d);
  }
  const std::byte* row[kKeys];
  PAGEDKV_UNROLL
  for (std::size_t i = 0; i < kKeys; ++i) row[i] = rows[key_offset<kOrder>(i)];
  const auto add = [&](auto load) HWY_ATTR {
    VecF32 k[kKeys];
    PAGEDKV_UNROLL
    for (std::size_t i = 0; i < kKeys; ++i) k[i] = load(row[i]);
    PAGEDKV_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) {
      VecF32 elements = hn::LoadU(d, q + r * kLanes);
      PAGEDKV_KEEP_IN_REGISTER(elements);
      PAGEDKV_UNROLL
      for (std::size_t i = 0; i < kKeys; ++i) sum[r][i] = hn::MulAdd(elements, k[i], sum[r][i]);
    }
    q += q_stride;
  };
  const auto add_parts = [&](std::size_t dim) HWY_ATTR {
    add([dim](const std::byte* from) HWY_ATTR { return load_part<Codec, 0>(from, dim); });
    add([dim](const std::byte* from) HWY_ATTR { return load_part<Codec, 1>(from, dim); });
  };
  std::size_t dim = 0;
  for (; dim + kFewStepDims <= dims; dim += kFewStepDims) {
    prefetcher.step();
    PAGEDKV_UNROLL
    for (std::size_t i = 0; i < kFewStepDims; i += 2 * kLanes) add_parts(dim + i);
  }
  for (; dim + 2 * kLanes <= dims; dim += 2 * kLanes) add_parts(dim);
  for (; dim < dims; dim += kLanes) {
    const std::size_t count = std::min(kLanes, dims - dim);
    add([dim, count](const std::byte* from) HWY_ATTR { return load_rest<Codec>(from, dim, count); });
  }
  if constexpr (kOrder == KeyOrder::kRising) {
    store_scores(sum, scores);
  } else {
    float found[kRows * std::size_t{kBlockKeys}];
    store_scores(sum, found);
    for (std::size_t r = 0; r < kRows; ++r) {
      PAGEDKV_UNROLL
      for (std::size_t i = 0; i < kKeys; ++i) {
        scores[r * kBlockKeys + key_offset<kOrder>(i)] = found[r * kBlockKeys + i];
      }
    }
  }
}

// Calls `body(first, count)` for the rows, at most kMax at a time, `count` a compile-time constant.
template <std::size_t kMax, class Body>
HWY_INLINE void for_few_rows(std::size_t rows, Body body) {
  const std::size_t passes = (rows + kMax - 1) / kMax;
  for (std::size_t row = 0; row < rows;) {
    const std::size_t height = (rows + passes - 1) / passes;
    with_rows<kMax>(std::min(height, rows - row), [&](auto count) HWY_ATTR { body(row, count); });
    row += height;
  }
}

/// About how many steps of the prefetcher a block takes with a few rows.
inline std::size_t steps_of_few(std::size_t keys, std::size_t head_dim, std::size_t v_head_dim, std::size_t rows,
                                std::size_t quads) {
  std::size_t steps = 0;
  for_few_rows<kMaxSumTile>(rows, [&](std::size_t, auto count) {
    constexpr std::size_t kDims = tile_vectors<count()>() * kLanes;
    steps += (v_head_dim + kDims - 1) / kDims * (keys / kFewStepKeys);
  });
  if (quads != 0) return steps + steps_of_quads(quads, keys, head_dim);
  for_few_rows<kMaxScoreTile>(rows, [&](std::size_t, auto count) {
    constexpr std::size_t kKeys = keys_side_by_side<count()>();
    steps += (keys + kKeys - 1) / kKeys * (head_dim / kFewStepDims);
  });
  return steps;
}

/// Scores of a few query rows, q [vectors of head_dim][q_stride] in parts, against the block's keys.
template <class Codec, KeyOrder kOrder>
void score_few(const Block& block, std::size_t dims, const float* q, std::size_t q_stride, std::size_t rows,
               float* scores, Prefetcher& prefetcher) noexcept {
  for_few_rows<kMaxScoreTile>(rows, [&](std::size_t row, auto count) HWY_ATTR {
    constexpr std::size_t kKeys = keys_side_by_side<count()>();
    const auto score = [&](std::size_t key, auto order) HWY_ATTR {
      score_keys<Codec, count(), kKeys, order()>(block.k + key, dims, q + row * kLanes, q_stride,
                                                 scores + row * kBlockKeys + key, prefetcher);
    };
    if constexpr (kOrder == KeyOrder::kInTurns && kKeys % kQuarters == 0) {
      if (is_whole({block.first, block.last})) {
        for (std::size_t key = 0; key < kQuarterKeys; key += kKeys / kQuarters) {
          score(key, std::integral_constant<KeyOrder, KeyOrder::kInTurns>());
        }
        return;
      }
    }
    for (std::size_t key = static_cast<std::size_t>(block.first) / kKeys * kKeys;
         key < static_cast<std::size_t>(block.last); key += kKeys) {
      score(key, std::integral_constant<KeyOrder, KeyOrder::kRising>());
    }
  });
}

/// out [rows][out_stride] in parts = out * decay + weights * V, for a few rows that see the same keys.
template <class Codec, KeyOrder kOrder>
void weigh_few(const Block& block, Span keys, std::size_t dims, const float* weights, const float* decay,
               std::size_t rows, float* out, std::size_t out_stride, Prefetcher& prefetcher) noexcept {
  for_few_rows<kMaxSumTile>(rows, [&](std::size_t row, auto count) HWY_ATTR {
    constexpr std::size_t kVectors = tile_vectors<count()>();
    const auto add = [&](auto vectors, std::size_t dim, auto load) HWY_ATTR {
      value_tile<count(), vectors(), kFewStepKeys, kOrder>(weights + row * kBlockKeys, keys, load, decay + row,
                                                           out + row * out_stride + dim, out_stride, prefetcher);
    };
    const auto load_parts = [&block](std::size_t dim) HWY_ATTR {
      return [v_rows = block.v, dim](std::size_t key, std::size_t v) HWY_ATTR {
        const std::size_t at = dim + v / 2 * 2 * kLanes;
        return v % 2 == 0 ? load_part<Codec, 0>(v_rows[key], at) : load_part<Codec, 1>(v_rows[key], at);
      };
    };
    std::size_t dim = 0;
    for (; kVectors > 1 && dim + kVectors * kLanes <= dims; dim += kVectors * kLanes) {
      add(std::integral_constant<std::size_t, kVectors>(), dim, load_parts(dim));
    }
    for (; dim + 2 * kLanes <= dims; dim += 2 * kLanes) {
      if constexpr (kVectors > 1) {
        add(std::integral_constant<std::size_t, 2>(), dim, load_parts(dim));
      } else {
        const auto load_half = [&block](std::size_t at, auto part) HWY_ATTR {
          return [v_rows = block.v, at](std::size_t key, std::size_t)
                     HWY_ATTR { return load_part<Codec, decltype(part)::value>(v_rows[key], at); };
        };
        add(std::integral_constant<std::size_t, 1>(), dim, load_half(dim, std::integral_constant<int, 0>()));
        add(std::integral_constant<std::size_t, 1>(), dim + kLanes, load_half(dim, std::integral_constant<int, 1>()));
      }
    }
    for (; dim < dims; dim += kLanes) {
      const std::size_t rest = std::min(kLanes, dims - dim);
      add(std::integral_constant<std::size_t, 1>(), dim,
          [v_rows = block.v, dim, rest](std::size_t key, std::size_t)
              HWY_ATTR { return load_rest<Codec>(v_rows[key], dim, rest); });
    }
  });
}

/// Which keys of the block have an infinity or a NaN among the `dims` elements of V: bit i for key i.
template <class Codec>
std::uint64_t find_exceptions(const Block& block, std::size_t dims) noexcept {
  using Bits = std::remove_cv_t<decltype(Codec::kInfinity)>;  // signed: without their signs, in the order of magnitudes
  constexpr Bits kMagnitude = std::numeric_limits<Bits>::max();
  const hn::ScalableTag<Bits> d;
  constexpr std::size_t lanes = hn::MaxLanes(d);
  std::uint64_t exceptions = 0;
  for (std::int64_t key = block.first; key < block.last; ++key) {
    const std::byte* const row = block.v[key];
    auto largest = hn::Zero(d);
    std::size_t dim = 0;
    for (; dim + lanes <= dims; dim += lanes) {
      const auto bits = hn::LoadU(d, reinterpret_cast<const Bits*>(row) + dim);
      largest = hn::Max(largest, hn::And(bits, hn::Set(d, kMagnitude)));
    }
    bool is_finite = hn::AllTrue(d, hn::Lt(largest, hn::Set(d, Codec::kInfinity)));
    for (; dim < dims; ++dim) {
      Bits bits = 0;
      std::memcpy(&bits, row + dim * sizeof(bits), sizeof(bits));
      is_finite = is_finite && (bits & kMagnitude) < Codec::kInfinity;
    }
    if (!is_finite) exceptions |= std::uint64_t{1} << key;
  }
  return exceptions;
}

/// The steps of one format on this target.
struct StoredRows {
  ManyRows many;
  std::size_t max_few_rows;  // (row, head) pairs of a task that read rows as they are stored
  Work work_of_one;          // of them
  void (*spread_query)(float* row, std::size_t dims, std::size_t width, float* q, std::size_t stride) noexcept;
  void (*to_parts)(float* row, std::size_t dims) noexcept;
  void (*from_parts)(float* row, std::size_t dims) noexcept;
  void (*score_few)(const Block& block, std::size_t dims, const float* q, std::size_t q_stride, std::size_t rows,
                    float* scores, Prefetcher& prefetcher) noexcept;
  void (*score_in_quads)(const Block& block, std::size_t dims, const float* q, std::size_t quads, float* slab,
                         float* scores, Prefetcher& prefetcher) noexcept;
  void (*weigh_few)(const Block& block, Span keys, std::size_t dims, const float* weights, const float* decay,
                    std::size_t rows, float* out, std::size_t out_stride, Prefetcher& prefetcher) noexcept;
  std::uint64_t (*find_exceptions)(const Block& block, std::size_t dims) noexcept;
};

template <class Codec, KeyOrder kOrder = kFewOrder>
StoredRows stored_rows() noexcept {
  return {.many = {.dims_per_unit = 1,
                   .query_terms = 1,
                   .value_dims = kSlabUnits,
                   .scales_scores = false,
                   .store_query = &store_query,
                   .pack_keys = &pack_keys<Codec>,
                   .score = &score_many,
                   .pack_values = &pack_values<Codec>,
                   .weigh = &weigh_many},
          .max_few_rows = kFewRows,
          .work_of_one = Work::kMixed,
          .spread_query = &spread_query<Codec>,
          .to_parts = &to_parts<Codec>,
          .from_parts = &from_parts<Codec>,
          .score_few = &score_few<Codec, kOrder>,
          .score_in_quads = &score_in_quads<Codec>,
          .weigh_few = &weigh_few<Codec, kOrder>,
          .find_exceptions = &find_exceptions<Codec>};
}

StoredRows find_stored_f32() noexcept;
StoredRows find_stored_f16() noexcept;
StoredRows find_stored_bf16() noexcept;
#if HWY_TARGET == HWY_AVX3
/// The same for CPUs with AVX512_BF16: products of many query rows by it, over f16 if that may be rounded, and K and V
/// read in turns by few, which on a Zen 5 class EPYC is worth 1.07 to 1.2 times the rate (docs/KERNELS.md).
StoredRows find_stored_f32_avx512_bf16() noexcept;
StoredRows find_stored_f16_avx512_bf16(DType q_dtype, bool f16_as_bf16) noexcept;
StoredRows find_stored_bf16_avx512_bf16(DType q_dtype) noexcept;
#endif

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_KERNELS_STORED_INL_H_
