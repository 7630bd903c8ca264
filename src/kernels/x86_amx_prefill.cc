// Prefill over bf16 and f16 pages with AMX: many query columns against every key, limited by the matrix and vector
// units.
//
// A column is a (query row, head) of the group, rows outermost, so that any group fills the tiles; 64 columns advance
// together. Per chunk of 512 tokens V is copied into transposed tiles, and K into tiles unless 16 rows of a page can be
// tiles in place, which absorbs page sizes, strides and odd dimensions; then every column block goes over the chunk in
// blocks of 256 tokens: scores S = K q^T with the softmax of the tile before interleaved, then sums += V^T P.
// Accumulators f32, weights bf16. An f16 is the sum of two bf16, an f32 of three: f16 pages, their queries and weights
// are cut into terms, and the products of all terms (but of the lowest of weights and V) add up to what f32 would give.
//
// The maximum of a column is that of its first tile with a visible key; if its sum overflows 2^60 the block is done
// again with the true maximum, column by column, so that a row's arithmetic never depends on the others. Reads each K
// and V byte once a task of up to 2048 columns. Limit: port 0 beside TMUL (softmax), L2 to L1 traffic.
#include "kernels/x86_amx_kernels.h"
#include "kernels/x86_amx_prefill_mask.h"
#include "kernels/x86_amx_prefill_pack.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

