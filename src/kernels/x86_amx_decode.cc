// Decode over bf16 pages with AMX: 3 to 16 query columns against every key, at the speed of the read.
//
// A step is 16, 32 or 64 tokens (mostly 16 KiB of K and V), at absolute positions. S = K q^T takes K rows in place as
// the A tile and q^T as B; the softmax runs down the columns in f32; V stands in place as the B tile, with weights as
// A. The scores of the next step are computed, and the steps after it prefetched, all along. Accumulators f32. Reads
// each K and V byte once. Limit: the read of memory.
#include <new>

#include "kernels/x86_amx_decode_rows.h"
#include "kernels/x86_amx_decode_softmax.h"
#include "kernels/x86_amx_kernels.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

constexpr int kMaxStep = 64;  // tokens

/// Pieces of scratch. K32 and V32 are the head dimensions rounded up to 32.
struct DecodeScratch {
  std::byte* queries;  // [K32 / 32][terms][16 pairs][columns][2] bf16
  float* scores[2];    // [step][columns]: of this step and of the next one
  float* mask;         // [step][columns]
  std::byte* weights;  // [step / 16][sum tile][16][16][2] bf16
  float* sums;         // [V32 / 32][sum tile][16][16]
  RowCopies rows;
  std::size_t bytes;

  DecodeScratch(const AttendParams& params, std::byte* base) noexcept {
    const auto k32 = static_cast<std::size_t>(ceil_to(static_cast<int>(params.head_dim), 32));
    const auto v32 = static_cast<std::size_t>(ceil_to(static_cast<int>(params.v_head_dim), 32));
    const std::size_t columns = kDecodeColumns;
    ScratchCutter scratch(base);
    queries = scratch.take(k32 / 32 * 2 * kTileBytes);
    for (float*& piece : scores) piece = scratch.take_floats(kMaxStep * columns);
    mask = scratch.take_floats(kMaxStep * columns);
    weights = scratch.take(kMaxStep / kTileRows * 2 * kTileBytes);
    sums = scratch.take_floats(v32 / 32 * 2 * kTileBytes / 4);
    rows = scratch.take_rows(params, kMaxStep);
    bytes = scratch.bytes();
  }
};

