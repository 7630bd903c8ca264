// Many query rows times a slab of K or V in bf16, in tiles of up to 6 rows x 4 vectors.
//
// A pair of neighbours is multiplied and added at once, so that an instruction does twice the work of an f32 FMA on the
// CPUs that run both at the same rate (AMD from Zen 4 on). Sums are f32; the instruction takes subnormals for zeros.
#include "kernels/x86_bf16_dots.h"

#if defined(__x86_64__)
#include "kernels/x86_isa.h"

#define PAGEDKV_DOTS_BEGIN PAGEDKV_ISA_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

PAGEDKV_DOTS_BEGIN
namespace pagedkv::kernels::bf16_dots {
namespace {

constexpr std::size_t kLanes = 16;
constexpr std::size_t kBlock = static_cast<std::size_t>(kBlockKeys);
constexpr std::size_t kPairs = kBlock / 2;  // of keys
constexpr std::size_t kStepLength = 4;      // units or pairs from one step of the prefetcher to the next

// The unit at `at` in all lanes, in a register: g++ would load it with each product.
PAGEDKV_ISA_INLINE __m512bh broadcast(const std::uint32_t* at) noexcept {
  __m512i unit = _mm512_set1_epi32(static_cast<int>(*at));
  asm("" : "+v"(unit));
  return reinterpret_cast<__m512bh>(unit);
}

template <std::size_t kRows, std::size_t kVectors>
PAGEDKV_ISA_INLINE void clear(__m512 (&sum)[kRows][kVectors]) noexcept {
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kVectors; ++v) sum[r][v] = _mm512_setzero_ps();
  }
}

// sum[r][v] += left[r] . right[v] over the pair in each lane; rows of `left` are `stride` units apart.
template <std::size_t kRows, std::size_t kVectors>
PAGEDKV_ISA_INLINE void add_pair(const std::uint32_t* left, std::size_t stride, const __m512bh (&right)[kVectors],
                                 __m512 (&sum)[kRows][kVectors]) noexcept {
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    const __m512bh element = broadcast(left + r * stride);
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kVectors; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], element, right[v]);
  }
}

template <std::size_t kVectors>
PAGEDKV_ISA_INLINE void load(const std::uint32_t* from, __m512bh (&to)[kVectors]) noexcept {
#pragma GCC unroll 16
  for (std::size_t v = 0; v < kVectors; ++v) to[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(from + v * kLanes));
}

// Where the query rows of a tile and the keys that they meet lie.
struct ScoreTile {
  const std::uint32_t* q;     // [rows][kSlabUnits]
  const std::uint32_t* slab;  // [units][kBlockKeys] from the first key of the tile on
  std::size_t units;
};

template <std::size_t kRows, std::size_t kVectors>
PAGEDKV_ISA_INLINE void add_scores(const ScoreTile& tile, __m512 (&sum)[kRows][kVectors],
                                   Prefetcher& prefetcher) noexcept {
  const auto add = [&](std::size_t unit) __attribute__((always_inline)) {
    __m512bh keys[kVectors];
    load(tile.slab + unit * kBlock, keys);
    add_pair(tile.q + unit, kSlabUnits, keys, sum);
  };
  std::size_t unit = 0;
  for (; unit + kStepLength <= tile.units; unit += kStepLength) {
    prefetcher.step();
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kStepLength; ++i) add(unit + i);
  }
  for (; unit < tile.units; ++unit) add(unit);
}

template <std::size_t kRows, std::size_t kVectors>
void score_tile(ScoreTile tile, std::size_t term_stride, float* scores, bool accumulate, float scale,
                Prefetcher& prefetcher) noexcept {
  __m512 sum[kRows][kVectors];
  clear(sum);
  add_scores(tile, sum, prefetcher);
  if (term_stride != 0) {
    tile.q += term_stride;
    add_scores(tile, sum, prefetcher);
  }
  const __m512 factor = _mm512_set1_ps(scale);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kVectors; ++v) {
      float* const at = scores + r * kBlock + v * kLanes;
      if (accumulate) sum[r][v] = _mm512_add_ps(_mm512_loadu_ps(at), sum[r][v]);
      _mm512_storeu_ps(at, _mm512_mul_ps(sum[r][v], factor));
    }
  }
}

// Weights of a tile as bf16, pair by pair.
struct Weights {
  alignas(64) std::uint32_t units[kMaxRows][kPairs];
};

template <std::size_t kRows>
PAGEDKV_ISA_INLINE void round_weights(const float* weights, Weights& to) noexcept {
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (std::size_t key = 0; key < kBlock; key += 2 * kLanes) {
      const float* const from = weights + r * kBlock + key;
      const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + kLanes), _mm512_loadu_ps(from));
      _mm512_store_si512(to.units[r] + key / 2, reinterpret_cast<__m512i>(rounded));
    }
  }
}