class PrefillTask {
 public:
  PrefillTask(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept
      : params_(params),
        task_(task),
        rows_(params, task),
        scratch_(params, scratch),
        k_tiles_(round_tiles(params.head_dim, 32)),
        d_tiles_(2 * round_tiles(params.v_head_dim, 32)),
        terms_(query_terms(params)),
        kv_terms_(kv_terms_of(params)),
        scale_(params.sm_scale * kLog2E),
        ahead_lines_(std::min(k_tiles_, 4) * kColumnTiles),
        is_plain_(kv_terms_ == 1 && params.logits_soft_cap == 0 && params.alibi_slopes == nullptr &&
                  params.mask_kind == MaskKind::kNone && scale_ > 1e-20f && scale_ < 1e20f),
        hides_raw_(params.logits_soft_cap == 0 && scale_ > 1e-20f),
        is_backward_(params.alibi_slopes != nullptr),
        packed_(params, rows_, scratch_) {}

  void run() noexcept {
    TileConfig config;
    for (int i = 0; i < 8; ++i) config.set(i, kTileRows, kTileRowBytes);
    const TileScope tiles(config);
    const std::int64_t num_columns = std::int64_t{task_.num_rows} * params_.group;
    const int max_columns = blocks_a_pass(params_) * kBlockColumns;
    for (std::int64_t column = 0; column < num_columns; column += max_columns) {
      run_columns(column, static_cast<int>(std::min<std::int64_t>(max_columns, num_columns - column)));
    }
  }

 private:
  /// Columns [first, first + count), all keys.
  void run_columns(std::int64_t first, int count) noexcept {
    num_blocks_ = ceil_to(count, kBlockColumns) / kBlockColumns;
    std::int64_t begin = task_.kv_end, end = task_.kv_begin;
    const std::int64_t q_bytes = std::int64_t{params_.head_dim} * static_cast<int>(size_of(params_.q_dtype));
    const std::int64_t out_bytes = std::int64_t{params_.v_head_dim} * static_cast<int>(size_of(params_.out_dtype));
    touch_rows<false>(params_, task_, params_.q, q_bytes, first, kBlockColumns);
    for (int b = 0; b < num_blocks_; ++b) {
      touch_rows<false>(params_, task_, params_.q, q_bytes, first + (b + 1) * kBlockColumns, kBlockColumns);
      open_block(b, first + b * kBlockColumns, std::min(kBlockColumns, count - b * kBlockColumns));
      begin = std::min<std::int64_t>(begin, scratch_.blocks[b].min_first);
      end = std::max<std::int64_t>(end, scratch_.blocks[b].max_end);
    }
    const std::int64_t first_chunk = begin / kChunk * kChunk, last_chunk = (end - 1) / kChunk * kChunk;
    chunk_ = is_backward_ ? last_chunk : first_chunk;
    bool was_prefetched = false;
    for (; chunk_ >= first_chunk && chunk_ <= last_chunk; chunk_ += is_backward_ ? -kChunk : kChunk) {
      packed_.pack(chunk_, std::max(begin, chunk_), std::min(end, chunk_ + kChunk), was_prefetched);
      was_prefetched = has_few_blocks();
      slot_is_scored_ = false;
      for (int b = 0; b < num_blocks_; ++b) {
        plan_prefetch(b, begin, end);
        attend_chunk(b);
      }
    }
    for (int b = 0; b < num_blocks_; ++b) {
      if (task_.partial_out == nullptr) {
        touch_rows<true>(params_, task_, params_.out, out_bytes, first + (b + 1) * kBlockColumns, kBlockColumns);
      }
      close_block(b);
    }
  }

  /// (query row of the task, head of the group) of a column.
  struct Column {
    int row, head;
  };
  Column column_of(const ColumnBlock& block, int column) const noexcept {
    const unsigned from_first_row = static_cast<unsigned>(block.first_head + column);
    return {block.first_row + static_cast<int>(from_first_row / params_.group),
            static_cast<int>(from_first_row % params_.group)};
  }
  std::byte* queries(int block) const noexcept {
    return scratch_.queries + std::int64_t{block} * kColumnTiles * terms_ * k_tiles_ * kTileBytes;
  }
  float* sums(int block) const noexcept { return scratch_.sums + std::int64_t{block} * d_tiles_ * kSlotFloats; }

  void open_block(int index, std::int64_t first_column, int num_columns) noexcept {
    ColumnBlock& block = scratch_.blocks[index];
    block.num_columns = num_columns;
    block.first_row = static_cast<std::int32_t>(first_column / params_.group);
    block.first_head = static_cast<std::int32_t>(first_column % params_.group);
    block.has_sums = false;
    block.min_first = block.min_end = 0x7fffffff, block.max_first = block.max_end = 0;
    for (int c = 0; c < kBlockColumns; ++c) {
      // Columns beyond the last have zero queries, see everything and are written nowhere.
      block.max[c] = c < num_columns ? kHiddenLogit : 0.f, block.sum[c] = 0, block.slope[c] = 0;
      block.first[c] = 0, block.end[c] = 0x7fffffff, block.position[c] = 0;
      if (c >= num_columns) continue;
      const Column column = column_of(block, c);
      const Visible keys = visible_keys(params_, task_, column.row);
      block.first[c] = keys.first, block.end[c] = keys.end;
      block.position[c] = static_cast<std::int32_t>(query_position(task_, column.row));
      block.mask_entry[c] =
          task_.mask_offset + column.row * task_.mask_row_stride + column.head * task_.mask_head_stride;
      block.min_first = std::min(block.min_first, keys.first), block.max_first = std::max(block.max_first, keys.first);
      block.min_end = std::min(block.min_end, keys.end), block.max_end = std::max(block.max_end, keys.end);
      if (params_.alibi_slopes != nullptr) {
        block.slope[c] = params_.alibi_slopes[task_.kv_head * params_.group + static_cast<unsigned>(column.head)];
      }
    }
    for (int tile = 0; tile < kColumnTiles; ++tile) pack_queries(index, tile);
  }

  /// q^T of 16 columns as B tiles.
  void pack_queries(int index, int tile) noexcept {
    const int count = std::clamp(scratch_.blocks[index].num_columns - tile * 16, 0, 16);
    const int dim = static_cast<int>(params_.head_dim), element = static_cast<int>(size_of(params_.q_dtype));
    const std::byte* row[16];
    for (int c = 0; c < count; ++c) {
      const Column column = column_of(scratch_.blocks[index], tile * 16 + c);
      row[c] = static_cast<const std::byte*>(params_.q) +
               row_offset(params_, task_, column.row, column.head, params_.head_dim) * element;
      // Two tiles ahead, or past the queries: a prefetch of no use does no harm.
      prefetch_lines(row[c] + (32 / params_.group + 1) * std::int64_t{params_.num_q_heads} * dim * element,
                     dim * element);
    }
    std::byte* to = queries(index) + std::int64_t{tile} * terms_ * k_tiles_ * kTileBytes;
    for (int term = 0; term < terms_; ++term) {
      for (int i = 0; i < k_tiles_; ++i, to += kTileBytes) {
        __m512i r[16];
        for (int c = 0; c < 16; ++c) {
          r[c] = c < count ? query_piece(params_, row[c], i * 32, term) : _mm512_setzero_si512();
        }
        transpose16(r);
        for (int p = 0; p < 16; ++p) _mm512_store_si512(to + p * kTileRowBytes, r[p]);
      }
    }
  }

  /// Adds the noted rows of tiles [tile, stop) to the columns that give them weight.
  void weigh_exceptions(int index, int tile, int stop) noexcept {
    for (const PackedChunk::Exception& exception : packed_.exceptions()) {
      const int token = exception.token - tile * kTileRows;
      if (token < 0 || token >= (stop - tile) * kTileRows) continue;
      const std::byte* const weights =
          scratch_.weights + token / kGroupTokens * kWeightBytes + token % kGroupTokens / 2 * kTileRowBytes;
      for (int c = 0; c < kColumnTiles; ++c) {
        __m512 weight = _mm512_setzero_ps();
        for (int term = 0; term < weight_terms(); ++term) {
          const __m512i pairs = _mm512_load_si512(weights + term * kWeightTermBytes + c * kTileBytes);
          const __m512i bits =
              token % 2 != 0 ? _mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff)) : _mm512_slli_epi32(pairs, 16);
          weight = _mm512_add_ps(weight, _mm512_castsi512_ps(bits));
        }
        const __mmask16 sees = _mm512_cmp_ps_mask(weight, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        for (int d = 0; sees != 0 && d < static_cast<int>(params_.v_head_dim); ++d) {
          float* const sum = sums(index) + d / 16 * kSlotFloats + c * kTileFloats + d % 16 * 16;
          const __m512 v =
              _mm512_set1_ps(_mm512_cvtss_f32(load_floats(exception.v + 2 * d, params_.kv_dtype, first_lanes16(1))));
          _mm512_store_ps(sum, _mm512_mask3_fmadd_ps(weight, v, _mm512_load_ps(sum), sees));
        }
      }
    }
  }

