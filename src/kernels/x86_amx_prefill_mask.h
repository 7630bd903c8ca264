// Which keys of a tile the columns of a block see (ranges and explicit masks, as bits or as logits), and how scores
// become logits.
//
// Layer: kernels, only for x86_amx_prefill.cc (see x86_amx_instructions.h for the compile region).
#pragma once

#include "kernels/x86_amx_prefill_scratch.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

/// Soft cap and ALiBi of a block's columns, from `token` on.
[[maybe_unused]] void aim_bend(Bend& bend, const AttendParams& params, const ColumnBlock& block,
                               std::int32_t token) noexcept {
  const float cap = params.logits_soft_cap;
  bend.is_exact = is_exact(params);
  bend.has_cap = cap > 0, bend.has_slopes = params.alibi_slopes != nullptr;
  bend.scale = _mm512_set1_ps(kLog2E * (bend.has_cap ? 2 * params.sm_scale / cap : params.sm_scale));
  bend.cap = _mm512_set1_ps(cap * kLog2E), bend.twice_cap = _mm512_set1_ps(2 * cap * kLog2E);
  for (int c = 0; c < kColumnTiles; ++c) {
    const __m512i distance = _mm512_sub_epi32(_mm512_set1_epi32(token), _mm512_load_si512(block.position + c * 16));
    bend.slope[c] = _mm512_mul_ps(_mm512_load_ps(block.slope + c * 16), _mm512_set1_ps(kLog2E));
    bend.bias[c] = _mm512_mul_ps(bend.slope[c], _mm512_cvtepi32_ps(distance));
  }
}

/// Raw scores to base-2 logits in place, under the mask logits [4][16 tokens][16 columns] unless null.
[[maybe_unused]] void bend_scores(const Bend& bend, const __m512i* mask, float* scores, int tokens,
                                  int first) noexcept {
  for (int c = 0; c < kColumnTiles; ++c) {
    for (int t = 0; t < kTileRows; ++t) {
      float* const at = scores + (c * tokens + first + t) * 16;
      __m512 x = bend.apply(_mm512_load_ps(at), c, first + t);
      if (mask != nullptr) x = add_mask(x, _mm512_castsi512_ps(mask[c * 16 + t]));
      _mm512_store_ps(at, x);
    }
  }
}

/// Columns whose maximum is so large that its rounding would show. The maximum is a rounded product; a plain softmax
/// computes score * scale - max in one operation and sees that rounding, up to half a unit of `max`: above 2^24 it is 1
/// or more, from 2^30 on enough to overflow or to lose every weight. In these columns the logit is rounded as the
/// maximum was and the difference goes back to the scale of scores, for a softmax that subtracts 0. All other columns
/// keep every bit.
class LargeMaxima {
 public:
  /// Sets the large maxima of the state to 0, if the softmax multiplies and subtracts in one rounding.
  LargeMaxima(SoftmaxState& state, bool is_fused) noexcept {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (int c = 0; c < kColumnTiles; ++c) {
      max_[c] = state.max[c];
      const __m512 size = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(max_[c]), magnitude));
      columns_[c] = is_fused ? _mm512_cmp_ps_mask(size, _mm512_set1_ps(0x1p24F), _CMP_GT_OQ) : __mmask16{0};
      state.max[c] = _mm512_mask_mov_ps(max_[c], columns_[c], _mm512_setzero_ps());
    }
  }
  void put_back(SoftmaxState& state) const noexcept {
    for (int c = 0; c < kColumnTiles; ++c) state.max[c] = max_[c];
  }

  /// Scores [4][16 tokens][16 columns] of a tile, in place.
  PAGEDKV_AMX_INLINE void subtract_from(float* scores, __m512 scale) const noexcept {
    if ((columns_[0] | columns_[1] | columns_[2] | columns_[3]) != 0) [[unlikely]]
      subtract(scores, scale);
  }

 private:
  __attribute__((noinline)) void subtract(float* scores, __m512 scale) const noexcept {
    for (int i = 0; i < kColumnTiles * kTileRows; ++i, scores += 16) {
      __m512 logit = _mm512_mul_ps(_mm512_load_ps(scores), scale);
      keep_rounded(logit);
      const __m512 difference = _mm512_div_ps(_mm512_sub_ps(logit, max_[i / kTileRows]), scale);
      _mm512_mask_storeu_ps(scores, columns_[i / kTileRows], difference);
    }
  }

  __m512 max_[kColumnTiles];
  __mmask16 columns_[kColumnTiles];
};

