// Decode over f16 pages with AMX, at f32 precision: at most 16 query columns against every key.
//
// Factors are sums of bf16 terms (x86_amx_split.h): K and V of two, weights of three, queries of as many as they need.
// A step is 64 tokens, at absolute positions: S = K q^T with K as the A tile, the softmax down the columns in f32, then
// sums += weights V with V as the B tile. K and V are cut into terms in portions of eight tiles, 8 KiB, the next
// portion in the midst of the products of this one: a tile load waits for stores that are under way. Accumulators f32.
// Reads each K and V byte once. Limit: lines on their way into L1, then the matrix unit.
#include "kernels/x86_amx_decode_rows.h"
#include "kernels/x86_amx_decode_softmax.h"
#include "kernels/x86_amx_kernels.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

constexpr int kTiles = 4;  // token tiles a step
constexpr int kStep = kTiles * kTileRows;
constexpr int kHalves = kTiles / 2;  // 32 tokens each: as many as the products with V sum up
constexpr int kColumns = kDecodeColumns;
constexpr int kWeightTerms = 3;
constexpr int kPortionTiles = 4;  // of two terms each
constexpr int kPortionBytes = kPortionTiles * 2 * kTileBytes;
constexpr int kQuadDims = kPortionTiles * 16;  // dims of V in a portion

/// Pieces of scratch. K32 is head_dim rounded up to 32, V64 v_head_dim rounded up to 64.
struct SplitScratch {
  std::byte* queries;      // [K32 / 32][terms][16 pairs][columns][2] bf16
  std::byte* portions[2];  // [4 tiles][2 terms][16][16][2] bf16: of the products at hand, and being cut
  std::byte* weights;      // [half][terms][columns][16][2] bf16
  std::byte* zeros;        // dims of V that are missing from the last quad
  float* scores;           // [step][columns]
  float* mask;             // [step][columns]
  float* sums;             // [V64 / 16][columns][16]
  RowCopies rows;
  std::size_t bytes;

  SplitScratch(const AttendParams& params, std::byte* base) noexcept {
    const auto k32 = static_cast<std::size_t>(ceil_to(static_cast<int>(params.head_dim), 32));
    const auto v64 = static_cast<std::size_t>(ceil_to(static_cast<int>(params.v_head_dim), kQuadDims));
    ScratchCutter scratch(base);
    queries = scratch.take(k32 / 32 * 3 * kTileBytes);
    for (std::byte*& piece : portions) piece = scratch.take(kPortionBytes);
    weights = scratch.take(kHalves * kWeightTerms * kTileBytes);
    zeros = scratch.take(kTileRowBytes);
    scores = scratch.take_floats(kStep * kColumns);
    mask = scratch.take_floats(kStep * kColumns);
    sums = scratch.take_floats(v64 * kColumns);
    rows = scratch.take_rows(params, kStep);
    bytes = scratch.bytes();
  }
};

/// What the rows of two tiles of terms are cut from: 16 f16 at `even` and at `odd` become the even and the odd
/// elements.
struct PairRows {
  const std::byte* even;
  const std::byte* odd;
  std::int64_t even_stride, odd_stride;
};

/// Cuts a portion into terms, four rows a step.
class PortionCutter {
 public:
  PairRows tiles[kPortionTiles];  ///< To be set before start().
  bool keeps_infinities = false;  ///< The second term of an infinity is 0. Costs time; else it is NaN.

  PAGEDKV_AMX_INLINE void start(std::byte* to) noexcept {
    to_ = to, next_tile_ = 0, steps_left_ = kPortionTiles * kStepsATile;
    begin_tile();
  }

  PAGEDKV_AMX_INLINE void step() noexcept {
    if (steps_left_ == 0) return;
    if (keeps_infinities) [[unlikely]] {
      cut_rows<beyond_bf16>();
    } else {
      cut_rows<beyond_finite_bf16>();
    }
    at_.even += 4 * at_.even_stride, at_.odd += 4 * at_.odd_stride, to_ += 4 * kTileRowBytes;
    if (--steps_left_ % kStepsATile == 0) {
      to_ += kTileBytes;  // over the second term
      if (steps_left_ > 0) begin_tile();
    }
  }

