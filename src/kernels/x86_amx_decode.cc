// Decode over bf16 pages with AMX: at most 16 query columns against every key, at the speed of the read.
//
// A step is 16, 32 or 64 tokens (16 KiB of K and V), at absolute positions. S = K q^T takes K rows in place as the A
// tile and q^T as B; the softmax runs down the columns in f32; V is added with f32 FMA for up to 4 columns and as a B
// tile (pairs of rows interleaved in L1) with bf16 weights for more. The next step is prefetched all along.
// Accumulators f32. Reads each K and V byte once. Limit: the read of memory.
#include <new>

#include "kernels/x86_amx_kernels.h"
#include "kernels/x86_amx_rows.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

constexpr int kMaxStep = 64;  // tokens

/// Pieces of scratch, all 64-byte aligned. K32 and V32 are the head dimensions rounded up to 32.
struct DecodeScratch {
  std::byte* queries;  // [K32 / 32][terms][16 pairs][columns][2] bf16
  float* scores;       // [step][columns]
  float* mask;         // [step][columns]
  std::byte* weights;  // [step / 32][columns][32] bf16
  std::byte* values;   // [step / 32][V32 / 16][16 pairs][16][2] bf16
  float* sums;         // [columns][V32]
  std::byte* k_rows;   // [step][K32] bf16: tiles that are not whole in one page
  std::byte* v_rows;   // [step][V32] bf16

  std::size_t bytes;

  DecodeScratch(const AttendParams& params, std::byte* base) noexcept : bytes(0) {
    const auto k32 = static_cast<std::size_t>(ceil_to(static_cast<int>(params.head_dim), 32));
    const auto v32 = static_cast<std::size_t>(ceil_to(static_cast<int>(params.v_head_dim), 32));
    const std::size_t columns = kDecodeColumns;
    queries = take(base, k32 / 32 * 2 * kTileBytes);
    scores = take_floats(base, kMaxStep * columns);
    mask = take_floats(base, kMaxStep * columns);
    weights = take(base, 2 * kTileBytes);
    values = take(base, 2 * v32 / 16 * kTileBytes);
    sums = take_floats(base, columns * v32);
    k_rows = take(base, kMaxStep * k32 * 2);
    v_rows = take(base, kMaxStep * v32 * 2);
  }

 private:
  std::byte* take(std::byte* base, std::size_t count) noexcept {
    std::byte* piece = base == nullptr ? nullptr : base + bytes;
    bytes += (count + 63) / 64 * 64;
    return piece;
  }
  float* take_floats(std::byte* base, std::size_t count) noexcept {
    return reinterpret_cast<float*>(take(base, count * 4));
  }
};

