// Scores of 7 to 16 query rows: a vector holds four dims of four rows. Compiled once a target and format.
//
// Layer: kernels. Four dims of a key are broadcast to the four blocks of a vector straight from memory and multiplied
// with four rows at once, so that the sum of a score has 4 lanes instead of all: 16 of them take 9 instructions, where
// 4 whole vectors take 13. The price is that every element of K is f32 in memory first.
#include "hwy/highway.h"
#include "kernels/block.h"
#include "kernels/lanes-inl.h"
#include "kernels/parts-inl.h"
#include "kernels/tile-inl.h"

#if defined(PAGEDKV_KERNELS_QUADS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_KERNELS_QUADS_INL_H_
#undef PAGEDKV_KERNELS_QUADS_INL_H_
#else
#define PAGEDKV_KERNELS_QUADS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using format::HWY_NAMESPACE::F32;
using format::HWY_NAMESPACE::VecF32;

// Of a score in quads: dims side by side, and rows that fill a vector with them.
constexpr std::size_t kQuad = 4;

/// Quads that so many rows make; 0 if their scores are computed otherwise.
HWY_INLINE std::size_t quads_of(std::size_t rows) {
  return rows >= kMinQuadRows && rows <= kFewRows ? (rows + kQuad - 1) / kQuad : 0;
}

constexpr std::size_t kMaxQuadKeys = 8;  // side by side

#if HWY_MAX_BYTES == 64
// Keys that advance side by side: accumulators enough to hide the latency of FMA, few enough for the registers.
template <std::size_t kQuads>
constexpr std::size_t kQuadKeys = kQuads <= 3 ? kMaxQuadKeys : kMaxQuadKeys / 2;

// `dims` elements of a stored row as f32, in parts: the row itself if it can be read so, else `to` [dims rounded up to
// whole vectors], filled up with zeros.
template <class Codec>
HWY_INLINE const float* row_as_f32(const std::byte* row, std::size_t dims, float* to) {
  const F32 d;
  if constexpr (std::is_same_v<typename Codec::Stored, float>) {
    if (dims % kQuad == 0) return reinterpret_cast<const float*>(row);
  }
  std::size_t dim = 0;
  for (; dim + 2 * kLanes <= dims; dim += 2 * kLanes) {
    hn::StoreU(load_part<Codec, 0>(row, dim), d, to + dim);
    hn::StoreU(load_part<Codec, 1>(row, dim), d, to + dim + kLanes);
  }
  for (; dim < dims; dim += kLanes) {
    hn::StoreU(load_rest<Codec>(row, dim, std::min(kLanes, dims - dim)), d, to + dim);
  }
  return to;
}

// scores[4 * quad + row][key] of kKeys keys: each lane a chain of FMA over every fourth dim, then the sum of four
// lanes.
template <std::size_t kQuads, std::size_t kKeys>
HWY_INLINE void score_quads(const float* const* keys, std::size_t dims, const float* HWY_RESTRICT q,
                            float* HWY_RESTRICT scores, Prefetcher& prefetcher) {
  const F32 d;
  const hn::Half<F32> d_half;
  VecF32 sum[kQuads][kKeys];
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kQuads; ++r) {
    PAGEDKV_UNROLL
    for (std::size_t i = 0; i < kKeys; ++i) sum[r][i] = hn::Zero(d);
  }
  const auto add = [&](std::size_t dim) HWY_ATTR {
    VecF32 elements[kQuads];
    PAGEDKV_UNROLL
    for (std::size_t r = 0; r < kQuads; ++r) {
      VecF32 loaded = hn::LoadU(d, q + r * kLanes);
      PAGEDKV_KEEP_IN_REGISTER(loaded);
      elements[r] = loaded;
    }
    PAGEDKV_UNROLL
    for (std::size_t i = 0; i < kKeys; ++i) {
      const VecF32 key = hn::LoadDup128(d, keys[i] + dim);
      PAGEDKV_UNROLL
      for (std::size_t r = 0; r < kQuads; ++r) sum[r][i] = hn::MulAdd(elements[r], key, sum[r][i]);
    }
    q += kQuads * kLanes;
  };
  std::size_t dim = 0;
  for (; dim + 2 * kQuad <= dims; dim += 2 * kQuad) {
    prefetcher.step();
    add(dim);
    add(dim + kQuad);
  }
  for (; dim < dims; dim += kQuad) add(dim);
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kQuads; ++r) {
    PAGEDKV_UNROLL
    for (std::size_t i = 0; i < kKeys; i += 4) {
      const VecF32 sums = fold_blocks(sum[r][i], sum[r][i + 1], sum[r][i + 2], sum[r][i + 3], Add());
      float* const to = scores + r * kQuad * kBlockKeys + i;
      const auto low = hn::LowerHalf(d_half, sums), high = hn::UpperHalf(d_half, sums);
      hn::StoreU(hn::LowerHalf(Quad(), low), Quad(), to);
      hn::StoreU(hn::UpperHalf(Quad(), low), Quad(), to + kBlockKeys);
      hn::StoreU(hn::LowerHalf(Quad(), high), Quad(), to + 2 * kBlockKeys);
      hn::StoreU(hn::UpperHalf(Quad(), high), Quad(), to + 3 * kBlockKeys);
    }
  }
}

template <class Codec, std::size_t kQuads>
void score_keys_in_quads(const Block& block, std::size_t dims, const float* q, float* slab, float* scores,
                         Prefetcher& prefetcher) noexcept {
  constexpr std::size_t kKeys = kQuadKeys<kQuads>;
  const std::size_t stride = (dims + kLanes - 1) / kLanes * kLanes;
  for (std::size_t key = static_cast<std::size_t>(block.first) / kKeys * kKeys;
       key < static_cast<std::size_t>(block.last); key += kKeys) {
    const float* keys[kKeys];
    for (std::size_t i = 0; i < kKeys; ++i) keys[i] = row_as_f32<Codec>(block.k[key + i], dims, slab + i * stride);
    score_quads<kQuads, kKeys>(keys, dims, q, scores + key, prefetcher);
  }
}
#endif

/// Steps of the prefetcher that the scores of `keys` keys take.
inline std::size_t steps_of_quads(std::size_t quads, std::size_t keys, std::size_t dims) {
  const std::size_t side_by_side = quads <= 3 ? kMaxQuadKeys : kMaxQuadKeys / 2;
  return (keys + side_by_side - 1) / side_by_side * (dims / (2 * kQuad));
}

/// Scores of all rows of a task, q [head_dim / 4][quads][kLanes] in parts, to scores [4 * quads][kBlockKeys]. `slab`
/// has room for 8 rows of K.
template <class Codec>
void score_in_quads(const Block& block, std::size_t dims, const float* q, std::size_t quads, float* slab, float* scores,
                    Prefetcher& prefetcher) noexcept {
#if HWY_MAX_BYTES == 64
  with_rows<kFewRows / kQuad>(quads, [&](auto count) HWY_ATTR {
    score_keys_in_quads<Codec, count()>(block, dims, q, slab, scores, prefetcher);
  });
#else
  (void)block, (void)dims, (void)q, (void)quads, (void)slab, (void)scores, (void)prefetcher;
#endif
}

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_KERNELS_QUADS_INL_H_