  PAGEDKV_AMX_INLINE void finish() noexcept {
    while (steps_left_ > 0) step();
  }

 private:
  static constexpr int kStepsATile = kTileRows / 4;

  PAGEDKV_AMX_INLINE void begin_tile() noexcept { at_ = tiles[next_tile_++]; }

  /// Four rows. beyond_finite_bf16 makes NaN of an infinity or a NaN: such a K or V shows in the sums.
  template <__m512 (*kBeyond)(__m512) noexcept>
  PAGEDKV_AMX_INLINE void cut_rows() const noexcept {
    for (int row = 0; row < 4; ++row) {
      const std::byte* const even = at_.even + row * at_.even_stride;
      const std::byte* const odd = at_.odd + row * at_.odd_stride;
      const __m512 x = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)));
      const __m512 y = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd)));
      _mm512_store_si512(to_ + row * kTileRowBytes, cut_to_bf16_pairs(x, y));
      _mm512_store_si512(to_ + row * kTileRowBytes + kTileBytes, cut_to_bf16_pairs(kBeyond(x), kBeyond(y)));
    }
  }

  PairRows at_;
  std::byte* to_ = nullptr;
  int next_tile_ = 0, steps_left_ = 0;
};

/// One task.
class SplitDecodeTask {
 public:
  SplitDecodeTask(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept
      : params_(params),
        task_(task),
        scratch_(params, scratch),
        kv_rows_(params, task),
        rows_(params, task, kv_rows_, scratch_.rows),
        softmax_(params, task, scratch_.mask),
        prefetch_(params, task, kv_rows_, softmax_.end_key()),
        k_tiles_(ceil_to(static_cast<int>(params.head_dim), 32) / 32),
        v_chunks_(ceil_to(static_cast<int>(params.v_head_dim), 32) / 16),
        v_quads_((v_chunks_ + kPortionTiles - 1) / kPortionTiles),
        terms_(exact_terms(params.q_dtype)) {}

  void run() noexcept {
    attend();
    // A weight of 0 makes NaN of an infinity or a NaN in V, and so does the second term of an infinity in K. This is
    // rare and shows in the sums; then all is done again with such rows of V apart, and K cut with care.
    if (!sums_are_finite()) [[unlikely]] {
      sets_exceptions_aside_ = cutter_.keeps_infinities = true;
      attend();
    }
    softmax_.finish([this](int column, float factor) { write_row(column, factor); });
  }

 private:
  void attend() noexcept {
    std::memset(scratch_.sums, 0, static_cast<std::size_t>(v_quads_ * kPortionTiles) * kTileBytes);
    std::memset(scratch_.zeros, 0, kTileRowBytes);
    softmax_.begin();
    if (softmax_.first_key() >= softmax_.end_key()) return;
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) config.set(tile, kTileRows, kTileRowBytes);
    const TileScope tiles(config);
    pack_queries();
    std::int64_t step = softmax_.first_key() / kStep * kStep;
    prefetch_.begin(step);
    rows_.find(step, now_);
    begin_keys(0, now_);
    end_portion();
    for (;; step += kStep) {
      const bool is_last = step + kStep >= softmax_.end_key();
      prefetch_.start(step, k_tiles_ * products_of_keys() / 2 + v_quads_ * kHalves * kValueProducts / 2);
      if (sets_exceptions_aside_) [[unlikely]]
        rows_.set_exceptions_aside(step, now_);
      score();
      is_last ? prefetch_.fetch_next_queries() : rows_.find(step + kStep, now_ ^ 1);
      if (softmax_.weigh(scratch_.scores, step, [] {})) rescale_sums();
      for (int half = 0; half < kHalves; ++half) pack_weights(half);
      add_values(is_last);
      if (sets_exceptions_aside_) [[unlikely]]
        add_exceptions();
      if (is_last) break;
      now_ ^= 1;
    }
  }

  static constexpr int kValueProducts = kPortionTiles * (2 * kWeightTerms - 1);  // of a portion
  int products_of_keys() const noexcept { return kPortionTiles * (terms_ == 3 ? 5 : 2 * terms_); }