  /// Rows of the next chunk, or of the next task's first, to be prefetched meanwhile: a share of them while column
  /// block `index` is computed, a line with each product of scores. Few column blocks have too few of these products:
  /// they go round the pages of all rows instead, some lines before each tile of scores or sums.
  void plan_prefetch(int index, std::int64_t begin, std::int64_t end) noexcept {
    ahead_.clear();
    if (index == 0) ahead_of_few_.clear();
    const std::int64_t share = kChunk / num_blocks_;
    const auto plan = [&](const KvRows& rows, std::int64_t chunk, std::int64_t from, std::int64_t to) {
      if (has_few_blocks()) {
        from = std::max(from, chunk), to = std::min(to, chunk + kChunk);
        if (index == 0 && from < to) add_rows_ahead(ahead_of_few_, rows, from, to - from);
        return;
      }
      const std::int64_t first = std::max(from, chunk + index * share),
                         last = std::min(to, chunk + (index + 1) * share);
      if (first < last) ahead_.add(rows, first, last - first);
    };
    const std::int64_t next = chunk_ + (is_backward_ ? -kChunk : kChunk);
    if (next + kChunk > begin && next < end) {
      plan(rows_, next, begin, end);
    } else if (const AttendTask* task = task_.next; task != nullptr && !is_backward_) {
      plan(KvRows(params_, *task), visible_keys(params_, *task, 0).first / kChunk * kChunk, task->kv_begin,
           task->kv_end);
    }
    ahead_.touch();
    if (index > 0 || !has_few_blocks()) return;
    ahead_of_few_.touch();
    const int weigh_steps = kChunk / kGroupTokens * kv_terms_ / 4 * d_tiles_;
    prefetch_.start(ahead_of_few_, static_cast<std::size_t>(num_blocks_ * (kChunkTiles + weigh_steps)));
  }
  bool has_few_blocks() const noexcept { return num_blocks_ <= kFewBlocks; }