template <std::size_t kRows, std::size_t kVectors>
PAGEDKV_ISA_INLINE void value_tile(const Weights& weights, Span keys, const std::uint32_t* slab, const float* decay,
                                   float* out, std::size_t out_stride, Prefetcher& prefetcher) noexcept {
  __m512 sum[kRows][kVectors];
  clear(sum);
  const auto add = [&](std::size_t pair) __attribute__((always_inline)) {
    __m512bh values[kVectors];
    load(slab + pair * kValueDims, values);
    add_pair(&weights.units[0][pair], kPairs, values, sum);
  };
  // Of a pair that the rows see one key of: the other one's V becomes 0, and its weight is.
  const auto add_half = [&](std::size_t pair, std::uint32_t half) __attribute__((always_inline)) {
    __m512bh values[kVectors];
    load(slab + pair * kValueDims, values);
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kVectors; ++v) {
      const __m512i seen =
          _mm512_and_si512(reinterpret_cast<__m512i>(values[v]), _mm512_set1_epi32(static_cast<int>(half)));
      values[v] = reinterpret_cast<__m512bh>(seen);
    }
    add_pair(&weights.units[0][pair], kPairs, values, sum);
  };
  const auto first = static_cast<std::size_t>(keys.first), last = static_cast<std::size_t>(keys.last);
  std::size_t pair = first / 2;
  if (first % 2 != 0) add_half(pair++, 0xFFFF0000U);
  for (; pair + kStepLength <= last / 2; pair += kStepLength) {
    prefetcher.step();
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kStepLength; ++i) add(pair + i);
  }
  for (; pair < last / 2; ++pair) add(pair);
  if (last % 2 != 0) add_half(last / 2, 0x0000FFFFU);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    const __m512 keep = _mm512_set1_ps(decay[r]);
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kVectors; ++v) {
      float* const at = out + r * out_stride + v * kLanes;
      _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_loadu_ps(at), keep, sum[r][v]));
    }
  }
}

constexpr std::size_t kTileVectors = 4;

template <std::size_t kRows>
void score_rows(const float* q, std::size_t term_stride, const float* slab, std::size_t units, Span keys, float* scores,
                bool accumulate, float scale, Prefetcher& prefetcher) noexcept {
  const auto* const query = reinterpret_cast<const std::uint32_t*>(q);
  const auto* const packed = reinterpret_cast<const std::uint32_t*>(slab);
  std::size_t key = static_cast<std::size_t>(keys.first) / kLanes * kLanes;
  const std::size_t last = (static_cast<std::size_t>(keys.last) + kLanes - 1) / kLanes * kLanes;
  for (; key + kTileVectors * kLanes <= last; key += kTileVectors * kLanes) {
    score_tile<kRows, kTileVectors>({query, packed + key, units}, term_stride, scores + key, accumulate, scale,
                                    prefetcher);
  }
  for (; key < last; key += kLanes) {
    score_tile<kRows, 1>({query, packed + key, units}, term_stride, scores + key, accumulate, scale, prefetcher);
  }
}

template <std::size_t kRows>
void weigh_rows(const float* weights, Span keys, const float* slab, std::size_t dims, const float* decay, float* out,
                std::size_t out_stride, Prefetcher& prefetcher) noexcept {
  Weights rounded;
  round_weights<kRows>(weights, rounded);
  const auto* const packed = reinterpret_cast<const std::uint32_t*>(slab);
  std::size_t dim = 0;
  for (; dim + kTileVectors * kLanes <= dims; dim += kTileVectors * kLanes) {
    value_tile<kRows, kTileVectors>(rounded, keys, packed + dim, decay, out + dim, out_stride, prefetcher);
  }
  for (; dim < dims; dim += kLanes) {
    value_tile<kRows, 1>(rounded, keys, packed + dim, decay, out + dim, out_stride, prefetcher);
  }
}

using ScoreRows = decltype(&score_rows<1>);
using WeighRows = decltype(&weigh_rows<1>);
constexpr ScoreRows kScoreRows[kMaxRows] = {score_rows<1>, score_rows<2>, score_rows<3>,
                                            score_rows<4>, score_rows<5>, score_rows<6>};
constexpr WeighRows kWeighRows[kMaxRows] = {weigh_rows<1>, weigh_rows<2>, weigh_rows<3>,
                                            weigh_rows<4>, weigh_rows<5>, weigh_rows<6>};

}  // namespace

void score(std::size_t rows, const float* q, std::size_t term_stride, const float* slab, std::size_t units, Span keys,
           float* scores, bool accumulate, float scale, Prefetcher& prefetcher) noexcept {
  kScoreRows[rows - 1](q, term_stride, slab, units, keys, scores, accumulate, scale, prefetcher);
}

void weigh(std::size_t rows, const float* weights, Span keys, const float* slab, std::size_t dims, const float* decay,
           float* out, std::size_t out_stride, Prefetcher& prefetcher) noexcept {
  kWeighRows[rows - 1](weights, keys, slab, dims, decay, out, out_stride, prefetcher);
}

}  // namespace pagedkv::kernels::bf16_dots
PAGEDKV_ISA_END
#endif  // __x86_64__
