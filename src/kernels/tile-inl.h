// Register-blocked products of query rows with one block of keys. Compiled once a target.
//
// Layer: kernels. Every sum runs in one fixed order (a score over dims 0, 1, 2, ...; a weighted sum over keys of the
// block, rising or, in tasks of a few rows, in turns), whatever rows share a tile: results do not depend on tiling.
#include "format/codec-inl.h"
#include "hwy/highway.h"
#include "kernels/block.h"
#include "kernels/many_rows.h"

#if defined(PAGEDKV_KERNELS_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_KERNELS_TILE_INL_H_
#undef PAGEDKV_KERNELS_TILE_INL_H_
#else
#define PAGEDKV_KERNELS_TILE_INL_H_
#endif

// g++ keeps arrays of accumulators in registers only if the loops over them are unrolled early.
#undef PAGEDKV_UNROLL
#undef PAGEDKV_ROLL
#if HWY_COMPILER_GCC_ACTUAL
#define PAGEDKV_UNROLL _Pragma("GCC unroll 16")
#define PAGEDKV_ROLL _Pragma("GCC unroll 1")
#else
#define PAGEDKV_UNROLL
#define PAGEDKV_ROLL
#endif

// Has a vector loaded once and used from its register: g++ would load it again with each FMA, and loads are scarce.
#undef PAGEDKV_KEEP_IN_REGISTER
#if HWY_COMPILER_GCC_ACTUAL && HWY_ARCH_X86
#define PAGEDKV_KEEP_IN_REGISTER(vector) asm("" : "+v"((vector).raw))
#else
#define PAGEDKV_KEEP_IN_REGISTER(vector) static_cast<void>(vector)
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using format::HWY_NAMESPACE::F32;
using format::HWY_NAMESPACE::VecF32;

constexpr std::size_t kLanes = hn::MaxLanes(F32());
constexpr bool kManyRegisters = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON;
constexpr std::size_t kMaxTileRows = 6;
// Dims or keys of a tile from one step of the prefetcher to the next. A step is 6 instructions, which with 16 registers
// stand beside no more than 80 for 4 dims.
constexpr std::size_t kStepLength = kManyRegisters ? 4 : 16;
constexpr std::size_t kPackedKeys = 4;  // of V, packed from one step to the next

// Vectors of a tile with that many rows: as many accumulators as registers allow, and enough to hide FMA latency.
template <std::size_t kRows>
constexpr std::size_t tile_vectors() {
  if (kManyRegisters) return kRows > 12 ? 1 : kRows > 6 ? 2 : kLanes == 16 || kRows > 3 ? 4 : 8;
  return kRows == 1 ? 8 : kRows <= 2 ? 4 : 2;
}

// Most rows of a task whose products read rows as they are stored; more convert too often.
constexpr std::size_t kFewRows = kLanes == 16 ? 16 : 8;
// Of them, fewest whose scores are computed in quads (quads-inl.h).
constexpr std::size_t kMinQuadRows = kLanes == 16 ? 7 : kFewRows + 1;
// Most of them in one tile of scores and of sums; more spill registers.
constexpr std::size_t kMaxScoreTile = kLanes == 16 ? kMinQuadRows - 1 : kManyRegisters ? 8 : 6;
constexpr std::size_t kMaxSumTile = kLanes == 16 ? kFewRows : kMaxScoreTile;

// Units of 32 bits of a row that many query rows convert and compute at a time (many_rows.h). Scores over more go
// through memory in between; a slab of 128 takes all of an L1 cache of 32 KiB, yet is 1.02 to 1.04 times as fast on a
// Zen 3 class EPYC.
constexpr std::size_t kSlabUnits = HWY_TARGET == HWY_AVX2 ? 128 : 64;

// The keys of a whole block in turns: one (or a few) of each quarter, then the next ones, so that K or V is read as
// four streams side by side. Tasks of a few rows, which read rows where they are stored; a quarter is a page of 16.
constexpr std::size_t kQuarters = 4, kQuarterKeys = static_cast<std::size_t>(kBlockKeys) / kQuarters;
enum class KeyOrder { kRising, kInTurns };
// Measured with AVX2 on a Zen 3 class EPYC: pages of 4 KiB one by one are read at 0.71 of the rate of contiguous
// memory, four side by side at 0.86, first lines prefetched (docs/KERNELS.md).
constexpr KeyOrder kFewOrder = HWY_TARGET == HWY_AVX2 ? KeyOrder::kInTurns : KeyOrder::kRising;

// How far behind the first key the i-th one is, in that order.
template <KeyOrder kOrder>
constexpr std::size_t key_offset(std::size_t i) {
  return kOrder == KeyOrder::kRising ? i : i % kQuarters * kQuarterKeys + i / kQuarters;
}