  /// Token tiles of the chunk that some column of the block sees, from an even one on.
  struct TileRange {
    int first, end;
  };
  TileRange tiles_of(int index) const noexcept {
    const ColumnBlock& block = scratch_.blocks[index];
    const std::int64_t begin = std::max<std::int64_t>(chunk_, block.min_first) / kGroupTokens * kGroupTokens;
    const std::int64_t end = std::min<std::int64_t>(chunk_ + kChunk, block.max_end);
    if (begin >= end) return {0, 0};
    return {static_cast<int>(begin - chunk_) / kTileRows, static_cast<int>(end - chunk_ + kTileRows - 1) / kTileRows};
  }

  /// The tiles of these that are computed first: those of one block of tokens.
  TileRange part_of(TileRange tiles) const noexcept {
    if (is_backward_) return {std::max(tiles.first, (tiles.end - 1) / kBlockTiles * kBlockTiles), tiles.end};
    return {tiles.first, std::min(tiles.end, tiles.first / kBlockTiles * kBlockTiles + kBlockTiles)};
  }

  /// One column block over its tiles of the chunk.
  void attend_chunk(int index) noexcept {
    ColumnBlock& block = scratch_.blocks[index];
    const TileRange tiles = tiles_of(index);
    if (tiles.first == tiles.end) return;
    SoftmaxState state;
    state.scale = _mm512_set1_ps(is_plain_ ? scale_ : 1.f);
    for (int c = 0; c < kColumnTiles; ++c) {
      state.max[c] = _mm512_load_ps(block.max + c * 16), state.sum[c] = _mm512_load_ps(block.sum + c * 16);
    }
    for (TileRange left = tiles; left.first < left.end;) {
      const TileRange part = part_of(left);
      left = is_backward_ ? TileRange{left.first, part.first} : TileRange{part.end, left.end};
      const int next = part_of(left).first;
      attend_block(index, state, part.first, part.end,
                   left.first < left.end ? score_of(index, next, next + 1) : first_of_next(index));
    }
    for (int c = 0; c < kColumnTiles; ++c) _mm512_store_ps(block.sum + c * 16, state.sum[c]);
  }

  /// The first scores of the next column block that has some in this chunk; none (k null) if there is none.
  ScorePass first_of_next(int index) const noexcept {
    while (++index < num_blocks_) {
      const TileRange part = part_of(tiles_of(index));
      if (part.first < part.end) return score_of(index, part.first, part.first + 1);
    }
    return ScorePass{};
  }

  /// Token tiles [tile, stop) of the chunk, which lie in one block of 256 tokens; `next` are the scores after them.
  void attend_block(int index, SoftmaxState& state, int tile, int stop, const ScorePass& next) noexcept {
    ColumnBlock& block = scratch_.blocks[index];
    if (find_maxima(index, state, tile, stop)) slot_is_scored_ = false;
    const SoftmaxState saved = state;
    weights_of_tiles(index, state, tile, stop, next);
    if (overflows(state)) {
      raise_maxima(index, state, saved, tile, stop);
      weights_of_tiles(index, state, tile, stop, next);
    }
    for (int c = 0; c < kColumnTiles; ++c) {  // columns that have seen no key yet used 0
      const __m512 old = _mm512_load_ps(block.max + c * 16);
      const __mmask16 is_set = _mm512_cmp_ps_mask(old, _mm512_set1_ps(kHiddenLogit), _CMP_NEQ_OQ);
      _mm512_mask_storeu_ps(block.max + c * 16, is_set, state.max[c]);
    }
    if ((stop - tile) % 2 != 0) {
      for (int term = 0; term < weight_terms(); ++term) {
        std::byte* half =
            scratch_.weights + term * kWeightTermBytes + (stop - tile) / 2 * kWeightBytes + kTileBytes / 2;
        for (int c = 0; c < kColumnTiles; ++c) std::memset(half + c * kTileBytes, 0, kTileBytes / 2);
      }
    }
    const std::byte* weights = scratch_.weights;
    const int most = 4 / kv_terms_;  // V tiles that stay in registers with their terms
    for (int group = tile / 2, end = (stop + 1) / 2; group < end;) {
      const int count = std::min(end - group, most - group % most);
      weigh_values(count, packed_.values(group), weights, sums(index), block.has_sums);
      block.has_sums = true;
      weights += count * kWeightBytes, group += count;
    }
    if (!packed_.exceptions().empty()) [[unlikely]]
      weigh_exceptions(index, tile, stop);
  }

