// Decode's softmax: which keys the columns see, scores to weights, maxima and sums carried from step to step.
//
// Layer: kernels, only for the x86_amx_decode*.cc files (see x86_amx_instructions.h for the compile region).
#pragma once

#include "kernels/x86_amx_rows.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

/// Of one task, over scores [step][columns], a step being kTiles tiles of 16 tokens. A column is a (query row, head) of
/// the group; kColumns, 4, 8 or 16, is how many a tile has.
template <int kTiles, int kColumns>
class DecodeSoftmax {
 public:
  static constexpr int kStep = kTiles * kTileRows;
  static constexpr int kVectors = kTiles * kColumns;  ///< Of 16 lanes: 16 / kColumns tokens each.

  /// `mask` is scratch, [step][columns].
  DecodeSoftmax(const AttendParams& params, const AttendTask& task, float* mask) noexcept
      : params_(params),
        task_(task),
        mask_(mask),
        num_columns_(task.num_rows * static_cast<int>(params.group)),
        is_plain_(params.logits_soft_cap == 0 && params.alibi_slopes == nullptr &&
                  params.mask_kind == MaskKind::kNone) {
    find_visible_keys();
  }

  int num_columns() const noexcept { return num_columns_; }
  int row_of(int column) const noexcept { return column / static_cast<int>(params_.group); }
  int head_of(int column) const noexcept { return column % static_cast<int>(params_.group); }
  std::int64_t first_key() const noexcept { return first_key_; }  ///< Visible to some column.
  std::int64_t end_key() const noexcept { return end_key_; }

  void begin() noexcept {
    max_ = _mm512_set1_ps(kLowestLogit);
    sum_ = _mm512_setzero_ps();
  }

  /// Scores of the step to weights 2^(logit - max) in place; carries max and sum. Calls beside() with each vector. True
  /// if some column's maximum grew: correction().
  template <class Beside>
  PAGEDKV_AMX_INLINE bool weigh(float* scores, std::int64_t step, const Beside& beside) noexcept {
    if (!is_plain_) {
      bend(scores, step);
    } else {
      const __m512 scale = _mm512_set1_ps(params_.sm_scale * kLog2E);
      for (int i = 0; i < kVectors; ++i) {
        _mm512_store_ps(scores + i * 16, _mm512_mul_ps(_mm512_load_ps(scores + i * 16), scale));
      }
    }
    if (step < last_first_key_ || step + kStep > first_end_key_) hide(scores, step);
    __m512 max = max_;
    for (int i = 0; i < kVectors; ++i) max = _mm512_max_ps(max, _mm512_load_ps(scores + i * 16));
    max = fold_max(max);
    const __mmask16 grown = _mm512_cmp_ps_mask(max, max_, _CMP_GT_OQ);
    correction_ = _mm512_mask_mov_ps(_mm512_set1_ps(1.f), grown, exp2_exact(_mm512_sub_ps(max_, max)));
    max_ = max;
    __m512 sum = _mm512_mul_ps(sum_, correction_);
    for (int i = 0; i < kVectors; ++i) {
      const __m512 weight = exp2_exact(_mm512_sub_ps(_mm512_load_ps(scores + i * 16), max));
      sum = _mm512_add_ps(sum, weight);
      _mm512_store_ps(scores + i * 16, weight);
      beside();
    }
    sum_ = sum;
    return grown != 0;
  }

  /// What the sums of each lane's column are to be multiplied by.
  __m512 correction() const noexcept { return correction_; }

  /// Lets the sinks join and writes lse; calls write_row(column, factor) with what turns sums into the result.
  template <class WriteRow>
  void finish(const WriteRow& write_row) const noexcept {
    alignas(64) float max[16], sum[16];
    _mm512_store_ps(max, max_);
    _mm512_store_ps(sum, fold_sum(sum_));
    for (int c = 0; c < num_columns_; ++c) {
      const RowEnd end = end_row(params_, task_, head_of(c), max[c], sum[c]);
      write_row(c, end.factor);
      write_lse(params_, task_, row_of(c), head_of(c), end.lse);
    }
  }

 private:
  static constexpr int kTokensAVector = 16 / kColumns;

  void find_visible_keys() noexcept {
    first_key_ = task_.kv_end, end_key_ = last_first_key_ = task_.kv_begin, first_end_key_ = task_.kv_end;
    for (int lane = 0; lane < 16; ++lane) lane_first_[lane] = lane_end_[lane] = 0, lane_slope_[lane] = 0;
    for (int c = 0; c < num_columns_; ++c) {
      const Visible keys = visible_keys(params_, task_, row_of(c));
      first_key_ = std::min<std::int64_t>(first_key_, keys.first);
      end_key_ = std::max<std::int64_t>(end_key_, keys.end);
      last_first_key_ = std::max<std::int64_t>(last_first_key_, keys.first);
      first_end_key_ = std::min<std::int64_t>(first_end_key_, keys.end);
      for (int lane = c; lane < 16; lane += kColumns) {
        lane_first_[lane] = keys.first, lane_end_[lane] = keys.end;
        lane_position_[lane] = static_cast<std::int32_t>(query_position(task_, row_of(c)));
        if (params_.alibi_slopes != nullptr) {
          lane_slope_[lane] = params_.alibi_slopes[task_.kv_head * params_.group + static_cast<unsigned>(head_of(c))];
        }
      }
    }
  }