HWY_INLINE bool is_whole(Span keys) { return keys.first == 0 && keys.last == kBlockKeys; }

// Elements across a tile of that many rows.
HWY_INLINE std::size_t tile_panel(std::size_t rows) {
  constexpr std::size_t kVectors[] = {tile_vectors<1>(), tile_vectors<2>(), tile_vectors<3>(), tile_vectors<4>(),
                                      tile_vectors<5>(), tile_vectors<6>(), tile_vectors<7>(), tile_vectors<8>()};
  return kVectors[std::clamp<std::size_t>(rows, 1, 8) - 1] * kLanes;
}

// body(first), body(first + 1), ... kCount calls, four of them unrolled.
template <std::size_t kCount, class Body>
HWY_INLINE void repeat(const Body& body, std::size_t first) {
  constexpr std::size_t kUnrolled = 4;
  if constexpr (kCount > kUnrolled) {
    static_assert(kCount % kUnrolled == 0);
    PAGEDKV_ROLL
    for (std::size_t i = 0; i < kCount; i += kUnrolled) repeat<kUnrolled>(body, first + i);
  } else {
    PAGEDKV_UNROLL
    for (std::size_t i = 0; i < kCount; ++i) body(first + i);
  }
}

// scores[r][key] (+)= sum over dims of q[r][dim] * slab[dim][key], for kVectors vectors of keys. q [kRows][kSlabUnits].
template <std::size_t kRows, std::size_t kVectors>
HWY_INLINE void score_tile(const float* HWY_RESTRICT q, const float* HWY_RESTRICT slab, std::size_t dims,
                           float* HWY_RESTRICT scores, bool accumulate, Prefetcher& prefetcher) {
  const F32 d;
  VecF32 sum[kRows][kVectors];
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) {
    PAGEDKV_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      sum[r][v] = accumulate ? hn::LoadU(d, scores + r * kBlockKeys + v * kLanes) : hn::Zero(d);
    }
  }
  const auto add = [&](std::size_t dim) HWY_ATTR {
    VecF32 k[kVectors];
    PAGEDKV_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) k[v] = hn::LoadU(d, slab + dim * kBlockKeys + v * kLanes);
    PAGEDKV_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) {
      VecF32 element = hn::Set(d, q[r * kSlabUnits + dim]);
      if constexpr (!kManyRegisters) PAGEDKV_KEEP_IN_REGISTER(element);
      PAGEDKV_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(element, k[v], sum[r][v]);
    }
  };
  std::size_t dim = 0;
  for (; dim + kStepLength <= dims; dim += kStepLength) {
    prefetcher.step();
    repeat<kStepLength>(add, dim);
  }
  for (; dim < dims; ++dim) add(dim);
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) {
    PAGEDKV_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], d, scores + r * kBlockKeys + v * kLanes);
  }
}

// out[r][dim] = out[r][dim] * decay[r] + sum over keys of weights[r][key] * V[key][dim], kVectors vectors of dims.
// `load(key, v)` gives vector v of V's row; the prefetcher makes a step every kKeys keys. Keys of a whole block are
// summed in kOrder.
template <std::size_t kRows, std::size_t kVectors, std::size_t kKeys, KeyOrder kOrder, class Load>
HWY_INLINE void value_tile(const float* HWY_RESTRICT weights, Span keys, Load load, const float* HWY_RESTRICT decay,
                           float* HWY_RESTRICT out, std::size_t out_stride, Prefetcher& prefetcher) {
  const F32 d;
  VecF32 sum[kRows][kVectors];
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) {
    PAGEDKV_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  const auto add = [&](std::size_t key) HWY_ATTR {
    VecF32 value[kVectors];
    PAGEDKV_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) value[v] = load(key, v);
    PAGEDKV_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) {
      VecF32 weight = hn::Set(d, weights[r * kBlockKeys + key]);
      if constexpr (!kManyRegisters) PAGEDKV_KEEP_IN_REGISTER(weight);
      PAGEDKV_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(weight, value[v], sum[r][v]);
    }
  };
  std::size_t key = static_cast<std::size_t>(keys.first);
  if constexpr (kOrder == KeyOrder::kInTurns) {
    static_assert(kQuarters % kKeys == 0);
    if (is_whole(keys)) {
      for (std::size_t i = 0; i < kQuarterKeys; ++i) {
        PAGEDKV_UNROLL
        for (std::size_t quarter = 0; quarter < kQuarters; ++quarter) {
          if (quarter % kKeys == 0) prefetcher.step();
          add(key_offset<kOrder>(quarter) + i);
        }
      }
      key = static_cast<std::size_t>(keys.last);
    }
  }
  for (; key + kKeys <= static_cast<std::size_t>(keys.last); key += kKeys) {
    prefetcher.step();
    repeat<kKeys>(add, key);
  }
  for (; key < static_cast<std::size_t>(keys.last); ++key) add(key);
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) {
    const VecF32 keep = hn::Set(d, decay[r]);
    PAGEDKV_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      float* const at = out + r * out_stride + v * kLanes;
      hn::StoreU(hn::MulAdd(hn::LoadU(d, at), keep, sum[r][v]), d, at);
    }
  }
}