  /// q^T as B tiles: dword (i, column) holds elements i and 16 + i of a K tile's 32.
  void pack_queries() noexcept {
    const auto bytes = static_cast<std::int64_t>(size_of(params_.q_dtype));
    const std::byte* rows[kColumns];
    for (int c = 0; c < softmax_.num_columns(); ++c) {
      rows[c] = static_cast<const std::byte*>(params_.q) +
                row_offset(params_, task_, softmax_.row_of(c), softmax_.head_of(c), params_.head_dim) * bytes;
    }
    std::byte* to = scratch_.queries;
    for (int i = 0; i < k_tiles_; ++i) {
      __m512 even[kColumns], odd[kColumns];
      for (int c = 0; c < kColumns; ++c) {
        const int left = c < softmax_.num_columns() ? static_cast<int>(params_.head_dim) - i * 32 : 0;
        const std::byte* const from = left > 0 ? rows[c] + i * 32 * bytes : scratch_.zeros;
        even[c] = load_floats(from, params_.q_dtype, first_lanes16(left));
        odd[c] = load_floats(from + 16 * bytes, params_.q_dtype, first_lanes16(left - 16));
      }
      for (int term = 0; term < terms_; ++term) {
        __m512i pairs[kColumns];
        for (int c = 0; c < kColumns; ++c) {
          pairs[c] = cut_to_bf16_pairs(even[c], odd[c]);
          even[c] = beyond_bf16(even[c]), odd[c] = beyond_bf16(odd[c]);
        }
        transpose16(pairs);
        for (int p = 0; p < kTileRows; ++p, to += kTileRowBytes) _mm512_store_si512(to, pairs[p]);
      }
    }
  }

  // Portions, in the order of their products: 32 dims of the step's four token tiles of K, dims in order; then 64 dims
  // of 32 tokens of V, both halves of the step before the next dims.

  /// Begins to cut portion `index` of the keys of a step.
  void begin_keys(int index, std::size_t step) noexcept {
    for (int u = 0; u < kTiles; ++u) {
      const TileRows& rows = rows_.tile(step, u);
      const std::byte* const k = rows.k + index * kTileRowBytes;
      cutter_.tiles[u] = {k, k + kTileRowBytes / 2, rows.k_stride, rows.k_stride};
    }
    cutter_.start(scratch_.portions[portion_ ^ 1]);
  }

  /// The same of this step's values: tokens t and 16 + t of a half are a pair.
  void begin_values(int quad, int half) noexcept {
    const TileRows& even = rows_.tile(now_, 2 * half);
    const TileRows& odd = rows_.tile(now_, 2 * half + 1);
    for (int i = 0; i < kPortionTiles; ++i) {
      const int chunk = quad * kPortionTiles + i;
      cutter_.tiles[i] = {even.v + chunk * 32, odd.v + chunk * 32, even.v_stride, odd.v_stride};
      if (chunk >= v_chunks_) cutter_.tiles[i] = {scratch_.zeros, scratch_.zeros, 0, 0};
    }
    cutter_.start(scratch_.portions[portion_ ^ 1]);
  }

  /// What was being cut is what products take next.
  void end_portion() noexcept {
    cutter_.finish();
    portion_ ^= 1;
  }

  /// Accumulators kTile and kTile + 1 += tiles in tmm4 and 5 times the factor in tmm kFactor; cuts and prefetches
  /// beside them. Keys are the A operand, values the B operand.
  template <bool kAreKeys, int kTile, int kFactor>
  PAGEDKV_AMX_INLINE void multiply() noexcept {
    kAreKeys ? tile_dot<kTile, 4, kFactor>() : tile_dot<kTile, kFactor, 4>();
    cutter_.step();
    kAreKeys ? tile_dot<kTile + 1, 5, kFactor>() : tile_dot<kTile + 1, kFactor, 5>();
    cutter_.step();
    prefetch_.step();
  }

  /// The terms of tiles kTile and kTile + 1 of a portion to tmm4 and 5.
  template <int kTile, int kTerm>
  PAGEDKV_AMX_INLINE void load() const noexcept {
    const std::byte* const from = scratch_.portions[portion_] + (2 * kTile + kTerm) * kTileBytes;
    tile_load<4>(from, kTileRowBytes);
    tile_load<5>(from + 2 * kTileBytes, kTileRowBytes);
  }