  __m512i tokens_of_vector(std::int64_t step, int vector) const noexcept {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i token = _mm512_srli_epi32(lane, static_cast<unsigned>(__builtin_ctz(kColumns)));
    return _mm512_add_epi32(token, _mm512_set1_epi32(static_cast<int>(step) + vector * kTokensAVector));
  }

  /// Soft cap, ALiBi and mask; leaves logits in base 2.
  void bend(float* scores, std::int64_t step) noexcept {
    const bool has_mask = params_.mask_kind != MaskKind::kNone, is_f16 = params_.kv_dtype == DType::f16;
    if (has_mask) spread_mask(step);
    const float cap = params_.logits_soft_cap;
    const __m512 scale = _mm512_set1_ps(kLog2E * (cap > 0 ? 2 * params_.sm_scale / cap : params_.sm_scale));
    const __m512 base2_cap = _mm512_set1_ps(cap * kLog2E), twice_cap = _mm512_set1_ps(2 * cap * kLog2E);
    const __m512i position = _mm512_load_si512(lane_position_);
    const __m512 slope = _mm512_mul_ps(_mm512_load_ps(lane_slope_), _mm512_set1_ps(kLog2E));
    for (int i = 0; i < kVectors; ++i) {
      __m512 x = _mm512_mul_ps(_mm512_load_ps(scores + i * 16), scale);
      if (cap > 0) x = is_f16 ? soft_cap_exact(x, base2_cap, twice_cap) : soft_cap(x, base2_cap, twice_cap);
      const __m512i distance = _mm512_sub_epi32(tokens_of_vector(step, i), position);
      x = _mm512_fmadd_ps(slope, _mm512_cvtepi32_ps(distance), x);
      if (has_mask) x = add_mask(x, _mm512_load_ps(mask_ + i * 16));
      _mm512_store_ps(scores + i * 16, x);
    }
  }

  /// mask [step][columns] from the mask rows of the columns; heads that share a row's mask are expanded again, in L1.
  void spread_mask(std::int64_t step) noexcept {
    alignas(64) float entries[16];
    for (int u = 0; u < kTiles; ++u) {
      const std::int64_t token = step + u * kTileRows;
      const std::int64_t count = std::min<std::int64_t>(kTileRows, task_.kv_end - token);
      for (int c = 0; c < kColumns; ++c) {
        __m512 logits = _mm512_setzero_ps();
        if (c < num_columns_ && count > 0) {
          const std::int64_t entry = mask_entry(params_, task_, row_of(c), head_of(c)) + token;
          logits = mask_logits(params_.mask_kind, task_.mask, entry, static_cast<int>(count));
        }
        _mm512_store_ps(entries, logits);
        for (int t = 0; t < kTileRows; ++t) mask_[(u * kTileRows + t) * kColumns + c] = entries[t];
      }
    }
  }

  /// Keys outside a column's range get the hidden logit: ragged ends, causality, window.
  void hide(float* scores, std::int64_t step) const noexcept {
    const __m512i first = _mm512_load_si512(lane_first_), end = _mm512_load_si512(lane_end_);
    for (int i = 0; i < kVectors; ++i) {
      const __m512i token = tokens_of_vector(step, i);
      const __mmask16 hidden = _mm512_cmplt_epi32_mask(token, first) | _mm512_cmpge_epi32_mask(token, end);
      _mm512_mask_storeu_ps(scores + i * 16, hidden, _mm512_set1_ps(kHiddenLogit));
    }
  }

  /// Over the lanes that hold the same column.
  static __m512 fold_max(__m512 x) noexcept {
    if constexpr (kColumns <= 8) x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    if constexpr (kColumns <= 4) x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    return x;
  }
  static __m512 fold_sum(__m512 x) noexcept {
    if constexpr (kColumns <= 8) x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    if constexpr (kColumns <= 4) x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    return x;
  }

  const AttendParams& params_;
  const AttendTask& task_;
  float* const mask_;
  const int num_columns_;
  const bool is_plain_;                          // neither soft cap nor ALiBi nor mask
  std::int64_t first_key_, end_key_;             // visible to some column
  std::int64_t last_first_key_, first_end_key_;  // between them: visible to all
  alignas(64) std::int32_t lane_first_[16], lane_end_[16], lane_position_[16] = {};
  alignas(64) float lane_slope_[16];
  __m512 max_, sum_, correction_;  // of the lane's column; sums are a lane's own until the end
};

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
