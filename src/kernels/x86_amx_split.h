// Prefill's inner loops over f16 pages: every factor is a sum of bf16 terms, and so are the products.
//
// 32 tokens advance together, so that each tile of queries or weights is loaded once for two tiles of keys or values
// and all of their terms, and accumulators stay in registers over all dims (scores) or over a block of tokens (sums).
//
// Layer: kernels, only for x86_amx_prefill.cc (see x86_amx_instructions.h for the compile region).
#pragma once

#include "kernels/x86_amx_score.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

inline constexpr int kSplitTerms = 3;    ///< bf16 terms of a weight that is to keep all of its bits.
inline constexpr int kSplitBlock = 128;  ///< Tokens between scores and sums: weights 48 KiB.
inline constexpr int kSplitTermBytes = kSplitBlock / kGroupTokens * kWeightBytes;  ///< From a term to the next.
inline constexpr int kSplitUnits = 16;  ///< Softmax units of a column tile: 2 tokens x 16 columns.

/// Softmax of one column tile: see SoftmaxState.
struct SplitColumn {
  __m512 max, sum, scale;
  int tile;  ///< Of the column block.
};

/// Tokens 2 * unit and 2 * unit + 1: w = 2^logit, summed in f32 and stored as pairs of bf16 terms. With kBent, `bend`
/// makes logits of the scores; else the scale does.
template <int kForm>
PAGEDKV_AMX_INLINE void split_unit(SplitColumn& column, const float* scores, std::byte* weights, const Bend* bend,
                                   int unit) noexcept {
  const auto weight = [&](int token) {
    __m512 logit = _mm512_load_ps(scores + token * 16);
    if constexpr ((kForm & kBent) != 0) {
      logit = bend->apply(logit, column.tile, token);
    } else {
      logit = _mm512_mul_ps(logit, column.scale);
      keep_rounded(logit);  // as the maximum is: fused, large logits would miss it
    }
    return exp2_exact(_mm512_sub_ps(logit, column.max));
  };
  const __m512 even = weight(2 * unit), odd = weight(2 * unit + 1);
  column.sum = _mm512_add_ps(_mm512_add_ps(column.sum, even), odd);
  compute_here(column.sum);
  std::byte* const to = weights + unit * kTileRowBytes;
  __m512 left0 = even, left1 = odd;
  for (int term = 0; term < kSplitTerms; ++term, left0 = beyond_finite_bf16(left0), left1 = beyond_finite_bf16(left1)) {
    _mm512_store_si512(to + term * kSplitTermBytes, cut_to_bf16_pairs(left0, left1));
  }
}

/// What one column tile of a pass of scores works on.
struct SplitPass {
  const std::byte* k;        ///< [2 token tiles][k tiles][2 terms]
  std::int64_t k_stride;     ///< Of a token tile.
  const std::byte* queries;  ///< [terms][k tiles]
  std::int64_t term_stride;
  float* scores;             ///< [32 tokens][16] to fill.
  float* last_scores;        ///< Those of the column tile before, still in registers.
  const float* done_scores;  ///< Those that the softmax reads.
  std::byte* weights;
  const std::byte* ahead;  ///< Lines of the next chunk to prefetch into L2: two a K tile.
  const Bend* bend;
};

