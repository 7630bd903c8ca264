// Decode over bf16 pages with AMX: at most 16 query columns against every key, at the speed of the read.
//
// A step is 16, 32 or 64 tokens (mostly 16 KiB of K and V), at absolute positions. S = K q^T takes K rows in place as
// the A tile and q^T as B; the softmax runs down the columns in f32; V stands in place as the B tile, with weights as
// A. The scores of the next step are computed, and the steps after it prefetched, all along. Accumulators f32. Reads
// each K and V byte once. Limit: the read of memory.
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
  std::byte* queries;    // [K32 / 32][terms][16 pairs][columns][2] bf16
  float* scores[2];      // [step][columns]: of this step and of the next one
  float* mask;           // [step][columns]
  std::byte* weights;    // [step / 16][sum tile][16][16][2] bf16
  float* sums;           // [V32 / 32][sum tile][16][16]
  std::byte* k_rows[2];  // [step][K32] bf16: tiles that are not whole in one page, of this step and of the next one
  std::byte* v_rows[2];  // [step][V32] bf16

  std::size_t bytes;

  DecodeScratch(const AttendParams& params, std::byte* base) noexcept : bytes(0) {
    const auto k32 = static_cast<std::size_t>(ceil_to(static_cast<int>(params.head_dim), 32));
    const auto v32 = static_cast<std::size_t>(ceil_to(static_cast<int>(params.v_head_dim), 32));
    const std::size_t columns = kDecodeColumns;
    queries = take(base, k32 / 32 * 2 * kTileBytes);
    for (float*& piece : scores) piece = take_floats(base, kMaxStep * columns);
    mask = take_floats(base, kMaxStep * columns);
    weights = take(base, kMaxStep / kTileRows * 2 * kTileBytes);
    sums = take_floats(base, v32 / 32 * 2 * kTileBytes / 4);
    for (std::byte*& piece : k_rows) piece = take(base, kMaxStep * k32 * 2);
    for (std::byte*& piece : v_rows) piece = take(base, kMaxStep * v32 * 2);
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

/// One task. kTiles: 16-token tiles a step. kColumns: columns of the tiles, a power of two.
template <int kTiles, int kColumns>
class DecodeTask {
 public:
  DecodeTask(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept
      : params_(params),
        task_(task),
        rows_(params, task),
        scratch_(params, scratch),
        num_columns_(task.num_rows * static_cast<int>(params.group)),
        k_tiles_(ceil_to(static_cast<int>(params.head_dim), 32) / 32),
        v_chunks_(ceil_to(static_cast<int>(params.v_head_dim), 32) / 32),
        terms_(query_terms(params)),
        is_plain_(params.logits_soft_cap == 0 && params.alibi_slopes == nullptr &&
                  params.mask_kind == MaskKind::kNone) {
    find_visible_keys();
  }

  void run() noexcept {
    attend();
    // V stands in place, two dimensions and all columns side by side: an infinity or a NaN spreads to its neighbours.
    // This is rare and shows in the sums; then all is done again with such rows of V apart.
    if (!sums_are_finite()) [[unlikely]] {
      sets_exceptions_aside_ = true;
      attend();
    }
    finish();
  }

 private:
  void attend() noexcept {
    std::memset(scratch_.sums, 0, static_cast<std::size_t>(v_chunks_) * kSumTiles * kTileBytes);
    max_ = _mm512_set1_ps(kLowestLogit);
    sum_ = _mm512_setzero_ps();
    if (first_key_ >= end_key_) return;
    const TileScope tiles(tile_config());
    pack_queries();
    std::int64_t step = first_key_ / kStep * kStep;
    begin_prefetch(step);
    begin_scores(step);
    score(num_score_parts());
    for (;; step += kStep) {
      const bool rescale = end_scores(step);
      now_ ^= 1;
      prefetch(step);
      const bool is_last = step + kStep >= end_key_;
      if (is_last) {
        next_part_ = num_score_parts();
      } else {
        begin_scores(step + kStep);
      }
      if (sets_exceptions_aside_) [[unlikely]]
        set_exceptions_aside(step);
      add_values(rescale);
      if (sets_exceptions_aside_) [[unlikely]]
        add_exceptions();
      if (is_last) break;
    }
  }

  static constexpr int kStep = kTiles * kTileRows;
  static constexpr int kScoreVectors = kTiles * kColumns;  // of 16 lanes: 16 / kColumns tokens each
  static constexpr int kTokensAVector = 16 / kColumns;
  // V stands in place as a B tile: a dword is an even and an odd dimension of one token. A row of A with weights in its
  // even places sums the even dimensions, one with weights in its odd places the odd ones. Rows that are free otherwise
  // hold what bf16 leaves of the weights, so that few columns get weights of 16 bits.
  static constexpr int kWeightTerms = kColumns <= 4 ? 2 : 1;
  static constexpr int kSumTiles = kColumns <= 8 ? 1 : 2;  // even and odd dimensions share a tile, or have one each
  // Tile registers: 0, 1 scores; 2 K; 3 queries; 4 weights; 5 V; 6, 7 sums.

  TileConfig tile_config() const noexcept {
    TileConfig config;
    config.set(0, kTileRows, kColumns * 4);
    config.set(1, kTileRows, kColumns * 4);
    config.set(2, kTileRows, kTileRowBytes);
    config.set(3, kTileRows, kColumns * 4);
    config.set(4, num_sums(), kTileRowBytes);
    config.set(5, kTileRows, kTileRowBytes);
    config.set(6, num_sums(), kTileRowBytes);
    config.set(7, num_sums(), kTileRowBytes);
    return config;
  }

  /// Rows of a tile of sums: [even, odd][term][column], or [column] if even and odd have tiles of their own.
  int num_sums() const noexcept { return num_columns_ * kWeightTerms * (kSumTiles == 1 ? 2 : 1); }
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
        lane_position_[lane] = static_cast<std::int32_t>(query_position(task_, row_of(c)));
        if (params_.alibi_slopes != nullptr) {
          lane_slope_[lane] = params_.alibi_slopes[task_.kv_head * params_.group + static_cast<unsigned>(head_of(c))];
        }
      }
    }
  }

  /// q^T as B tiles: dword (pair p, column c) holds elements 2p, 2p + 1 of column c.
  void pack_queries() noexcept {
    std::memset(scratch_.queries, 0, static_cast<std::size_t>(k_tiles_ * terms_) * kTileBytes);
    alignas(64) std::uint32_t pairs[16];
    for (int c = 0; c < num_columns_; ++c) {
      const std::byte* row = static_cast<const std::byte*>(params_.q) +
                             row_offset(params_, task_, row_of(c), head_of(c), params_.head_dim) *
                                 static_cast<int>(size_of(params_.q_dtype));
      for (int i = 0; i < k_tiles_ * terms_; ++i) {
        _mm512_store_si512(pairs, query_piece(params_, row, i / terms_ * 32, i % terms_));
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
      if (run.rows >= kTileRows && (params_.head_dim | params_.v_head_dim) % 32 == 0) {
        return {run.k, run.v, rows_.k_stride, rows_.v_stride};
      }
    }
    const std::int64_t k_bytes = k_tiles_ * 64, v_bytes = v_chunks_ * 64;
    std::byte* k = scratch_.k_rows[now_ ^ 1] + tile * kTileRows * k_bytes;
    std::byte* v = scratch_.v_rows[now_ ^ 1] + tile * kTileRows * v_bytes;
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

  // While a step is summed and the next one scored, the one behind that is prefetched.

  /// The rows of the step at `token`, here or, behind the end, in the next task.
  void find_rows_ahead(RowsAhead& ahead, std::int64_t token) const noexcept {
    ahead.clear();
    if (token < end_key_) {
      add_rows_ahead(ahead, rows_, token, std::min<std::int64_t>(kStep, end_key_ - token));
    } else if (const AttendTask* next = task_.next; next != nullptr) {
      const std::int64_t end_step = (end_key_ + kStep - 1) / kStep * kStep;
      const std::int64_t begin = next->kv_begin / kStep * kStep + (token - end_step);
      const std::int64_t first = std::max(begin, next->kv_begin), end = std::min(begin + kStep, next->kv_end);
      if (first < end) add_rows_ahead(ahead, KvRows(params_, *next), first, end - first);
    }
  }

  void begin_prefetch(std::int64_t step) noexcept { find_rows_ahead(ahead_[step / kStep % 2], step + 2 * kStep); }

  void prefetch(std::int64_t step) noexcept {
    const RowsAhead& next = ahead_[step / kStep % 2];
    RowsAhead& after = ahead_[(step / kStep + 1) % 2];
    find_rows_ahead(after, step + 3 * kStep);
    const int num_steps = kScoreVectors + (v_chunks_ + k_tiles_) * kTiles * kStepsATile;
    prefetch_.start(next, &after, static_cast<std::size_t>(num_steps));
  }

  // Scores of a step are computed in parts, a K tile of 32 dims against each of two tiles of tokens, in the midst of
  // the weighted sum of the step before: neither the matrix unit nor the vector unit waits for the other.

  int num_score_parts() const noexcept { return (kTiles + 1) / 2 * k_tiles_; }

  void begin_scores(std::int64_t step) noexcept {
    for (int u = 0; u < kTiles; ++u) tiles_[now_ ^ 1][u] = tile_rows(step + u * kTileRows, u);
    next_part_ = 0;
  }

  /// The parts before `end` of scores [step][columns] = K q^T.
  void score(int end) noexcept {
    for (; next_part_ < end; ++next_part_) {
      const int u = next_part_ / k_tiles_ * 2, i = next_part_ % k_tiles_;
      if (i == 0) {
        if (u > 0) store_scores(u - 2);
        tile_zero<0>();
        if constexpr (kTiles > 1) tile_zero<1>();
      }
      const TileRows& a = tiles_[now_ ^ 1][u];
      const TileRows& b = tiles_[now_ ^ 1][kTiles == 1 ? 0 : u + 1];
      for (int term = 0; term < terms_; ++term) {
        tile_load<3>(scratch_.queries + (i * terms_ + term) * kTileBytes, kColumns * 4);
        tile_load<2>(a.k + i * kTileRowBytes, a.k_stride);
        tile_dot<0, 2, 3>();
        if constexpr (kTiles > 1) {
          tile_load<2>(b.k + i * kTileRowBytes, b.k_stride);
          tile_dot<1, 2, 3>();
        }
      }
      for (int j = 0; j < std::min(kTiles, 2) * kStepsATile; ++j) prefetch_.step();
    }
  }

  void store_scores(int u) noexcept {
    float* const scores = scratch_.scores[now_ ^ 1];
    tile_store<0>(scores + u * kTileRows * kColumns, kColumns * 4);
    if constexpr (kTiles > 1) tile_store<1>(scores + (u + 1) * kTileRows * kColumns, kColumns * 4);
  }

  /// Scores to weights 2^(logit - max) in place; carries max and sum. True if some column's maximum grew:
  /// `correction_`.
  bool end_scores(std::int64_t step) noexcept {
    store_scores((kTiles - 1) / 2 * 2);
    float* const scores = scratch_.scores[now_ ^ 1];
    if (!is_plain_) {
      bend_scores(scores, step);
    } else {
      const __m512 scale = _mm512_set1_ps(params_.sm_scale * kLog2E);
      for (int i = 0; i < kScoreVectors; ++i) {
        _mm512_store_ps(scores + i * 16, _mm512_mul_ps(_mm512_load_ps(scores + i * 16), scale));
      }
    }
    if (step < last_first_key_ || step + kStep > first_end_key_) hide_scores(scores, step);
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
      prefetch_.step();
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
  void bend_scores(float* scores, std::int64_t step) noexcept {
    const bool has_mask = params_.mask_kind != MaskKind::kNone;
    if (has_mask) spread_mask(step);
    const float cap = params_.logits_soft_cap;
    const __m512 scale = _mm512_set1_ps(kLog2E * (cap > 0 ? 2 * params_.sm_scale / cap : params_.sm_scale));
    const __m512i position = _mm512_load_si512(lane_position_);
    const __m512 slope = _mm512_mul_ps(_mm512_load_ps(lane_slope_), _mm512_set1_ps(kLog2E));
    for (int i = 0; i < kScoreVectors; ++i) {
      __m512 x = _mm512_mul_ps(_mm512_load_ps(scores + i * 16), scale);
      if (cap > 0) x = soft_cap(x, _mm512_set1_ps(cap * kLog2E), _mm512_set1_ps(2 * cap * kLog2E));
      const __m512i distance = _mm512_sub_epi32(tokens_of_vector(step, i), position);
      x = _mm512_fmadd_ps(slope, _mm512_cvtepi32_ps(distance), x);
      if (has_mask) x = add_mask(x, _mm512_load_ps(scratch_.mask + i * 16));
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
  void hide_scores(float* scores, std::int64_t step) const noexcept {
    const __m512i first = _mm512_load_si512(lane_first_), end = _mm512_load_si512(lane_end_);
    for (int i = 0; i < kScoreVectors; ++i) {
      const __m512i token = tokens_of_vector(step, i);
      const __mmask16 hidden = _mm512_cmplt_epi32_mask(token, first) | _mm512_cmpge_epi32_mask(token, end);
      _mm512_mask_storeu_ps(scores + i * 16, hidden, _mm512_set1_ps(kHiddenLogit));
    }
  }

  float* sum_tile(int chunk, int tile) const noexcept {
    return scratch_.sums + (chunk * kSumTiles + tile) * (kTileBytes / 4);
  }

  float* even_sums(int chunk) const noexcept { return sum_tile(chunk, 0); }
  float* odd_sums(int chunk) const noexcept {
    return kSumTiles == 2 ? sum_tile(chunk, 1) : sum_tile(chunk, 0) + num_sums() / 2 * 16;
  }

  void rescale_sums() noexcept {
    alignas(64) float factor[16];
    _mm512_store_ps(factor, correction_);
    for (int tile = 0; tile < v_chunks_ * kSumTiles; ++tile) {
      float* row = sum_tile(0, tile);
      for (int i = 0; i < num_sums(); ++i, row += 16) {
        _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), _mm512_set1_ps(factor[i % num_columns_])));
      }
    }
  }

  /// sums += weights V, while the scores of the next step are computed.
  void add_values(bool rescale) noexcept {
    if (rescale) rescale_sums();
    for (int u = 0; u < kTiles; ++u) pack_weights(u);
    for (int chunk = 0; chunk < v_chunks_; ++chunk) {
      score(num_score_parts() * (chunk + 1) / v_chunks_);
      tile_load<6>(sum_tile(chunk, 0), kTileRowBytes);
      if constexpr (kSumTiles == 2) tile_load<7>(sum_tile(chunk, 1), kTileRowBytes);
      for (int u = 0; u < kTiles; ++u) {
        const TileRows& rows = tiles_[now_][u];
        const std::byte* weights = scratch_.weights + u * kSumTiles * kTileBytes;
        tile_load<5>(rows.v + chunk * kTileRowBytes, rows.v_stride);
        tile_load<4>(weights, kTileRowBytes);
        tile_dot<6, 4, 5>();
        if constexpr (kSumTiles == 2) {
          tile_load<4>(weights + kTileBytes, kTileRowBytes);
          tile_dot<7, 4, 5>();
        }
        for (int i = 0; i < kStepsATile; ++i) prefetch_.step();
      }
      tile_store<6>(sum_tile(chunk, 0), kTileRowBytes);
      if constexpr (kSumTiles == 2) tile_store<7>(sum_tile(chunk, 1), kTileRowBytes);
    }
  }
  static constexpr int kStepsATile = 4;  // of the prefetcher

  bool sums_are_finite() const noexcept {
    __m512 nothing = _mm512_setzero_ps();  // 0 times each sum
    for (int tile = 0; tile < v_chunks_ * kSumTiles; ++tile) {
      const float* const rows = sum_tile(0, tile);
      for (int i = 0; i < num_sums(); ++i) {
        nothing = _mm512_fmadd_ps(_mm512_load_ps(rows + i * 16), _mm512_setzero_ps(), nothing);
      }
    }
    return _mm512_cmp_ps_mask(nothing, nothing, _CMP_UNORD_Q) == 0;
  }

  /// Rows of V that hold an infinity or a NaN become zeros, to be added by themselves to the columns that see them.
  void set_exceptions_aside(std::int64_t step) noexcept {
    num_exceptions_ = 0;
    const std::int64_t v_bytes = v_chunks_ * 64, end = std::min(step + kStep, task_.kv_end);
    for (std::int64_t token = std::max(step, task_.kv_begin); token < end; ++token) {
      const int index = static_cast<int>(token - step), tile = index / kTileRows, row = index % kTileRows;
      TileRows& rows = tiles_[now_][tile];
      if (is_finite_row(rows.v + row * rows.v_stride, DType::bf16, params_.v_head_dim)) continue;
      std::byte* const copy = scratch_.v_rows[now_] + tile * kTileRows * v_bytes;
      for (int r = 0; rows.v != copy && r < kTileRows; ++r) {
        copy_row(copy + r * v_bytes, rows.v + r * rows.v_stride, rows_.v_bytes, v_bytes);
      }
      rows.v = copy, rows.v_stride = v_bytes;
      std::memset(copy + row * v_bytes, 0, static_cast<std::size_t>(v_bytes));
      exceptions_[num_exceptions_++] = {index, rows_.at(token).v};
    }
  }

  void add_exceptions() noexcept {
    const __m512i odd_bits = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (int i = 0; i < num_exceptions_; ++i) {
      for (int c = 0; c < num_columns_; ++c) {
        const float weight = scratch_.scores[now_][exceptions_[i].index * kColumns + c];
        if (weight == 0) continue;
        for (int chunk = 0; chunk < v_chunks_; ++chunk) {
          const __mmask32 lanes = first_lanes32(static_cast<int>(params_.v_head_dim) - chunk * 32);
          const __m512i v = _mm512_maskz_loadu_epi16(lanes, exceptions_[i].v + chunk * 64);
          add_weighted(even_sums(chunk) + c * 16, weight, _mm512_slli_epi32(v, 16));
          add_weighted(odd_sums(chunk) + c * 16, weight, _mm512_and_si512(v, odd_bits));
        }
      }
    }
  }
  static void add_weighted(float* sum, float weight, __m512i value) noexcept {
    _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_set1_ps(weight), _mm512_castsi512_ps(value), _mm512_load_ps(sum)));
  }

  /// weights [step / 16][sum tile][row][16 tokens][2] bf16 from f32 [step][columns], rounded to nearest even.
  void pack_weights(int tile) noexcept {
    __m512i r[std::size_t{kColumns}];  // [column][16 tokens]
    const float* const from = scratch_.scores[now_] + tile * kTileRows * kColumns;
    for (int i = 0; i < kColumns; ++i) r[i] = _mm512_load_si512(from + i * 16);
    transpose_tokens<kColumns>(r);
    std::byte* const even = scratch_.weights + tile * kSumTiles * kTileBytes;
    std::byte* const odd = even + (kSumTiles == 2 ? kTileBytes : num_sums() / 2 * kTileRowBytes);
    for (int c = 0; c < num_columns_; ++c) {
      __m512 rest = _mm512_castsi512_ps(r[c]);
      for (int term = 0; term < kWeightTerms; ++term) {
        const __m512i low = round_to_bf16(rest), high = _mm512_slli_epi32(low, 16);
        const int row = (term * num_columns_ + c) * kTileRowBytes;
        _mm512_store_si512(even + row, low);
        _mm512_store_si512(odd + row, high);
        rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(high));
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
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const int dim = static_cast<int>(params_.v_head_dim);
    const auto sum_of = [&](const float* rows) {
      __m512 sum = _mm512_load_ps(rows + column * 16);
      if (kWeightTerms == 2) sum = _mm512_add_ps(sum, _mm512_load_ps(rows + (num_columns_ + column) * 16));
      return _mm512_mul_ps(sum, _mm512_set1_ps(factor));
    };
    for (int chunk = 0; chunk < v_chunks_; ++chunk) {
      const __m512 even = sum_of(even_sums(chunk)), odd = sum_of(odd_sums(chunk));
      out.store(chunk * 32, dim, _mm512_permutex2var_ps(even, low, odd));
      out.store(chunk * 32 + 16, dim, _mm512_permutex2var_ps(even, high, odd));
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
  TileRows tiles_[2][std::size_t{kTiles}];
  std::size_t now_ = 1;  // half of the pairs above and in scratch that holds the step at hand; the other, the next one
  /// A token of the step whose V is not finite, and that row.
  struct Exception {
    int index;
    const std::byte* v;
  };
  bool sets_exceptions_aside_ = false;
  int num_exceptions_ = 0;
  Exception exceptions_[std::size_t{kStep}];
  int next_part_ = 0;             // of the next step's scores
  RowsAhead ahead_[2];            // of the step that is being prefetched and of the one behind it
  StreamPrefetcher<4> prefetch_;  // more are slower here: the tile loads make streams of their own
};

template <int kTiles>
void attend_step(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept {
  switch (task.num_rows * static_cast<int>(params.group)) {
    case 1: return DecodeTask<kTiles, 1>(params, task, scratch).run();
    case 2: return DecodeTask<kTiles, 2>(params, task, scratch).run();
    case 3:
    case 4: return DecodeTask<kTiles, 4>(params, task, scratch).run();
    case 5:
    case 6:
    case 7:
    case 8: return DecodeTask<kTiles, 8>(params, task, scratch).run();
    default: return DecodeTask<kTiles, 16>(params, task, scratch).run();
  }
}

}  // namespace

std::size_t decode_scratch_bytes(const AttendParams& params) noexcept { return DecodeScratch(params, nullptr).bytes; }

void attend_decode(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept {
  const FloatModeScope mode;
  // A step and the next one stay in L1 (48 KiB) together with the small arrays. Where sums, which are loaded and stored
  // once a step, take 16 KiB and more, longer steps are faster all the same.
  const std::uint32_t dims = params.head_dim + params.v_head_dim;
  const bool has_large_sums = task.num_rows * static_cast<int>(params.group) > 8 && dims > 320;
  if (dims <= 160 || (has_large_sums && dims > 640)) {
    attend_step<4>(params, task, scratch);
  } else if (dims <= 320 || has_large_sums) {
    attend_step<2>(params, task, scratch);
  } else {
    attend_step<1>(params, task, scratch);
  }
}

}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