/// 2^(bound - token), the exponent clamped to 0..16, for 16 columns.
PAGEDKV_AMX_INLINE __m512i power_of_bound(const std::int32_t* bounds, std::int32_t token) noexcept {
  const __m512i index = _mm512_sub_epi32(_mm512_load_si512(bounds), _mm512_set1_epi32(token));
  const __m512i bit = _mm512_min_epi32(_mm512_max_epi32(index, _mm512_setzero_si512()), _mm512_set1_epi32(16));
  return _mm512_sllv_epi32(_mm512_set1_epi32(1), bit);
}

/// Tokens of a tile in the ranges of 16 columns: bit t of lane c.
PAGEDKV_AMX_INLINE __m512i range_bits(const ColumnBlock& block, int column_tile, std::int32_t token) noexcept {
  return _mm512_sub_epi32(power_of_bound(block.end + column_tile * 16, token),
                          power_of_bound(block.first + column_tile * 16, token));
}

/// Tokens of a tile that a mask of bytes or bits shows to 16 columns, likewise. Heads of a row mostly share its mask.
[[maybe_unused]] __m512i mask_bits(const AttendParams& params, const AttendTask& task, const ColumnBlock& block,
                                   int column_tile, std::int32_t token) noexcept {
  alignas(64) std::uint32_t bits[16];
  const std::int64_t* const entries = block.mask_entry + column_tile * 16;
  const int count = static_cast<int>(std::min<std::int64_t>(kTileRows, task.kv_end - token));
  for (int c = 0; c < 16; ++c) {
    const bool is_column = column_tile * 16 + c < block.num_columns;
    if (is_column && c > 0 && entries[c] == entries[c - 1]) {
      bits[c] = bits[c - 1];
    } else {
      bits[c] = is_column ? visible_entries(params.mask_kind, task.mask, entries[c] + token, count) : 0xffffu;
    }
  }
  return _mm512_load_si512(bits);
}

/// Mask logits [16 columns][16 tokens] of one column tile.
[[maybe_unused]] void mask_rows(const AttendParams& params, const AttendTask& task, const ColumnBlock& block,
                                int column_tile, std::int32_t token, __m512i* to) noexcept {
  const std::int64_t* const entries = block.mask_entry + column_tile * 16;
  const int count = static_cast<int>(std::min<std::int64_t>(kTileRows, task.kv_end - token));
  for (int c = 0; c < 16; ++c) {
    if (column_tile * 16 + c >= block.num_columns) {
      to[c] = _mm512_setzero_si512();
    } else if (c > 0 && entries[c] == entries[c - 1]) {
      to[c] = to[c - 1];
    } else {
      to[c] = _mm512_castps_si512(mask_logits(params.mask_kind, task.mask, entries[c] + token, count));
    }
  }
}

/// Mask logits [4][16 tokens][16 columns] of a tile; false, and no more than that, if the mask changes nothing there.
[[maybe_unused]] bool mask_tiles(const AttendParams& params, const AttendTask& task, const ColumnBlock& block,
                                 std::int32_t token, __m512i* to) noexcept {
  __m512i any = _mm512_setzero_si512();
  for (int c = 0; c < kColumnTiles; ++c) mask_rows(params, task, block, c, token, to + c * 16);
  for (int i = 0; i < kBlockColumns; ++i) any = _mm512_or_si512(any, to[i]);
  if (_mm512_test_epi32_mask(any, any) == 0) return false;  // zeros, transposed or not
  for (int c = 0; c < kColumnTiles; ++c) transpose16(to + c * 16);
  return true;
}

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