/// Product kStep of 32 tokens and 16 columns, of one K tile: accumulators kSet and kSet + 1, K in tmm4 and 5, queries
/// in 6 and 7.
template <int kTerms, int kForm, int kUnits, int kSet, bool kFirst, int kStep = 0>
PAGEDKV_AMX_INLINE void split_score_steps(SplitColumn& column, const SplitPass& p, int k_tile, int unit) noexcept {
  constexpr int kSteps = 4 * kTerms, kKeyTerm = kStep / (2 * kTerms), kToken = kStep % 2;
  constexpr int kLink = kStep / 2 % kTerms, kTerm = kKeyTerm == 0 ? kLink : kTerms - 1 - kLink;
  constexpr int kQueries = 6 + kTerm % 2;
  if constexpr (kFirst && kStep < 2) tile_zero<kSet + kToken>();
  if constexpr (kLink == 0) {
    tile_load<4 + kToken>(p.k + kToken * p.k_stride + (2 * k_tile + kKeyTerm) * kTileBytes, kTileRowBytes);
  }
  if constexpr (kToken == 0 && (kKeyTerm == 0 || (kTerms == 3 && kTerm == 0))) {
    tile_load<kQueries>(p.queries + kTerm * p.term_stride + k_tile * kTileBytes, kTileRowBytes);
  }
  tile_dot<kSet + kToken, 4 + kToken, kQueries>();
  if constexpr (kFirst && (kStep == 2 || kStep == 3)) {
    if (p.last_scores != nullptr) tile_store<2 - kSet + kToken>(p.last_scores + kToken * kTileFloats, kTileRowBytes);
  }
  if constexpr (kStep < 2) {
    _mm_prefetch(reinterpret_cast<const char*>(p.ahead) + (k_tile * 2 + kStep) * 64, _MM_HINT_T1);
  }
  for (int i = kUnits * kStep / kSteps; i < kUnits * (kStep + 1) / kSteps; ++i) {
    split_unit<kForm>(column, p.done_scores, p.weights, p.bend, unit + i);
  }
  if constexpr (kStep + 1 < kSteps) {
    split_score_steps<kTerms, kForm, kUnits, kSet, kFirst, kStep + 1>(column, p, k_tile, unit);
  }
}

/// One column tile over all K tiles.
template <int kTerms, int kForm, int kUnits, int kSet>
PAGEDKV_AMX_INLINE void split_score_column(SplitColumn& column, const SplitPass& p, int num_tiles) noexcept {
  split_score_steps<kTerms, kForm, kUnits, kSet, true>(column, p, 0, 0);
  int unit = kUnits;
  for (int i = 1; i < num_tiles; ++i) {
    if (kUnits > 0 && unit < kSplitUnits) {
      split_score_steps<kTerms, kForm, kUnits, kSet, false>(column, p, i, unit), unit += kUnits;
    } else {
      split_score_steps<kTerms, 0, 0, kSet, false>(column, p, i, 0);
    }
  }
  if constexpr (kUnits > 0) {
    for (; unit < kSplitUnits; ++unit) split_unit<kForm>(column, p.done_scores, p.weights, p.bend, unit);
  }
}

/// Scores of 32 tokens and all columns; the weights of the 32 before come out meanwhile, unless kUnits is 0.
template <int kTerms, int kForm, int kUnits>
__attribute__((noinline)) void split_scores(int num_tiles, SoftmaxState& state, const ScorePass& pass) noexcept {
  SplitPass p{};
  p.k = pass.k.at, p.k_stride = 2 * num_tiles * kTileBytes;
  p.term_stride = num_tiles * kTileBytes, p.bend = pass.bend, p.last_scores = nullptr;
  const auto score = [&]<int kSet>(int c) __attribute__((always_inline)) {
    p.queries = pass.queries + c * pass.query_stride;
    p.scores = pass.scores + c * 2 * kTileFloats;
    if constexpr (kUnits > 0) {
      p.done_scores = pass.done_scores + c * 2 * kTileFloats, p.weights = pass.weights + c * kTileBytes;
    }
    p.ahead = pass.ahead + c * num_tiles * 2 * kTileRowBytes;
    SplitColumn column{state.max[c], state.sum[c], state.scale, c};
    split_score_column<kTerms, kForm, kUnits, kSet>(column, p, num_tiles);
    state.sum[c] = column.sum;
    p.last_scores = p.scores;
  };
  for (int c = 0; c < kColumnTiles; c += 2) {
    score.template operator()<0>(c);
    score.template operator()<2>(c + 1);
  }
  tile_store<2>(p.last_scores, kTileRowBytes);
  tile_store<3>(p.last_scores + kTileFloats, kTileRowBytes);
}

template <int kTerms, int kForm>
void split_scores(int num_tiles, SoftmaxState& state, const ScorePass& pass) noexcept {
  if constexpr (kForm == 0) return split_scores<kTerms, 0, 0>(num_tiles, state, pass);
  num_tiles >= 4 ? split_scores<kTerms, kForm, 4>(num_tiles, state, pass)
                 : split_scores<kTerms, kForm, 8>(num_tiles, state, pass);
}
template <int kForm>
void split_scores(int num_tiles, int num_terms, SoftmaxState& state, const ScorePass& pass) noexcept {
  if (num_terms == 1) return split_scores<1, kForm>(num_tiles, state, pass);
  if (num_terms == 2) return split_scores<2, kForm>(num_tiles, state, pass);
  split_scores<3, kForm>(num_tiles, state, pass);
}