/// One task. kTiles: 16-token tiles a step. kColumns: columns of the tiles, 4, 8 or 16.
template <int kTiles, int kColumns>
class DecodeTask {
 public:
  DecodeTask(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept
      : params_(params),
        task_(task),
        scratch_(params, scratch),
        kv_rows_(params, task),
        rows_(params, task, kv_rows_, scratch_.rows),
        softmax_(params, task, scratch_.mask),
        prefetch_(params, task, kv_rows_, softmax_.end_key()),
        num_columns_(softmax_.num_columns()),
        k_tiles_(ceil_to(static_cast<int>(params.head_dim), 32) / 32),
        v_chunks_(ceil_to(static_cast<int>(params.v_head_dim), 32) / 32),
        terms_(query_terms(params)) {}

  void run() noexcept {
    rows_.place_last_tiles(true);
    attend();
    // V stands in place, two dimensions and all columns side by side: an infinity or a NaN spreads to its neighbours.
    // One of K becomes a NaN beside zeros of the query. This is rare and shows in the sums; then all is done again with
    // such rows of V apart, and K beside zeros of its own.
    if (!sums_are_finite()) [[unlikely]] {
      sets_exceptions_aside_ = true;
      rows_.place_last_tiles(false);
      attend();
    }
    softmax_.finish([this](int column, float factor) { write_row(column, factor); });
  }

 private:
  void attend() noexcept {
    std::memset(scratch_.sums, 0, static_cast<std::size_t>(v_chunks_) * kSumTiles * kTileBytes);
    softmax_.begin();
    if (softmax_.first_key() >= softmax_.end_key()) return;
    const TileScope tiles(tile_config());
    const std::int64_t first_step = softmax_.first_key() / kStep * kStep;
    prefetch_.begin(first_step);
    prefetch_.start(first_step, steps_of_queries() + steps_of_scores() + steps_from(first_step));
    pack_queries();
    begin_scores(first_step);
    score(num_score_parts());
    for (std::int64_t step = first_step;; step += kStep) {
      const bool rescale = end_scores(step);
      now_ ^= 1;
      if (step > first_step) prefetch_.start(step, steps_from(step));
      if (is_last(step)) {
        next_part_ = num_score_parts();
        prefetch_.fetch_next_queries();
      } else {
        begin_scores(step + kStep);
      }
      if (sets_exceptions_aside_) [[unlikely]]
        rows_.set_exceptions_aside(step, now_);
      add_values(rescale);
      if (sets_exceptions_aside_) [[unlikely]]
        add_exceptions();
      if (is_last(step)) break;
    }
  }

  bool is_last(std::int64_t step) const noexcept { return step + kStep >= softmax_.end_key(); }

  // Steps of the prefetcher. None of the work goes without: at a seam between tasks, too, memory is kept busy.
  int steps_of_queries() const noexcept { return num_columns_ * k_tiles_ * terms_ * kStepsARow; }
  int steps_of_scores() const noexcept { return k_tiles_ * kTiles * kStepsATile + kSoftmaxSteps; }
  /// From the sums of a step to the weights of the next, or to the end of the task.
  int steps_from(std::int64_t step) const noexcept {
    const int sums = v_chunks_ * kTiles * kStepsATile;
    return sums + (is_last(step) ? num_columns_ * v_chunks_ * kStepsARow : steps_of_scores());
  }

  static constexpr int kStep = kTiles * kTileRows;
  static constexpr int kSoftmaxSteps = DecodeSoftmax<kTiles, kColumns>::kVectors;
  static constexpr int kStepsARow = 2;   // of queries that are packed, or sums that are written
  static constexpr int kStepsATile = 4;  // between the tile loads, which wait for the same line buffers
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

  /// q^T as B tiles: dword (pair p, column c) holds elements 2p, 2p + 1 of column c; zeros where the last tile of a row
  /// repeats dims of the one before.
  void pack_queries() noexcept {
    std::memset(scratch_.queries, 0, static_cast<std::size_t>(k_tiles_ * terms_) * kTileBytes);
    alignas(64) std::uint32_t pairs[16];
    for (int c = 0; c < num_columns_; ++c) {
      const std::byte* row = static_cast<const std::byte*>(params_.q) +
                             row_offset(params_, task_, softmax_.row_of(c), softmax_.head_of(c), params_.head_dim) *
                                 static_cast<int>(size_of(params_.q_dtype));
      for (int i = 0; i < k_tiles_ * terms_; ++i) {
        const int first = rows_.key_dim(i / terms_);
        const __mmask32 repeated = first_lanes32(i / terms_ * 32 - first);
        const __m512i piece = query_piece(params_, row, first, i % terms_);
        _mm512_store_si512(pairs, _mm512_maskz_mov_epi16(~repeated, piece));
        auto* to = reinterpret_cast<std::uint32_t*>(scratch_.queries + i * kTileBytes);
        for (int p = 0; p < 16; ++p) to[p * kColumns + c] = pairs[p];
        prefetch_some();
      }
    }
  }

  // Scores of a step are computed in parts, a K tile of 32 dims against each of two tiles of tokens, in the midst of
  // the weighted sum of the step before: neither the matrix unit nor the vector unit waits for the other.

  int num_score_parts() const noexcept { return (kTiles + 1) / 2 * k_tiles_; }

  void begin_scores(std::int64_t step) noexcept {
    rows_.find(step, now_ ^ 1);
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
      const TileRows& a = rows_.tile(now_ ^ 1, u);
      const TileRows& b = rows_.tile(now_ ^ 1, kTiles == 1 ? 0 : u + 1);
      const int offset = 2 * rows_.key_dim(i);
      for (int term = 0; term < terms_; ++term) {
        tile_load<3>(scratch_.queries + (i * terms_ + term) * kTileBytes, kColumns * 4);
        tile_load<2>(a.k + offset, a.k_stride);
        if (term == 0) prefetch_some();
        tile_dot<0, 2, 3>();
        if constexpr (kTiles > 1) {
          if (term == 0) prefetch_some();
          tile_load<2>(b.k + offset, b.k_stride);
          if (term == 0) prefetch_some();
          tile_dot<1, 2, 3>();
        }
      }
      prefetch_some();
    }
  }

