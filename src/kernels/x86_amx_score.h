// Prefill's inner loop: a tile of scores on the matrix unit while the vector unit turns the tile before into weights.
//
// Layer: kernels, only for x86_amx_prefill.cc (see x86_amx_instructions.h for the compile region).
#pragma once

#include "kernels/x86_avx512_math.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

inline constexpr int kColumnTiles = 4;                          ///< Tiles of 16 columns in a column block.
inline constexpr int kBlockColumns = kColumnTiles * 16;         ///< (query row, head) pairs that advance together.
inline constexpr int kSlotFloats = kColumnTiles * kTileFloats;  ///< Scores of one token tile: [4][16 tokens][16].
inline constexpr int kWeightBytes = kColumnTiles * kTileBytes;  ///< Weights of 32 tokens: [4][16 pairs][16][2].
inline constexpr int kBlock = 256;       ///< Tokens between scores and sums: weights 32 KiB, in L1.
inline constexpr int kGroupTokens = 32;  ///< Depth of a V tile.
inline constexpr int kWeightTermBytes = kBlock / kGroupTokens * kWeightBytes;
inline constexpr int kUnits = kColumnTiles * 8;  ///< Softmax units of a slot: 2 tokens x 16 columns.

/// Softmax of a column block. The maximum is fixed before a block of tokens; an overflowing sum tells that it was low.
struct SoftmaxState {
  __m512 max[kColumnTiles];  ///< Base 2.
  __m512 sum[kColumnTiles];
  __m512 scale;  ///< Scores to base-2 logits; 1 if they are logits already.
};

/// Highest of `tokens` tokens, column by column.
PAGEDKV_AMX_INLINE __m512 highest_of(const float* scores, int tokens) noexcept {
  __m512 top = _mm512_load_ps(scores);
  for (int t = 1; t < tokens; ++t) top = _mm512_max_ps(top, _mm512_load_ps(scores + t * 16));
  return top;
}

PAGEDKV_AMX_INLINE __mmask16 overflowing(__m512 sum) noexcept {
  return _mm512_cmp_ps_mask(sum, _mm512_set1_ps(0x1p60f), _CMP_NLT_UQ);
}
PAGEDKV_AMX_INLINE bool overflows(const SoftmaxState& state) noexcept {
  return (overflowing(state.sum[0]) | overflowing(state.sum[1]) | overflowing(state.sum[2]) |
          overflowing(state.sum[3])) != 0;
}

/// What turns the raw scores of one token tile into base-2 logits where a scale alone does not: soft cap and ALiBi.
struct Bend {
  bool has_cap, has_slopes, is_exact;
  __m512 scale;  ///< Of a score: to a logit, or to the argument of soft_cap.
  __m512 cap, twice_cap;
  __m512 slope[kColumnTiles];
  __m512 bias[kColumnTiles];  ///< Of the tile's first token.

  /// Scores of one token of a column tile. Ends in an operation that no compiler fuses with what follows: the same bits
  /// wherever it stands.
  PAGEDKV_AMX_INLINE __m512 apply(__m512 score, int column_tile, int token) const noexcept {
    const auto bend = [&](__m512 x) {
      return is_exact ? soft_cap_exact(x, cap, twice_cap) : soft_cap(x, cap, twice_cap);
    };
    const __m512 capped = has_cap ? bend(_mm512_mul_ps(score, scale)) : score;
    if (has_cap && !has_slopes) return capped;
    const __m512 shift =
        _mm512_fmadd_ps(slope[column_tile], _mm512_set1_ps(static_cast<float>(token)), bias[column_tile]);
    return has_cap ? _mm512_add_ps(capped, shift) : _mm512_fmadd_ps(score, scale, shift);
  }
};

/// Forms of the softmax: with soft cap or ALiBi on the way, and with weights in several terms (x86_amx_split.h).
inline constexpr int kBent = 1, kSplit = 2;