/// One task. kTiles: 16-token tiles a step. kColumns: columns of the tiles, a power of two. kFmaColumns: the columns in
/// use if V is added by FMA, 0 if by AMX.
template <int kTiles, int kColumns, int kFmaColumns>
class DecodeTask {
 public:
  DecodeTask(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept
      : params_(params),
        task_(task),
        rows_(params, task),
        scratch_(params, scratch),
        num_columns_(kFmaColumns != 0 ? kFmaColumns : task.num_rows * static_cast<int>(params.group)),
        k_tiles_(ceil_to(static_cast<int>(params.head_dim), 32) / 32),
        v_chunks_(ceil_to(static_cast<int>(params.v_head_dim), 32) / 32),
        terms_(query_terms(params.q_dtype)),
        is_plain_(params.logits_soft_cap == 0 && params.alibi_slopes == nullptr &&
                  params.mask_kind == MaskKind::kNone) {
    find_visible_keys();
    std::memset(scratch_.sums, 0, static_cast<std::size_t>(num_columns_ * v_chunks_) * 128);
    max_ = _mm512_set1_ps(kLowestLogit);
    sum_ = _mm512_setzero_ps();
  }

  void run() noexcept {
    if (first_key_ < end_key_) {
      const TileScope tiles(tile_config());
      pack_queries();
      std::int64_t step = first_key_ / kStep * kStep;
      for (; step < end_key_; step += kStep) {
        plan_prefetch(step);
        for (int u = 0; u < kTiles; ++u) tiles_[u] = tile_rows(step + u * kTileRows, u);
        score();
        const bool all_visible = step >= last_first_key_ && step + kStep <= first_end_key_;
        const bool rescale = softmax(step, all_visible);
        const bool may_hide = hides_some(step);
        if (may_hide) set_exceptions_aside(step);
        if constexpr (kFmaColumns != 0) {
          add_values_by_fma(rescale);
        } else {
          add_values_by_amx(rescale);
        }
        if (may_hide) add_exceptions();
      }
    }
    finish();
  }

 private:
  static constexpr int kStep = kTiles * kTileRows;
  static constexpr int kStepsAhead = 2;
  static constexpr int kScoreVectors = kTiles * kColumns;  // of 16 lanes: 16 / kColumns tokens each
  static constexpr int kTokensAVector = 16 / kColumns;
  static constexpr int kPairs = kTiles == 1 ? 8 : 16;       // token pairs of a weight tile
  static constexpr int kWeightTiles = kTiles == 4 ? 2 : 1;  // of 2 * kPairs tokens
  // Tile registers: 0, 1 scores; 2 K; 3 queries; 4 weights; 5 V; 6, 7 sums.

  TileConfig tile_config() const noexcept {
    TileConfig config;
    config.set(0, kTileRows, kColumns * 4);
    config.set(1, kTileRows, kColumns * 4);
    config.set(2, kTileRows, kTileRowBytes);
    config.set(3, kTileRows, kColumns * 4);
    config.set(4, num_columns_, kPairs * 4);
    config.set(5, kPairs, kTileRowBytes);
    config.set(6, num_columns_, kTileRowBytes);
    config.set(7, num_columns_, kTileRowBytes);
    return config;
  }

  int row_of(int column) const noexcept { return column / static_cast<int>(params_.group); }
  int head_of(int column) const noexcept { return column % static_cast<int>(params_.group); }

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
        lane_position_[lane] = static_cast<std::int32_t>(task_.first_pos + row_of(c));
        if (params_.alibi_slopes != nullptr) {
          lane_slope_[lane] = params_.alibi_slopes[task_.kv_head * params_.group + static_cast<unsigned>(head_of(c))];
        }
      }
    }
  }

  /// q^T as B tiles: dword (pair p, column c) holds elements 2p, 2p + 1 of column c.
  void pack_queries() noexcept {
    const int dim = static_cast<int>(params_.head_dim);
    std::memset(scratch_.queries, 0, static_cast<std::size_t>(k_tiles_ * terms_) * kTileBytes);
    alignas(64) std::uint32_t pairs[16];
    for (int c = 0; c < num_columns_; ++c) {
      const std::byte* row = static_cast<const std::byte*>(params_.q) +
                             row_offset(params_, task_, row_of(c), head_of(c), params_.head_dim) *
                                 static_cast<int>(size_of(params_.q_dtype));
      for (int i = 0; i < k_tiles_ * terms_; ++i) {
        _mm512_store_si512(pairs, query_piece(row, params_.q_dtype, i / terms_ * 32, dim, i % terms_));
        auto* to = reinterpret_cast<std::uint32_t*>(scratch_.queries + i * kTileBytes);
        for (int p = 0; p < 16; ++p) to[p * kColumns + c] = pairs[p];
      }
    }
  }

  /// The rows of tokens [token, token + 16): in place if they are whole in one page, else copied, zeros where the task
  /// has no key.
  TileRows tile_rows(std::int64_t token, int tile) noexcept {
    const std::int64_t begin = std::max(token, task_.kv_begin), end = std::min(token + kTileRows, task_.kv_end);
    if (end - begin == kTileRows) {
      const KvRows::Run run = rows_.at(token);
      if (run.rows >= kTileRows && params_.head_dim % 32 == 0) return {run.k, run.v, rows_.k_stride, rows_.v_stride};
    }
    const std::int64_t k_bytes = k_tiles_ * 64, v_bytes = v_chunks_ * 64;
    std::byte* k = scratch_.k_rows + tile * kTileRows * k_bytes;
    std::byte* v = scratch_.v_rows + tile * kTileRows * v_bytes;
    std::memset(k, 0, static_cast<std::size_t>(kTileRows * k_bytes));
    std::memset(v, 0, static_cast<std::size_t>(kTileRows * v_bytes));
    for (std::int64_t t = begin; t < end;) {
      const KvRows::Run run = rows_.at(t);
      const std::int64_t count = std::min(run.rows, end - t);
      for (std::int64_t i = 0; i < count; ++i) {
        copy_row(k + (t - token + i) * k_bytes, run.k + i * rows_.k_stride, rows_.k_bytes, k_bytes);
        copy_row(v + (t - token + i) * v_bytes, run.v + i * rows_.v_stride, rows_.v_bytes, v_bytes);
      }
      t += count;
    }
    return {k, v, k_bytes, v_bytes};
  }

  /// Lines of the step that lies kStepsAhead ahead, here or in the next task, shared out: a fifth while the scores are
  /// computed, the rest over the weighted sum.
  void plan_prefetch(std::int64_t step) noexcept {
    prefetch_.clear();
    const std::int64_t token = step + kStepsAhead * kStep;
    if (token < end_key_) {
      prefetch_.add(rows_, token, std::min<std::int64_t>(kStep, end_key_ - token));
    } else if (const AttendTask* next = task_.next; next != nullptr) {
      const std::int64_t end_step = (end_key_ + kStep - 1) / kStep * kStep;
      const std::int64_t begin = next->kv_begin / kStep * kStep + (token - end_step);
      const std::int64_t first = std::max(begin, next->kv_begin), end = std::min(begin + kStep, next->kv_end);
      if (first < end) prefetch_.add(KvRows(params_, *next), first, end - first);
    }
    score_lines_ = prefetch_.num_lines() * 3 / (16 * k_tiles_ * kTiles);
    value_lines_ = prefetch_.num_lines() - score_lines_ * k_tiles_ * kTiles - kScoreVectors;
  }

  /// scores [step][columns] = K q^T, two K tiles at a time.
  void score() noexcept {
    const int num_lines = score_lines_;
    for (int u = 0; u < kTiles; u += 2) {
      const TileRows& a = tiles_[u];
      const TileRows& b = tiles_[kTiles == 1 ? 0 : u + 1];
      tile_zero<0>();
      if constexpr (kTiles > 1) tile_zero<1>();
      for (int i = 0; i < k_tiles_; ++i) {
        for (int term = 0; term < terms_; ++term) {
          tile_load<3>(scratch_.queries + (i * terms_ + term) * kTileBytes, kColumns * 4);
          tile_load<2>(a.k + i * kTileRowBytes, a.k_stride);
          tile_dot<0, 2, 3>();
          if (term == 0) prefetch_.emit(num_lines);
          if constexpr (kTiles > 1) {
            tile_load<2>(b.k + i * kTileRowBytes, b.k_stride);
            tile_dot<1, 2, 3>();
            if (term == 0) prefetch_.emit(num_lines);
          }
        }
      }
      tile_store<0>(scratch_.scores + u * kTileRows * kColumns, kColumns * 4);
      if constexpr (kTiles > 1) tile_store<1>(scratch_.scores + (u + 1) * kTileRows * kColumns, kColumns * 4);
    }
  }

  /// Scores to weights 2^(logit - max) in place; carries max and sum. True if some column's maximum grew:
  /// `correction_`.
  bool softmax(std::int64_t step, bool all_visible) noexcept {
    float* scores = scratch_.scores;
    if (!is_plain_) {
      bend_scores(step);
    } else {
      const __m512 scale = _mm512_set1_ps(params_.sm_scale * kLog2E);
      for (int i = 0; i < kScoreVectors; ++i) {
        _mm512_store_ps(scores + i * 16, _mm512_mul_ps(_mm512_load_ps(scores + i * 16), scale));
      }
    }
    if (!all_visible) hide_scores(step);
    __m512 max = max_;
    for (int i = 0; i < kScoreVectors; ++i) max = _mm512_max_ps(max, _mm512_load_ps(scores + i * 16));
    max = fold_max(max);
    const __mmask16 grown = _mm512_cmp_ps_mask(max, max_, _CMP_GT_OQ);
    correction_ = _mm512_mask_mov_ps(_mm512_set1_ps(1.f), grown, exp2_exact(_mm512_sub_ps(max_, max)));
    max_ = max;
    __m512 sum = _mm512_mul_ps(sum_, correction_);
    for (int i = 0; i < kScoreVectors; ++i) {
      const __m512 weight = exp2_exact(_mm512_sub_ps(_mm512_load_ps(scores + i * 16), max));
      sum = _mm512_add_ps(sum, weight);
      _mm512_store_ps(scores + i * 16, weight);
      prefetch_.emit(1);
    }
    sum_ = sum;
    return grown != 0;
  }

  __m512i tokens_of_vector(std::int64_t step, int vector) const noexcept {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i token = _mm512_srli_epi32(lane, static_cast<unsigned>(__builtin_ctz(kColumns)));
    return _mm512_add_epi32(token, _mm512_set1_epi32(static_cast<int>(step) + vector * kTokensAVector));
  }

  /// Soft cap, ALiBi and mask; leaves logits in base 2.
  void bend_scores(std::int64_t step) noexcept {
    const bool has_mask = params_.mask_kind != MaskKind::kNone;
    if (has_mask) spread_mask(step);
    const float cap = params_.logits_soft_cap;
    const __m512 scale = _mm512_set1_ps(kLog2E * (cap > 0 ? 2 * params_.sm_scale / cap : params_.sm_scale));
    const __m512i position = _mm512_load_si512(lane_position_);
    const __m512 slope = _mm512_mul_ps(_mm512_load_ps(lane_slope_), _mm512_set1_ps(kLog2E));
    for (int i = 0; i < kScoreVectors; ++i) {
      __m512 x = _mm512_mul_ps(_mm512_load_ps(scratch_.scores + i * 16), scale);
      if (cap > 0) x = soft_cap(x, _mm512_set1_ps(cap * kLog2E), _mm512_set1_ps(2 * cap * kLog2E));
      const __m512i distance = _mm512_sub_epi32(tokens_of_vector(step, i), position);
      x = _mm512_fmadd_ps(slope, _mm512_cvtepi32_ps(distance), x);
      if (has_mask) x = add_mask(x, _mm512_load_ps(scratch_.mask + i * 16));
      _mm512_store_ps(scratch_.scores + i * 16, x);
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
          const std::int64_t entry =
              task_.mask_offset + row_of(c) * task_.mask_row_stride + head_of(c) * task_.mask_head_stride + token;
          logits = mask_logits(params_.mask_kind, task_.mask, entry, static_cast<int>(count));
        }
        _mm512_store_ps(entries, logits);
        for (int t = 0; t < kTileRows; ++t) scratch_.mask[(u * kTileRows + t) * kColumns + c] = entries[t];
      }
    }
  }

  /// Keys outside a column's range get the hidden logit: ragged ends, causality, window.
  void hide_scores(std::int64_t step) noexcept {
    const __m512i first = _mm512_load_si512(lane_first_), end = _mm512_load_si512(lane_end_);
    for (int i = 0; i < kScoreVectors; ++i) {
      const __m512i token = tokens_of_vector(step, i);
      const __mmask16 hidden = _mm512_cmplt_epi32_mask(token, first) | _mm512_cmpge_epi32_mask(token, end);
      _mm512_mask_storeu_ps(scratch_.scores + i * 16, hidden, _mm512_set1_ps(kHiddenLogit));
    }
  }

  void rescale_sums() noexcept {
    alignas(64) float factor[16];
    _mm512_store_ps(factor, correction_);
    for (int c = 0; c < num_columns_; ++c) {
      float* row = scratch_.sums + c * v_chunks_ * 32;
      for (int d = 0; d < v_chunks_ * 32; d += 16) {
        _mm512_store_ps(row + d, _mm512_mul_ps(_mm512_load_ps(row + d), _mm512_set1_ps(factor[c])));
      }
    }
  }

  /// sums += weights V, 32 dimensions at a time: bf16 pairs split into even and odd f32 by shift and mask.
  void add_values_by_fma(bool rescale) noexcept {
    if (rescale) rescale_sums();
    constexpr std::size_t kC = kFmaColumns == 0 ? 1 : kFmaColumns;
    const __m512i odd_bits = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    const int lines_a_chunk = value_lines_ / v_chunks_, lines_a_pair = lines_a_chunk / (kStep / 2);
    const int lines_after = lines_a_chunk - lines_a_pair * (kStep / 2) + (v_chunks_ - 1);
    const int v_dim = static_cast<int>(params_.v_head_dim);
    const auto row_floats = static_cast<std::size_t>(v_chunks_) * 32;
    float* const sums = scratch_.sums;
    for (int chunk = 0; chunk < v_chunks_; ++chunk) {
      const __mmask32 lanes = first_lanes32(v_dim - chunk * 32);
      __m512 even[kC], odd[kC];
      for (std::size_t c = 0; c < kC; ++c) {
        even[c] = _mm512_load_ps(sums + c * row_floats + chunk * 32);
        odd[c] = _mm512_load_ps(sums + c * row_floats + chunk * 32 + 16);
      }
      for (int u = 0; u < kTiles; ++u) {
        const std::byte* v = tiles_[u].v + chunk * 64;
        const std::int64_t stride = tiles_[u].v_stride;
        const float* weight = scratch_.scores + u * kTileRows * kColumns;
        for (int t = 0; t < kTileRows; ++t, v += stride, weight += kColumns) {
          const __m512i row = _mm512_maskz_loadu_epi16(lanes, v);
          const __m512 row_even = _mm512_castsi512_ps(_mm512_slli_epi32(row, 16));
          const __m512 row_odd = _mm512_castsi512_ps(_mm512_and_si512(row, odd_bits));
          for (std::size_t c = 0; c < kC; ++c) {
            even[c] = _mm512_fmadd_ps(row_even, _mm512_set1_ps(weight[c]), even[c]);
            odd[c] = _mm512_fmadd_ps(row_odd, _mm512_set1_ps(weight[c]), odd[c]);
          }
          if (t % 2 == 1) prefetch_.emit(lines_a_pair);
        }
      }
      for (std::size_t c = 0; c < kC; ++c) {
        _mm512_store_ps(sums + c * row_floats + chunk * 32, even[c]);
        _mm512_store_ps(sums + c * row_floats + chunk * 32 + 16, odd[c]);
      }
      prefetch_.emit(lines_after);
    }
  }

  /// sums += weights V with the weights as A and V as B: rows of V interleaved in pairs by two unpacks a 64 bytes.
  void add_values_by_amx(bool rescale) noexcept {
    if (rescale) rescale_sums();
    pack_weights();
    const int v_dim = static_cast<int>(params_.v_head_dim);
    const int lines = value_lines_ * 3 / (4 * v_chunks_ * kStep / 2);
    for (int pair = 0; pair < kStep / 2; ++pair) {
      const TileRows& tile = tiles_[pair / 8];
      const std::byte* v = tile.v + (pair % 8) * 2 * tile.v_stride;
      std::byte* to = scratch_.values + (pair / kPairs * 2 * v_chunks_) * kTileBytes + pair % kPairs * kTileRowBytes;
      for (int chunk = 0; chunk < v_chunks_; ++chunk, v += 64, to += 2 * kTileBytes) {
        const __mmask32 lanes = first_lanes32(v_dim - chunk * 32);
        const __m512i a = _mm512_maskz_loadu_epi16(lanes, v), b = _mm512_maskz_loadu_epi16(lanes, v + tile.v_stride);
        _mm512_store_si512(to, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(to + kTileBytes, _mm512_unpackhi_epi16(a, b));
        prefetch_.emit(lines);
      }
    }
    const int lines_after = (value_lines_ - lines * v_chunks_ * kStep / 2 + v_chunks_ - 1) / v_chunks_;
    const std::int64_t sums_stride = v_chunks_ * 128;
    for (int chunk = 0; chunk < v_chunks_; ++chunk) {
      float* low = scratch_.sums + chunk * 32;
      tile_load<6>(low, sums_stride);
      tile_load<7>(low + 16, sums_stride);
      for (int i = 0; i < kWeightTiles; ++i) {
        const std::byte* v = scratch_.values + (i * v_chunks_ + chunk) * 2 * kTileBytes;
        tile_load<4>(scratch_.weights + i * kTileBytes, kTileRowBytes);
        tile_load<5>(v, kTileRowBytes);
        tile_dot<6, 4, 5>();
        tile_load<5>(v + kTileBytes, kTileRowBytes);
        tile_dot<7, 4, 5>();
      }
      prefetch_.emit(lines_after);
      tile_store<6>(low, sums_stride);
      tile_store<7>(low + 16, sums_stride);
    }
  }

  /// True if a key of the step may be hidden from a column while another sees it.
  bool hides_some(std::int64_t step) const noexcept {
    return params_.mask_kind != MaskKind::kNone || std::max(step, task_.kv_begin) < last_first_key_ ||
           std::min(step + kStep, task_.kv_end) > first_end_key_;
  }

  /// Rows of V that hold an infinity or a NaN become zeros, to be added by themselves: times the weight 0 they would
  /// make NaN of columns that do not see them.
  void set_exceptions_aside(std::int64_t step) noexcept {
    num_exceptions_ = 0;
    const std::int64_t v_bytes = v_chunks_ * 64, end = std::min(step + kStep, task_.kv_end);
    for (std::int64_t token = std::max(step, task_.kv_begin); token < end; ++token) {
      const int index = static_cast<int>(token - step), tile = index / kTileRows, row = index % kTileRows;
      TileRows& rows = tiles_[tile];
      if (is_finite_row(rows.v + row * rows.v_stride, params_.v_head_dim)) [[likely]]
        continue;
      std::byte* const copy = scratch_.v_rows + tile * kTileRows * v_bytes;
      for (int r = 0; rows.v != copy && r < kTileRows; ++r) {
        copy_row(copy + r * v_bytes, rows.v + r * rows.v_stride, rows_.v_bytes, v_bytes);
      }
      rows.v = copy, rows.v_stride = v_bytes;
      std::memset(copy + row * v_bytes, 0, static_cast<std::size_t>(v_bytes));
      exceptions_[num_exceptions_++] = {index, rows_.at(token).v};
    }
  }

  /// Adds the rows set aside to the columns that give them weight.
  void add_exceptions() noexcept {
    const __m512i zero = _mm512_setzero_si512(), odd_bits = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (int i = 0; i < num_exceptions_; ++i) {
      for (int c = 0; c < num_columns_; ++c) {
        const float weight = scratch_.scores[exceptions_[i].token * kColumns + c];
        if (weight == 0) continue;
        float* to = scratch_.sums + c * v_chunks_ * 32;
        for (int chunk = 0; chunk < v_chunks_; ++chunk, to += 32) {
          const __mmask32 lanes = first_lanes32(static_cast<int>(params_.v_head_dim) - chunk * 32);
          const __m512i v = _mm512_maskz_loadu_epi16(lanes, exceptions_[i].v + chunk * 64);
          const __m512i low = kFmaColumns != 0 ? _mm512_slli_epi32(v, 16) : _mm512_unpacklo_epi16(zero, v);
          const __m512i high = kFmaColumns != 0 ? _mm512_and_si512(v, odd_bits) : _mm512_unpackhi_epi16(zero, v);
          add_weighted(to, weight, low), add_weighted(to + 16, weight, high);
        }
      }
    }
  }
  static void add_weighted(float* to, float weight, __m512i value) noexcept {
    _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_set1_ps(weight), _mm512_castsi512_ps(value), _mm512_load_ps(to)));
  }

  /// weights [step / 32][column][32] bf16 from f32 [step][columns]: transposed, rounded to nearest even.
  void pack_weights() noexcept {
    static_assert(kFmaColumns != 0 || kColumns >= 8);
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int i = 0; i < kWeightTiles; ++i) {
      const float* from = scratch_.scores + i * 32 * kColumns;
      __m512i r[32];
      for (int j = 0; j < 32; ++j) {
        const bool is_there = j < kScoreVectors - i * 2 * kColumns && j < 2 * kColumns;
        r[j] = is_there ? _mm512_load_si512(from + j * 16) : _mm512_setzero_si512();
      }
      transpose16(r);
      if constexpr (kColumns == 16) transpose16(r + 16);
      for (int c = 0; c < num_columns_; ++c) {
        __m512i row;
        if constexpr (kColumns == 16) {  // r[c]: tokens 0..15 of column c, r[16 + c]: 16..31
          row = to_bf16(_mm512_castsi512_ps(r[c]), _mm512_castsi512_ps(r[16 + c]));
        } else {  // r[c]: even tokens of column c, r[8 + c]: odd ones
          row = to_bf16(_mm512_castsi512_ps(r[c]), _mm512_castsi512_ps(r[(8 + c) % 16]));
          row = _mm512_permutexvar_epi16(interleave, row);
        }
        _mm512_store_si512(scratch_.weights + i * kTileBytes + c * kTileRowBytes, row);
      }
    }
  }

  /// Over the lanes that hold the same column.
  static __m512 fold_max(__m512 x) noexcept {
    if constexpr (kColumns <= 8) x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    if constexpr (kColumns <= 4) x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    if constexpr (kColumns <= 2) x = _mm512_max_ps(x, _mm512_permute_ps(x, 0x4e));
    if constexpr (kColumns <= 1) x = _mm512_max_ps(x, _mm512_permute_ps(x, 0xb1));
    return x;
  }
  static __m512 fold_sum(__m512 x) noexcept {
    if constexpr (kColumns <= 8) x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    if constexpr (kColumns <= 4) x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    if constexpr (kColumns <= 2) x = _mm512_add_ps(x, _mm512_permute_ps(x, 0x4e));
    if constexpr (kColumns <= 1) x = _mm512_add_ps(x, _mm512_permute_ps(x, 0xb1));
    return x;
  }

  /// Divides by the sums, lets the sinks join, writes rows and lse.
  void finish() noexcept {
    alignas(64) float max[16], sum[16];
    _mm512_store_ps(max, max_);
    _mm512_store_ps(sum, fold_sum(sum_));
    for (int c = 0; c < num_columns_; ++c) {
      const RowEnd end = end_row(params_, task_, head_of(c), max[c], sum[c]);
      write_row(c, end.factor);
      write_lse(params_, task_, row_of(c), head_of(c), end.lse);
    }
  }

  void write_row(int column, float factor) noexcept {
    const OutputRow out = output_row(params_, task_, row_of(column), head_of(column));
    const __m512i low = kFmaColumns != 0 ? _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
                                         : _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const int dim = static_cast<int>(params_.v_head_dim);
    for (int chunk = 0; chunk < v_chunks_; ++chunk) {
      const float* from = scratch_.sums + (column * v_chunks_ + chunk) * 32;
      const __m512 a = _mm512_mul_ps(_mm512_load_ps(from), _mm512_set1_ps(factor));
      const __m512 b = _mm512_mul_ps(_mm512_load_ps(from + 16), _mm512_set1_ps(factor));
      out.store(chunk * 32, dim, _mm512_permutex2var_ps(a, low, b));
      out.store(chunk * 32 + 16, dim, _mm512_permutex2var_ps(a, high, b));
    }
  }

  const AttendParams& params_;
  const AttendTask& task_;
  const KvRows rows_;
  const DecodeScratch scratch_;
  const int num_columns_, k_tiles_, v_chunks_, terms_;
  const bool is_plain_;                          // neither soft cap nor ALiBi nor mask
  std::int64_t first_key_, end_key_;             // visible to some column
  std::int64_t last_first_key_, first_end_key_;  // between them: visible to all
  alignas(64) std::int32_t lane_first_[16], lane_end_[16], lane_position_[16] = {};
  alignas(64) float lane_slope_[16];
  __m512 max_, sum_, correction_;  // of the lane's column; sums are a lane's own until the end
  TileRows tiles_[std::size_t{kTiles}];
  /// A token of the step whose V is not finite, and that row.
  struct Exception {
    int token;
    const std::byte* v;
  };
  int num_exceptions_ = 0;
  Exception exceptions_[std::size_t{kStep}];
  int score_lines_, value_lines_;
  Prefetcher prefetch_;
};