  /// Accumulators 0..3 += the tiles of a portion times kTerms terms of queries or weights at `factors`: all products
  /// but that of the two lowest terms, if there are three. Factors in tmm6 and 7, in such an order that few are loaded
  /// twice.
  template <bool kAreKeys, int kTerms>
  PAGEDKV_AMX_INLINE void multiply_portion(const std::byte* factors) noexcept {
    tile_load<6>(factors, kTileRowBytes);
    load<0, 0>();
    if constexpr (kTerms > 1) tile_load<7>(factors + kTileBytes, kTileRowBytes);
    multiply<kAreKeys, 0, 6>();
    if constexpr (kTerms > 1) multiply<kAreKeys, 0, 7>();
    if constexpr (kTerms > 2) tile_load<6>(factors + 2 * kTileBytes, kTileRowBytes), multiply<kAreKeys, 0, 6>();
    load<2, 0>();
    if constexpr (kTerms > 2) multiply<kAreKeys, 2, 6>(), tile_load<6>(factors, kTileRowBytes);
    if constexpr (kTerms > 1) multiply<kAreKeys, 2, 7>();
    multiply<kAreKeys, 2, 6>();
    load<0, 1>();
    multiply<kAreKeys, 0, 6>();
    if constexpr (kTerms > 1) multiply<kAreKeys, 0, 7>();
    load<2, 1>();
    if constexpr (kTerms > 1) multiply<kAreKeys, 2, 7>();
    multiply<kAreKeys, 2, 6>();
  }

  /// Accumulators from or to four tiles.
  static void load_accumulators(const float* from) noexcept {
    tile_load<0>(from, kTileRowBytes), tile_load<1>(from + kTileFloats, kTileRowBytes);
    tile_load<2>(from + 2 * kTileFloats, kTileRowBytes), tile_load<3>(from + 3 * kTileFloats, kTileRowBytes);
  }
  static void store_accumulators(float* to) noexcept {
    tile_store<0>(to, kTileRowBytes), tile_store<1>(to + kTileFloats, kTileRowBytes);
    tile_store<2>(to + 2 * kTileFloats, kTileRowBytes), tile_store<3>(to + 3 * kTileFloats, kTileRowBytes);
  }

  /// scores [step][columns] = K q^T of the step at hand; its first values are cut meanwhile.
  void score() noexcept {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    for (int i = 0; i < k_tiles_; ++i) {
      i + 1 < k_tiles_ ? begin_keys(i + 1, now_) : begin_values(0, 0);
      const std::byte* const queries = scratch_.queries + i * terms_ * kTileBytes;
      if (terms_ == 3) {
        multiply_portion<true, 3>(queries);
      } else if (terms_ == 2) {
        multiply_portion<true, 2>(queries);
      } else {
        multiply_portion<true, 1>(queries);
      }
      end_portion();
    }
    store_accumulators(scratch_.scores);
  }

  /// sums += weights V; the first keys of the next step are cut meanwhile.
  void add_values(bool is_last) noexcept {
    float* sums = scratch_.sums;
    for (int quad = 0; quad < v_quads_; ++quad, sums += kPortionTiles * kTileFloats) {
      load_accumulators(sums);
      for (int half = 0; half < kHalves; ++half) {
        const int next = quad * kHalves + half + 1;
        if (next < v_quads_ * kHalves) {
          begin_values(next / kHalves, next % kHalves);
        } else if (!is_last) {
          begin_keys(0, now_ ^ 1);
        }
        multiply_portion<false, kWeightTerms>(scratch_.weights + half * kWeightTerms * kTileBytes);
        end_portion();
      }
      store_accumulators(sums);
    }
  }