  /// sums += V^T weights over `count` V tiles of 32 tokens.
  void weigh_values(int count, const std::byte* values, const std::byte* weights, float* sums, bool has_sums) noexcept {
    if (!has_few_blocks()) return weigh_values(count, values, weights, sums, has_sums, d_tiles_);
    for (int d = 0; d < d_tiles_; ++d, values += kValueStride, sums += kSlotFloats) {
      prefetch_.step();
      weigh_values(count, values, weights, sums, has_sums, 1);
    }
  }
  void weigh_values(int count, const std::byte* values, const std::byte* weights, float* sums, bool has_sums,
                    int num_d_tiles) const noexcept {
    const std::int64_t term_bytes = packed_.values_term_bytes();
    if (kv_terms_ == 1) {
      return has_sums ? weigh<1, false>(count, values, term_bytes, weights, sums, num_d_tiles)
                      : weigh<1, true>(count, values, term_bytes, weights, sums, num_d_tiles);
    }
    has_sums ? weigh<2, false>(count, values, term_bytes, weights, sums, num_d_tiles)
             : weigh<2, true>(count, values, term_bytes, weights, sums, num_d_tiles);
  }

  /// Scores of a token tile; those of `next_tile` follow. The slot is filled in later.
  ScorePass score_of(int index, int tile, int next_tile) const noexcept {
    ScorePass pass{};
    pass.k = packed_.keys(tile), pass.k_next = packed_.keys(next_tile % kChunkTiles).at;
    pass.k_terms = kv_terms_;
    pass.ahead = pass.k_next;  // nothing to prefetch: a line that is prefetched anyway
    pass.queries = queries(index), pass.query_stride = std::int64_t{terms_} * k_tiles_ * kTileBytes;
    return pass;
  }
  int weight_terms() const noexcept { return kv_terms_ == 2 ? kSplitTerms : 1; }
  float* slot(int which) const noexcept { return scratch_.scores + which * kSlotFloats; }

  /// Scores of a token tile into the slot in turn, by themselves.
  float* score_alone(int index, int tile) noexcept {
    ScorePass pass = score_of(index, tile, tile + 1);
    pass.scores = slot(slot_);
    SoftmaxState unused;
    score_tile<false>(k_tiles_, terms_, unused, pass);
    return pass.scores;
  }

  /// The same as logits in base 2, or as scores whose logits are theirs times `scale_`.
  const float* logits_alone(int index, int tile) noexcept {
    float* const scores = score_alone(index, tile);
    if (!finish_logits(index, scores, tile)) bend_scores(bend_, nullptr, scores);
    return scores;
  }

  /// Scores and weights of tiles [tile, stop); the softmax of each overlaps with the scores of the one after it, that
  /// of the last with `next`.
  void weights_of_tiles(int index, SoftmaxState& state, int tile, int stop, const ScorePass& next) noexcept {
    if (!slot_is_scored_) score_alone(index, tile);
    for (int t = tile; t < stop; ++t) {
      float* done = slot(slot_);
      const bool is_finished = finish_logits(index, done, t);
      ScorePass pass = t + 1 < stop ? score_of(index, t + 1, t + 2) : next;
      slot_ ^= 1;
      pass.scores = slot(slot_), pass.done_scores = done,
      pass.bend = !is_finished     ? &bend_
                  : kv_terms_ == 2 ? &unbent_
                                   : nullptr;
      pass.weights = scratch_.weights + (t - tile) / 2 * kWeightBytes + (t - tile) % 2 * (kTileBytes / 2);
      if (pass.k.at != nullptr) {
        if (has_few_blocks()) prefetch_.step();
        if (const std::byte* lines = ahead_.take(ahead_lines_); lines != nullptr) pass.ahead = lines;
        score_tile<true>(k_tiles_, terms_, state, pass);
      } else {
        softmax_slot(state, done, pass.weights, pass.bend, kv_terms_ == 2);
      }
    }
    slot_is_scored_ = next.k.at != nullptr;
  }