template <std::size_t kRows>
HWY_NOINLINE void score_rows(const float* q, const float* slab, std::size_t dims, Span keys, float* scores,
                             bool accumulate, Prefetcher& prefetcher) {
  constexpr std::size_t kVectors = tile_vectors<kRows>();
  constexpr std::size_t kPanel = kVectors * kLanes;
  static_assert(static_cast<std::size_t>(kBlockKeys) % kPanel == 0);
  const std::size_t first = static_cast<std::size_t>(keys.first) / kLanes * kLanes;
  const std::size_t last = (static_cast<std::size_t>(keys.last) + kLanes - 1) / kLanes * kLanes;
  std::size_t key = first;
  for (; key + kPanel <= last; key += kPanel) {
    score_tile<kRows, kVectors>(q, slab + key, dims, scores + key, accumulate, prefetcher);
  }
  for (; key < last; key += kLanes) {
    score_tile<kRows, 1>(q, slab + key, dims, scores + key, accumulate, prefetcher);
  }
}

template <std::size_t kRows>
HWY_NOINLINE void value_rows(const float* weights, Span keys, const float* slab, std::size_t dims, const float* decay,
                             float* out, std::size_t out_stride, Prefetcher& prefetcher) {
  const auto load_from = [](const float* column) HWY_ATTR {
    return [column](std::size_t key, std::size_t v)
               HWY_ATTR { return hn::LoadU(F32(), column + key * kSlabUnits + v * kLanes); };
  };
  constexpr std::size_t kVectors = tile_vectors<kRows>();
  constexpr std::size_t kPanel = kVectors * kLanes;
  std::size_t dim = 0;
  for (; dim + kPanel <= dims; dim += kPanel) {
    value_tile<kRows, kVectors, kStepLength, KeyOrder::kRising>(weights, keys, load_from(slab + dim), decay, out + dim,
                                                                out_stride, prefetcher);
  }
  for (; dim < dims; dim += kLanes) {
    value_tile<kRows, 1, kStepLength, KeyOrder::kRising>(weights, keys, load_from(slab + dim), decay, out + dim,
                                                         out_stride, prefetcher);
  }
}

// Calls `body` with the number of rows, at most kMax, as a compile-time constant.
template <std::size_t kMax, class Body>
HWY_INLINE void with_rows(std::size_t rows, Body body) {
  if constexpr (kMax > 1) {
    if (rows != kMax) return with_rows<kMax - 1>(rows, body);
  }
  body(std::integral_constant<std::size_t, kMax>());
}

// Rows of the next tile when `left` are left: tiles of nearly equal height.
HWY_INLINE std::size_t next_tile(std::size_t left) {
  const std::size_t tiles = (left + kMaxTileRows - 1) / kMaxTileRows;
  return (left + tiles - 1) / tiles;
}

// The steps of ManyRows in f32, whatever the format of the rows.
inline void store_query(float* row, std::size_t dims, float* q, std::size_t slab_stride, std::size_t) {
  for (std::size_t dim = 0; dim < dims; dim += kSlabUnits, q += slab_stride) {
    std::copy_n(row + dim, std::min(kSlabUnits, dims - dim), q);
  }
}

inline void score_many(std::size_t rows, const float* q, std::size_t, const float* slab, std::size_t units, Span keys,
                       float* scores, bool accumulate, float, Prefetcher& prefetcher) noexcept {
  with_rows<kMaxTileRows>(
      rows, [&](auto count) HWY_ATTR { score_rows<count()>(q, slab, units, keys, scores, accumulate, prefetcher); });
}

inline void weigh_many(std::size_t rows, const float* weights, Span keys, const float* slab, std::size_t dims,
                       const float* decay, float* out, std::size_t out_stride, Prefetcher& prefetcher) noexcept {
  with_rows<kMaxTileRows>(rows, [&](auto count) HWY_ATTR {
    value_rows<count()>(weights, keys, slab, dims, decay, out, out_stride, prefetcher);
  });
}

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_KERNELS_TILE_INL_H_