  /// weights [term][column][16 pairs of tokens] of a half from f32 [32 tokens][columns].
  void pack_weights(int half) noexcept {
    __m512i even[16], odd[16];  // [column][16 tokens]
    const float* const from = scratch_.scores + half * 2 * kTileFloats;
    for (int t = 0; t < kTileRows; ++t) {
      even[t] = _mm512_load_si512(from + t * kColumns);
      odd[t] = _mm512_load_si512(from + kTileFloats + t * kColumns);
    }
    transpose16(even);
    transpose16(odd);
    for (int c = 0; c < kColumns; ++c) {
      std::byte* to = scratch_.weights + half * kWeightTerms * kTileBytes + c * kTileRowBytes;
      __m512 x = _mm512_castsi512_ps(even[c]), y = _mm512_castsi512_ps(odd[c]);
      for (int term = 0; term < kWeightTerms; ++term, to += kTileBytes) {
        _mm512_store_si512(to, cut_to_bf16_pairs(x, y));
        x = beyond_finite_bf16(x), y = beyond_finite_bf16(y);
      }
    }
  }

  void rescale_sums() noexcept {
    alignas(64) float factor[16];
    _mm512_store_ps(factor, softmax_.correction());
    for (int chunk = 0; chunk < v_chunks_; ++chunk) {
      for (int c = 0; c < softmax_.num_columns(); ++c) {
        float* const row = sum_of(chunk, c);
        _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), _mm512_set1_ps(factor[c])));
      }
    }
  }

  float* sum_of(int chunk, int column) const noexcept { return scratch_.sums + chunk * kTileFloats + column * 16; }

  bool sums_are_finite() const noexcept {
    __m512 nothing = _mm512_setzero_ps();  // 0 times each sum
    for (int chunk = 0; chunk < v_chunks_; ++chunk) {
      for (int c = 0; c < softmax_.num_columns(); ++c) {
        nothing = _mm512_fmadd_ps(_mm512_load_ps(sum_of(chunk, c)), _mm512_setzero_ps(), nothing);
      }
    }
    return _mm512_cmp_ps_mask(nothing, nothing, _CMP_UNORD_Q) == 0;
  }

  void add_exceptions() noexcept {
    for (const auto& exception : rows_) {
      for (int c = 0; c < softmax_.num_columns(); ++c) {
        const float weight = scratch_.scores[exception.index * kColumns + c];
        if (weight == 0) continue;
        for (int chunk = 0; chunk < v_chunks_; ++chunk) {
          const __mmask16 lanes = first_lanes16(static_cast<int>(params_.v_head_dim) - chunk * 16);
          const __m512 v = load_floats(exception.v + chunk * 32, DType::f16, lanes);
          float* const sum = sum_of(chunk, c);
          _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_set1_ps(weight), v, _mm512_load_ps(sum)));
        }
      }
    }
  }

  void write_row(int column, float factor) noexcept {
    const OutputRow out = output_row(params_, task_, softmax_.row_of(column), softmax_.head_of(column));
    const __m512 scale = _mm512_set1_ps(factor);
    for (int chunk = 0; chunk < v_chunks_; chunk += 2) {
      out.store(chunk * 16, static_cast<int>(params_.v_head_dim),
                _mm512_mul_ps(_mm512_load_ps(sum_of(chunk, column)), scale),
                _mm512_mul_ps(_mm512_load_ps(sum_of(chunk + 1, column)), scale));
    }
  }

  const AttendParams& params_;
  const AttendTask& task_;
  const SplitScratch scratch_;
  const KvRows kv_rows_;
  StepRows<kTiles> rows_;
  DecodeSoftmax<kTiles, kColumns> softmax_;
  StepPrefetcher<kStep> prefetch_;
  const int k_tiles_, v_chunks_, v_quads_, terms_;  // chunks of 16 dims, an even number; quads of 64
  std::size_t now_ = 0;      // half of rows_ that holds the step at hand; the other, the next one
  std::size_t portion_ = 0;  // of scratch: that of the products at hand
  PortionCutter cutter_;
  bool sets_exceptions_aside_ = false;
};

}  // namespace

std::size_t split_decode_scratch_bytes(const AttendParams& params) noexcept {
  return SplitScratch(params, nullptr).bytes;
}

void attend_split_decode(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept {
  const FloatModeScope mode;
  SplitDecodeTask(params, task, scratch).run();
}

}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