  /// Sets the maxima of columns that have none from their first tile with a visible key; 0 for this block if there is
  /// none in it. True if it used the slots.
  bool find_maxima(int index, SoftmaxState& state, int tile, int stop) noexcept {
    ColumnBlock& block = scratch_.blocks[index];
    const __m512 none = _mm512_set1_ps(kHiddenLogit);
    for (int i = 0;; ++i) {
      __mmask16 missing[kColumnTiles], any = 0;
      for (int c = 0; c < kColumnTiles; ++c) {
        missing[c] = _mm512_cmp_ps_mask(_mm512_load_ps(block.max + c * 16), none, _CMP_EQ_OQ);
        any = static_cast<__mmask16>(any | missing[c]);
      }
      if (any == 0 || i == stop - tile) {
        for (int c = 0; c < kColumnTiles; ++c) {
          state.max[c] = _mm512_mask_mov_ps(_mm512_load_ps(block.max + c * 16), missing[c], _mm512_setzero_ps());
        }
        return i > 0;
      }
      const float* scores = logits_alone(index, is_backward_ ? stop - 1 - i : tile + i);
      for (int c = 0; c < kColumnTiles; ++c) {
        const __m512 top = _mm512_mul_ps(highest_score(scores + c * kTileFloats), state.scale);
        const __mmask16 seen = _mm512_mask_cmp_ps_mask(missing[c], top, none, _CMP_GT_OQ);
        _mm512_mask_storeu_ps(block.max + c * 16, seen, top);
      }
    }
  }

  /// Takes a block back: columns whose sum overflowed get the maximum over the block, their sums are scaled down; all
  /// others keep every bit.
  void raise_maxima(int index, SoftmaxState& state, const SoftmaxState& saved, int tile, int stop) noexcept {
    __m512 top[kColumnTiles];
    for (int c = 0; c < kColumnTiles; ++c) top[c] = saved.max[c];
    for (int t = tile; t < stop; ++t) {
      const float* scores = logits_alone(index, t);
      for (int c = 0; c < kColumnTiles; ++c) {
        top[c] = _mm512_max_ps(top[c], _mm512_mul_ps(highest_score(scores + c * kTileFloats), saved.scale));
      }
    }
    for (int c = 0; c < kColumnTiles; ++c) {
      const __mmask16 bad = overflowing(state.sum[c]);
      const __m512 factor =
          _mm512_mask_mov_ps(_mm512_set1_ps(1.f), bad, exp2_exact(_mm512_sub_ps(saved.max[c], top[c])));
      state.max[c] = _mm512_mask_mov_ps(saved.max[c], bad, top[c]);
      state.sum[c] = _mm512_mul_ps(saved.sum[c], factor);
      for (int d = 0; scratch_.blocks[index].has_sums && d < d_tiles_; ++d) {
        float* sum = sums(index) + d * kSlotFloats + c * kTileFloats;
        for (int i = 0; i < 16; ++i) _mm512_store_ps(sum + i * 16, _mm512_mul_ps(_mm512_load_ps(sum + i * 16), factor));
      }
    }
    slot_is_scored_ = false;
  }

  /// Masks and hides keys of a tile in place, bending the raw scores before if need be; true if `bend_` has no more to
  /// do then. What all columns see passes untouched: the softmax bends it on its way.
  bool finish_logits(int index, float* scores, int tile) noexcept {
    const ColumnBlock& block = scratch_.blocks[index];
    const auto token = static_cast<std::int32_t>(chunk_) + tile * kTileRows;
    __m512i mask[kColumnTiles * 16];
    const bool is_masked = params_.mask_kind == MaskKind::kAdditive && mask_tiles(params_, task_, block, token, mask);
    if (!is_plain_) aim_bend(bend_, params_, block, token);
    if (is_masked) bend_scores(bend_, mask, scores);
    const bool has_bits = params_.mask_kind == MaskKind::kBool || params_.mask_kind == MaskKind::kBits;
    if (!has_bits && token >= block.max_first && token + kTileRows <= block.min_end) return is_plain_ || is_masked;
    __m512i seen[kColumnTiles], all = _mm512_set1_epi32(0xffff);
    for (int c = 0; c < kColumnTiles; ++c) {
      seen[c] = has_bits ? _mm512_and_si512(range_bits(block, c, token), mask_bits(params_, task_, block, c, token))
                         : range_bits(block, c, token);
      all = _mm512_and_si512(all, seen[c]);
    }
    if (_mm512_cmpneq_epi32_mask(all, _mm512_set1_epi32(0xffff)) == 0) return is_plain_ || is_masked;
    const bool is_bent = is_masked || !hides_raw_;
    if (is_bent && !is_masked) bend_scores(bend_, nullptr, scores);
    for (int c = 0; c < kColumnTiles; ++c) {
      for (int t = 0; t < kTileRows; ++t) {
        const __mmask16 hidden = _mm512_testn_epi32_mask(seen[c], _mm512_set1_epi32(1 << t));
        _mm512_mask_storeu_ps(scores + c * kTileFloats + t * 16, hidden, _mm512_set1_ps(kHiddenLogit));
      }
    }
    return is_plain_ || is_bent;
  }