template <int kTiles>
void attend_step(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept {
  switch (task.num_rows * static_cast<int>(params.group)) {
    case 1: return DecodeTask<kTiles, 1, 1>(params, task, scratch).run();
    case 2: return DecodeTask<kTiles, 2, 2>(params, task, scratch).run();
    case 3: return DecodeTask<kTiles, 4, 3>(params, task, scratch).run();
    case 4: return DecodeTask<kTiles, 4, 4>(params, task, scratch).run();
    case 5:
    case 6:
    case 7:
    case 8: return DecodeTask<kTiles, 8, 0>(params, task, scratch).run();
    default: return DecodeTask<kTiles, 16, 0>(params, task, scratch).run();
  }
}

}  // namespace

std::size_t decode_scratch_bytes(const AttendParams& params) noexcept { return DecodeScratch(params, nullptr).bytes; }

void attend_decode(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept {
  const FloatModeScope mode;
  // A step and the next one stay in L1 (48 KiB) together with the small arrays.
  const std::uint32_t dims = params.head_dim + params.v_head_dim;
  if (dims <= 160) {
    attend_step<4>(params, task, scratch);
  } else if (dims <= 320) {
    attend_step<2>(params, task, scratch);
  } else {
    attend_step<1>(params, task, scratch);
  }
}

}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