/// Two tokens of one column tile: w = 2^(score * scale - max), summed in f32 and stored as bf16 pairs (the B operand).
/// 6 operations on port 0 a vector; the two exp2 forms share the work between ports 0 and 5, which TMUL leaves half
/// free.
template <int kUnit, int kForm>
PAGEDKV_AMX_INLINE void softmax_unit(SoftmaxState& state, const float* scores, std::byte* weights,
                                     const Bend* bend) noexcept {
  constexpr int kTile = kUnit / 8, kPair = kUnit % 8;
  const float* from = scores + kTile * kTileFloats + kPair * 32;
  __m512 score0 = _mm512_load_ps(from), score1 = _mm512_load_ps(from + 16);
  if constexpr ((kForm & kBent) != 0) {
    score0 = bend->apply(score0, kTile, 2 * kPair), score1 = bend->apply(score1, kTile, 2 * kPair + 1);
  }
  const __m512 logit0 = _mm512_fmsub_ps(score0, state.scale, state.max[kTile]);
  const __m512 logit1 = _mm512_fmsub_ps(score1, state.scale, state.max[kTile]);
  const __m512 even = exp2_fast(logit0), odd = exp2_fast_by_adds(logit1);
  state.sum[kTile] = _mm512_add_ps(_mm512_add_ps(state.sum[kTile], even), odd);
  compute_here(state.sum[kTile]);  // g++ puts all sums off to the end, spilling every weight till then
  std::byte* const to = weights + kTile * kTileBytes + kPair * kTileRowBytes;
  // Upper halves of both, rounded to nearest: two additions and a shuffle; vcvtne2ps2bf16 costs two cycles of port 0.
  const __m512i upper = _mm512_set_epi16(63, 31, 61, 29, 59, 27, 57, 25, 55, 23, 53, 21, 51, 19, 49, 17, 47, 15, 45, 13,
                                         43, 11, 41, 9, 39, 7, 37, 5, 35, 3, 33, 1);
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i pairs = _mm512_permutex2var_epi16(_mm512_add_epi32(_mm512_castps_si512(even), half), upper,
                                                  _mm512_add_epi32(_mm512_castps_si512(odd), half));
  _mm512_store_si512(to, pairs);
}

template <int kFrom, int kTo, int kForm>
PAGEDKV_AMX_INLINE void softmax_units(SoftmaxState& state, const float* scores, std::byte* weights,
                                      const Bend* bend) noexcept {
  if constexpr (kFrom < kTo) {
    softmax_unit<kFrom, kForm>(state, scores, weights, bend);
    softmax_units<kFrom + 1, kTo, kForm>(state, scores, weights, bend);
  }
}

/// K of 16 tokens as A tiles of 32 dims: packed tile by tile, or the rows of a page in place. Either way 16 rows of
/// head_dim lie side by side.
struct KeyTile {
  const std::byte* at;
  std::int64_t row_bytes, tile_bytes;  ///< From row to row, and from tile to tile.
};

/// What one pass of scores works on. The softmax side is unused if the pass has no units.
struct ScorePass {
  KeyTile k;                               ///< Of this token tile, from the first K tile of the pass on.
  const std::byte* k_next;                 ///< The next token tile, to prefetch.
  const std::byte* queries;                ///< Of this pass in column tile 0; column tiles are `query_stride` apart.
  std::int64_t query_stride, term_stride;  ///< Of a column tile, and of a term of the queries.
  float* scores;                           ///< Slot to fill.
  const float* done_scores;                ///< Slot that the softmax reads.
  const Bend* bend;                        ///< Of the scores in that slot, or null if they need none any more.
  std::byte* weights;
  const std::byte* ahead;  ///< Lines of the next chunk to prefetch into L2: one a product.
};