/// The softmax of a slot alone.
[[maybe_unused]] void split_softmax(SoftmaxState& state, const float* scores, std::byte* weights,
                                    const Bend* bend) noexcept {
  for (int c = 0; c < kColumnTiles; ++c) {
    SplitColumn column{state.max[c], state.sum[c], state.scale, c};
    for (int unit = 0; unit < kSplitUnits; ++unit) {
      const float* const from = scores + c * 2 * kTileFloats;
      std::byte* const to = weights + c * kTileBytes;
      bend != nullptr ? split_unit<kBent + kSplit>(column, from, to, bend, unit)
                      : split_unit<kSplit>(column, from, to, bend, unit);
    }
    state.sum[c] = column.sum;
  }
}

/// V tiles of a block: where the first d tile of each group of 32 tokens lies.
struct SplitValues {
  const std::byte* groups[kSplitBlock / kGroupTokens];
  int num_groups;
  std::int64_t term_bytes;
};

/// Product kStep of 32 tokens: two d tiles and one column tile. V in tmm4 and 5, weights in 6 and 7, each loaded once:
/// weights in the order 3, 2, 1 beside the first terms of V, 1, 2 beside the second.
template <int kSet, int kStep = 0>
PAGEDKV_AMX_INLINE void split_weigh_steps(const std::byte* values, std::int64_t term_bytes, const std::byte* weights,
                                          float* last) noexcept {
  constexpr int kTile = kStep % 2, kLink = kStep / 2, kValueTerm = kLink / kSplitTerms;
  constexpr int kTerm = kLink < kSplitTerms ? kSplitTerms - 1 - kLink : kLink - kSplitTerms, kWeights = 6 + kTerm % 2;
  if constexpr (kLink % kSplitTerms == 0) {
    tile_load<4 + kTile>(values + kValueTerm * term_bytes + kTile * 4 * kTileBytes, kTileRowBytes);
  }
  if constexpr (kTile == 0 && kValueTerm == 0) tile_load<kWeights>(weights + kTerm * kSplitTermBytes, kTileRowBytes);
  tile_dot<kSet + kTile, 4 + kTile, kWeights>();
  if constexpr (kStep == 2 || kStep == 3) {
    if (last != nullptr) tile_store<2 - kSet + kTile>(last + kTile * kSlotFloats, kTileRowBytes);
  }
  if constexpr (kStep + 1 < 2 * (2 * kSplitTerms - 1))
    split_weigh_steps<kSet, kStep + 1>(values, term_bytes, weights, last);
}

/// sums [d tile][4][16][16] += V^T weights over a block, or = if not has_sums.
[[maybe_unused]] __attribute__((noinline)) void split_weigh(const SplitValues& values, const std::byte* weights,
                                                            float* sums, int num_d_tiles, bool has_sums) noexcept {
  float* last = nullptr;
  for (int d = 0; d < num_d_tiles; d += 2) {
    const auto column = [&]<int kSet>(int c) __attribute__((always_inline)) {
      float* const to = sums + d * kSlotFloats + c * kTileFloats;
      if (has_sums) {
        tile_load<kSet>(to, kTileRowBytes), tile_load<kSet + 1>(to + kSlotFloats, kTileRowBytes);
      } else {
        tile_zero<kSet>(), tile_zero<kSet + 1>();
      }
      for (int g = 0; g < values.num_groups; ++g) {
        split_weigh_steps<kSet>(values.groups[g] + d * 4 * kTileBytes, values.term_bytes,
                                weights + g * kWeightBytes + c * kTileBytes, g == 0 ? last : nullptr);
      }
      last = to;
    };
    for (int c = 0; c < kColumnTiles; c += 2) {
      column.template operator()<0>(c);
      column.template operator()<2>(c + 1);
    }
  }
  tile_store<2>(last, kTileRowBytes), tile_store<3>(last + kSlotFloats, kTileRowBytes);
}

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