  PAGEDKV_AMX_INLINE void prefetch_some() noexcept { prefetch_.step(), prefetch_.step(); }

  void store_scores(int u) noexcept {
    float* const scores = scratch_.scores[now_ ^ 1];
    tile_store<0>(scores + u * kTileRows * kColumns, kColumns * 4);
    if constexpr (kTiles > 1) tile_store<1>(scores + (u + 1) * kTileRows * kColumns, kColumns * 4);
  }

  /// Scores of the next step to weights; true if the sums are to be rescaled.
  bool end_scores(std::int64_t step) noexcept {
    store_scores((kTiles - 1) / 2 * 2);
    return softmax_.weigh(scratch_.scores[now_ ^ 1], step,
                          [this]() __attribute__((always_inline)) { prefetch_.step(); });
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
    _mm512_store_ps(factor, softmax_.correction());
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
      const int offset = 2 * rows_.value_dim(chunk);
      for (int u = 0; u < kTiles; ++u) {
        const TileRows& rows = rows_.tile(now_, u);
        const std::byte* weights = scratch_.weights + u * kSumTiles * kTileBytes;
        tile_load<5>(rows.v + offset, rows.v_stride);
        prefetch_some();
        tile_load<4>(weights, kTileRowBytes);
        tile_dot<6, 4, 5>();
        if constexpr (kSumTiles == 2) {
          tile_load<4>(weights + kTileBytes, kTileRowBytes);
          tile_dot<7, 4, 5>();
        }
        prefetch_some();
      }
      tile_store<6>(sum_tile(chunk, 0), kTileRowBytes);
      if constexpr (kSumTiles == 2) tile_store<7>(sum_tile(chunk, 1), kTileRowBytes);
    }
  }

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

  void add_exceptions() noexcept {
    const __m512i odd_bits = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (const auto& exception : rows_) {
      for (int c = 0; c < num_columns_; ++c) {
        const float weight = scratch_.scores[now_][exception.index * kColumns + c];
        if (weight == 0) continue;
        for (int chunk = 0; chunk < v_chunks_; ++chunk) {
          const __mmask32 lanes = first_lanes32(static_cast<int>(params_.v_head_dim) - chunk * 32);
          const __m512i v = _mm512_maskz_loadu_epi16(lanes, exception.v + chunk * 64);
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

  void write_row(int column, float factor) noexcept {
    const OutputRow out = output_row(params_, task_, softmax_.row_of(column), softmax_.head_of(column));
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
      const int first = rows_.value_dim(chunk);
      prefetch_some();
      out.store(first, dim, _mm512_permutex2var_ps(even, low, odd));
      out.store(first + 16, dim, _mm512_permutex2var_ps(even, high, odd));
    }
  }

  const AttendParams& params_;
  const AttendTask& task_;
  const DecodeScratch scratch_;
  const KvRows kv_rows_;
  StepRows<kTiles> rows_;
  DecodeSoftmax<kTiles, kColumns> softmax_;
  StepPrefetcher<kStep> prefetch_;
  const int num_columns_, k_tiles_, v_chunks_, terms_;
  std::size_t now_ = 1;  // half of scores and rows that holds the step at hand; the other, the next one
  bool sets_exceptions_aside_ = false;
  int next_part_ = 0;  // of the next step's scores
};

template <int kTiles>
void attend_step(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept {
  switch (task.num_rows * static_cast<int>(params.group)) {
    case 1:
    case 2:
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