/// Tile product number kStep of a pass over kTiles K tiles and kTerms terms of the queries, and its share of the
/// softmax units [kFirst, kLast). K stays in tmm4..7, queries stream through tmm2 and 3; sums alternate between tmm0
/// and 1 and are stored in the middle of the next chain: stores in a burst would each wait for their chain, 20 % of the
/// rate.
template <int kTiles, int kTerms, bool kFromZero, int kForm, int kFirst, int kLast, int kStep = 0>
PAGEDKV_AMX_INLINE void score_steps(SoftmaxState& state, const ScorePass& pass) noexcept {
  constexpr int kChain = kTiles * kTerms, kSteps = kChain * kColumnTiles;
  constexpr int kColumnTile = kStep / kChain, kAcc = kColumnTile % 2, kLink = kStep % kChain;
  constexpr int kTerm = kLink / kTiles, kTile = kLink % kTiles, kQueries = 2 + kStep % 2;
  if constexpr (kLink == 0) {
    if constexpr (kFromZero) {
      tile_zero<kAcc>();
    } else {
      tile_load<kAcc>(pass.scores + kColumnTile * kTileFloats, kTileRowBytes);
    }
  }
  tile_load<kQueries>(pass.queries + kColumnTile * pass.query_stride + kTerm * pass.term_stride + kTile * kTileBytes,
                      kTileRowBytes);
  tile_dot<kAcc, 4 + kTile, kQueries>();
  if constexpr (kColumnTile > 0 && kLink == (kChain > 1 ? 1 : 0)) {
    tile_store<1 - kAcc>(pass.scores + (kColumnTile - 1) * kTileFloats, kTileRowBytes);
  }
  if constexpr (kTerm == 0) {
    constexpr int kPart = kColumnTile * kTiles + kTile;
    for (int line = 0; line < 4; ++line) {  // 7-11 % against loading cold tiles; all at once loses more than it gains
      _mm_prefetch(reinterpret_cast<const char*>(pass.k_next) + (kPart * 4 + line) * 64, _MM_HINT_T0);
    }
    // Unconditional: a branch here costs 5 % of the rate.
    _mm_prefetch(reinterpret_cast<const char*>(pass.ahead) + kPart * 64, _MM_HINT_T1);
  }
  softmax_units<kFirst + (kLast - kFirst) * kStep / kSteps, kFirst + (kLast - kFirst) * (kStep + 1) / kSteps, kForm>(
      state, pass.done_scores, pass.weights, pass.bend);
  if constexpr (kStep + 1 < kSteps) {
    score_steps<kTiles, kTerms, kFromZero, kForm, kFirst, kLast, kStep + 1>(state, pass);
  } else {
    tile_store<kAcc>(pass.scores + kColumnTile * kTileFloats, kTileRowBytes);
  }
}

template <int kTiles, int kTerms, bool kFromZero, int kForm, int kFirst, int kLast>
__attribute__((noinline)) void score_pass(SoftmaxState& state, const ScorePass& pass) noexcept {
  SoftmaxState local = state;
  const KeyTile& k = pass.k;
  tile_load<4>(k.at, k.row_bytes);
  if constexpr (kTiles > 1) tile_load<5>(k.at + k.tile_bytes, k.row_bytes);
  if constexpr (kTiles > 2) tile_load<6>(k.at + 2 * k.tile_bytes, k.row_bytes);
  if constexpr (kTiles > 3) tile_load<7>(k.at + 3 * k.tile_bytes, k.row_bytes);
  score_steps<kTiles, kTerms, kFromZero, kForm, kFirst, kLast>(local, pass);
  state = local;
}

/// The pass over `num_tiles` (1..4) K tiles and kTerms terms of the queries.
template <int kTerms, bool kFromZero, int kForm, int kFirst, int kLast>
PAGEDKV_AMX_INLINE void score_pass_of(int num_tiles, SoftmaxState& state, const ScorePass& pass) noexcept {
  if (num_tiles == 1) return score_pass<1, kTerms, kFromZero, kForm, kFirst, kLast>(state, pass);
  if (num_tiles == 2) return score_pass<2, kTerms, kFromZero, kForm, kFirst, kLast>(state, pass);
  if (num_tiles == 3) return score_pass<3, kTerms, kFromZero, kForm, kFirst, kLast>(state, pass);
  score_pass<4, kTerms, kFromZero, kForm, kFirst, kLast>(state, pass);
}
template <bool kFromZero, int kForm, int kFirst, int kLast>
PAGEDKV_AMX_INLINE void score_pass_of(int num_tiles, int num_terms, SoftmaxState& state,
                                      const ScorePass& pass) noexcept {
  if (num_terms == 1) return score_pass_of<1, kFromZero, kForm, kFirst, kLast>(num_tiles, state, pass);
  score_pass_of<2, kFromZero, kForm, kFirst, kLast>(num_tiles, state, pass);
}
template <bool kFromZero, int kFirst, int kLast>
PAGEDKV_AMX_INLINE void score_pass(int num_tiles, int num_terms, SoftmaxState& state, const ScorePass& pass) noexcept {
  if constexpr (kFirst < kLast) {
    if (pass.bend != nullptr) return score_pass_of<kFromZero, kBent, kFirst, kLast>(num_tiles, num_terms, state, pass);
  }
  score_pass_of<kFromZero, 0, kFirst, kLast>(num_tiles, num_terms, state, pass);
}