  /// Divides by the sums and writes the rows, 16 columns at a time transposed back.
  void close_block(int index) noexcept {
    const ColumnBlock& block = scratch_.blocks[index];
    if (!block.has_sums) std::memset(sums(index), 0, static_cast<std::size_t>(d_tiles_ * kSlotFloats) * 4);
    const int dim = static_cast<int>(params_.v_head_dim);
    for (int c = 0; c < kColumnTiles && c * 16 < block.num_columns; ++c) {
      const int count = std::min(16, block.num_columns - c * 16);
      alignas(64) float factor[16] = {};
      OutputRow rows[16];
      for (int i = 0; i < count; ++i) {
        const Column column = column_of(block, c * 16 + i);
        const RowEnd end = end_row(params_, task_, column.head, block.max[c * 16 + i], block.sum[c * 16 + i]);
        factor[i] = end.factor;
        write_lse(params_, task_, column.row, column.head, end.lse);
        rows[i] = output_row(params_, task_, column.row, column.head);
      }
      for (int d = 0; d * 16 < dim; d += 2) {
        __m512i low[16], high[16];
        final_tile(index, c, d, factor, low), final_tile(index, c, d + 1, factor, high);
        for (int i = 0; i < count; ++i) {
          rows[i].store(d * 16, dim, _mm512_castsi512_ps(low[i]), _mm512_castsi512_ps(high[i]));
        }
      }
    }
  }

  /// Sums of 16 dims and 16 columns, times the columns' factors, as [column][dim].
  void final_tile(int index, int column_tile, int d, const float* factor, __m512i* to) const noexcept {
    const float* from = sums(index) + d * kSlotFloats + column_tile * kTileFloats;
    for (int i = 0; i < 16; ++i) {
      to[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(from + i * 16), _mm512_load_ps(factor)));
    }
    transpose16(to);
  }

  const AttendParams& params_;
  const AttendTask& task_;
  const KvRows rows_;
  const PrefillScratch scratch_;
  const int k_tiles_, d_tiles_, terms_;  // terms of a query
  const int kv_terms_;                   // 2: f16, and weights in kSplitTerms terms
  const float scale_;
  const int ahead_lines_;  // a token tile
  const bool is_plain_;    // neither soft cap nor ALiBi nor mask, and weights of one term
  const bool hides_raw_;   // a score of -inf is a logit of -inf
  /// From the last keys to the first: ALiBi then lowers logits on the way, and the maximum of the first tile holds.
  const bool is_backward_;
  PackedChunk packed_;
  std::int64_t chunk_ = 0;  // first token of the chunk at hand
  int num_blocks_ = 0;
  ChunkPrefetcher ahead_;   // of the next chunk, while many column blocks are computed over this one
  RowsAhead ahead_of_few_;  // the same while few are
  StreamPrefetcher<8> prefetch_;
  Bend bend_;                      // of the token tile at hand, unless all is plain
  const Bend unbent_ = no_bend();  // of scores that are logits already, beside split weights
  int slot_ = 0;                   // score slot in turn
  bool slot_is_scored_ = false;    // it holds the scores of the next tile
};

}  // namespace

std::size_t prefill_scratch_bytes(const AttendParams& params) noexcept {
  // A plan does not know the format of its queries, and fewer terms of them may make for more column blocks.
  std::size_t bytes = 0;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    AttendParams with_queries = params;
    with_queries.q_dtype = dtype;
    bytes = std::max(bytes, PrefillScratch(with_queries, nullptr).bytes);
  }
  return bytes;
}

void attend_prefill(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept {
  const FloatModeScope mode;
  PrefillTask(params, task, scratch).run();
}

}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