/// Scores of one token tile over all `num_tiles` K tiles (a pass over as many as stay in four registers) and all terms
/// of the queries, in one chain of products. If kSoftmax, the weights of the tile before come out during the first and
/// the last pass.
template <bool kSoftmax>
void score_tile(int num_tiles, int num_terms, SoftmaxState& state, const ScorePass& tile) noexcept {
  constexpr int kAll = kSoftmax ? kUnits : 0, kHalf = kAll / 2, kMost = 4;
  const int num_passes = (num_tiles + kMost - 1) / kMost;
  ScorePass pass = tile;
  pass.term_stride = num_tiles * kTileBytes;
  if (num_passes == 1) return score_pass<true, 0, kAll>(num_tiles, num_terms, state, pass);
  for (int i = 0; i < num_passes; ++i) {
    const int first = i * kMost, count = num_tiles - first < kMost ? num_tiles - first : kMost;
    pass.k.at = tile.k.at + first * tile.k.tile_bytes, pass.k_next = tile.k_next + first * kTileBytes;
    pass.queries = tile.queries + first * kTileBytes;
    if (i == 0) {
      score_pass<true, 0, kHalf>(count, num_terms, state, pass);
    } else if (i + 1 < num_passes) {
      score_pass<false, 0, 0>(count, num_terms, state, pass);
    } else {
      score_pass<false, kHalf, kAll>(count, num_terms, state, pass);
    }
  }
}

/// The softmax of a slot alone.
[[maybe_unused]] void softmax_slot(SoftmaxState& state, const float* scores, std::byte* weights,
                                   const Bend* bend) noexcept {
  SoftmaxState local = state;
  if (bend != nullptr) {
    softmax_units<0, kUnits, kBent>(local, scores, weights, bend);
  } else {
    softmax_units<0, kUnits, 0>(local, scores, weights, bend);
  }
  state = local;
}

/// Tile product number kStep of V tiles in tmm4..7 and weights.
template <int kTiles, bool kFromZero, int kStep = 0>
PAGEDKV_AMX_INLINE void weigh_steps(const std::byte* weights, float* sums) noexcept {
  constexpr int kColumnTile = kStep / kTiles, kAcc = kColumnTile % 2, kTile = kStep % kTiles, kWeights = 2 + kStep % 2;
  if constexpr (kTile == 0) {
    if constexpr (kFromZero) {
      tile_zero<kAcc>();
    } else {
      tile_load<kAcc>(sums + kColumnTile * kTileFloats, kTileRowBytes);
    }
  }
  tile_load<kWeights>(weights + kTile * kWeightBytes + kColumnTile * kTileBytes, kTileRowBytes);
  tile_dot<kAcc, 4 + kTile, kWeights>();
  if constexpr (kColumnTile > 0 && kTile == (kTiles > 1 ? 1 : 0)) {
    tile_store<1 - kAcc>(sums + (kColumnTile - 1) * kTileFloats, kTileRowBytes);
  }
  if constexpr (kStep + 1 < kTiles * kColumnTiles) {
    weigh_steps<kTiles, kFromZero, kStep + 1>(weights, sums);
  } else {
    tile_store<kAcc>(sums + kColumnTile * kTileFloats, kTileRowBytes);
  }
}

/// Bytes from one V tile to that of the next 16 dims, of the same 32 tokens.
inline constexpr std::int64_t kValueStride = 4 * kTileBytes;

/// sums [d tile][4][16][16] += V^T weights over kTiles k tiles of 32 tokens, or = if kFromZero: V tiles of one d tile
/// stay in tmm4..7, weights stream through tmm2 and 3, those of a pass stay in L1; sums are stored one chain late.
template <int kTiles, bool kFromZero>
void weigh(const std::byte* values, const std::byte* weights, float* sums, int num_d_tiles) noexcept {
  for (int d = 0; d < num_d_tiles; ++d, values += kValueStride, sums += kSlotFloats) {
    tile_load<4>(values, kTileRowBytes);
    if constexpr (kTiles > 1) tile_load<5>(values + kTileBytes, kTileRowBytes);
    if constexpr (kTiles > 2) tile_load<6>(values + 2 * kTileBytes, kTileRowBytes);
    if constexpr (kTiles > 3) tile_load<7>(values + 3 * kTileBytes, kTileRowBytes);
    weigh_steps<kTiles, kFromZero>(weights, sums);
  }
}

/// The same for `count` (1..4) k tiles.
template <bool kFromZero>
void weigh_values(int count, const std::byte* values, const std::byte* weights, float* sums, int num_d_tiles) noexcept {
  if (count == 1) return weigh<1, kFromZero>(values, weights, sums, num_d_tiles);
  if (count == 2) return weigh<2, kFromZero>(values, weights, sums, num_d_tiles);
  if (count == 3) return weigh<3, kFromZero>(values, weights, sums, num_d_tiles);
  weigh<4, kFromZero>(values, weights, sums, num_d_tiles);
}

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
