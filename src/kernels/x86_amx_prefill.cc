// Prefill over bf16 and f16 pages with AMX: many query columns against every key, limited by the matrix and vector
// units.
//
// A column is a (query row, head) of the group, rows outermost, so that any group fills the tiles; 64 columns advance
// together. Per chunk of 512 tokens V is copied into transposed tiles, and K into tiles unless 16 rows of a page can be
// tiles in place, which absorbs page sizes, strides and odd dimensions; then every column block goes over the chunk in
// blocks of 256 tokens: scores S = K q^T with the softmax of the tile before interleaved, then sums += V^T P.
// Accumulators f32, weights bf16. An f16 is the sum of two bf16, an f32 of three: f16 pages, their queries and weights
// are cut into terms, and the products of all terms (but of the lowest of weights and V) add up to what f32 would give
// (x86_amx_split.h: two token tiles a step, blocks of 128 tokens).
//
// The maximum of a column is that of its first tile with a visible key; if its sum overflows 2^60 the block is done
// again with the true maximum, column by column, so that a row's arithmetic never depends on the others. Reads each K
// and V byte once a task of 512 to 1024 columns. Limit: port 0 beside TMUL (softmax), L2 to L1 traffic.
#include "kernels/x86_amx_kernels.h"
#include "kernels/x86_amx_prefill_mask.h"
#include "kernels/x86_amx_prefill_pack.h"
#include "kernels/x86_amx_split.h"

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
        ahead_lines_((kv_terms_ == 2 ? 2 * k_tiles_ : std::min(k_tiles_, 4)) * kColumnTiles),
        is_plain_(params.logits_soft_cap == 0 && params.alibi_slopes == nullptr &&
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
      slot_is_scored_ = false;
      for (int b = 0; b < num_blocks_; ++b) {
        plan_prefetch(b, begin, end);
        attend_chunk(b);
      }
      was_prefetched = has_few_blocks() && !ahead_of_few_.is_full();
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
      block.mask_entry[c] = mask_entry(params_, task_, column.row, column.head);
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
          const __m512i pairs = _mm512_load_si512(weights + term * term_bytes() + c * kTileBytes);
          const __m512i bits =
              token % 2 != 0 ? _mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff)) : _mm512_slli_epi32(pairs, 16);
          weight = _mm512_add_ps(weight, _mm512_castsi512_ps(bits));
        }
        const __mmask16 sees = _mm512_cmp_ps_mask(weight, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        for (int d = 0; sees != 0 && d < static_cast<int>(params_.v_head_dim); ++d) {
          float* const sum = sums(index) + d / 16 * kSlotFloats + c * kTileFloats + d % 16 * 16;
          __m512 v =
              _mm512_set1_ps(_mm512_cvtss_f32(load_floats(exception.v + 2 * d, params_.kv_dtype, first_lanes16(1))));
          if (params_.f16_as_bf16) v = _mm512_castsi512_ps(_mm512_slli_epi32(round_to_bf16(v), 16));
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
        if (index == 0 && from < to) add_rows_ahead(ahead_of_few_, rows, from, to - from, RowParts::kBoth);
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
    const int weigh_steps = kv_terms_ == 2 ? kChunk / kSplitBlock * d_tiles_ / 2 : kChunk / kGroupTokens / 4 * d_tiles_;
    prefetch_.start(
        ahead_of_few_, nullptr,
        static_cast<std::size_t>(num_blocks_) * static_cast<std::size_t>(kChunkTiles / step_tiles() + weigh_steps));
  }
  bool has_few_blocks() const noexcept { return num_blocks_ <= kFewBlocks; }

  /// Token tiles that one pass of scores computes: 2 beside keys of two terms.
  int step_tiles() const noexcept { return kv_terms_; }

  /// Token tiles of the chunk that some column of the block sees, from an even one on; whole steps.
  struct TileRange {
    int first, end;
  };
  TileRange tiles_of(int index) const noexcept {
    const ColumnBlock& block = scratch_.blocks[index];
    const std::int64_t begin = std::max<std::int64_t>(chunk_, block.min_first) / kGroupTokens * kGroupTokens;
    const std::int64_t end = std::min<std::int64_t>(chunk_ + kChunk, block.max_end);
    if (begin >= end) return {0, 0};
    return {static_cast<int>(begin - chunk_) / kTileRows,
            ceil_to(static_cast<int>(end - chunk_), kTileRows * step_tiles()) / kTileRows};
  }

  /// The tiles of these that are computed first: those of one block of tokens.
  TileRange part_of(TileRange tiles) const noexcept {
    const int most = (kv_terms_ == 2 ? kSplitBlock : kBlock) / kTileRows;
    if (is_backward_) return {std::max(tiles.first, (tiles.end - 1) / most * most), tiles.end};
    return {tiles.first, std::min(tiles.end, tiles.first / most * most + most)};
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
                   left.first < left.end ? score_of(index, next, next + step_tiles()) : first_of_next(index));
    }
    for (int c = 0; c < kColumnTiles; ++c) _mm512_store_ps(block.sum + c * 16, state.sum[c]);
  }

  /// The first scores of the next column block that has some in this chunk; none (k null) if there is none.
  ScorePass first_of_next(int index) const noexcept {
    while (++index < num_blocks_) {
      const TileRange part = part_of(tiles_of(index));
      if (part.first < part.end) return score_of(index, part.first, part.first + step_tiles());
    }
    return ScorePass{};
  }

  /// Token tiles [tile, stop) of the chunk, which lie in one block; `next` are the scores after them.
  void attend_block(int index, SoftmaxState& state, int tile, int stop, const ScorePass& next) noexcept {
    ColumnBlock& block = scratch_.blocks[index];
    find_maxima(index, state, tile, stop);
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
    kv_terms_ == 2 ? weigh_split(index, tile, stop) : weigh(index, tile, stop);
    block.has_sums = true;
    if (!packed_.exceptions().empty()) [[unlikely]]
      weigh_exceptions(index, tile, stop);
  }

  /// sums += V^T weights over the tiles [tile, stop).
  void weigh(int index, int tile, int stop) noexcept {
    if ((stop - tile) % 2 != 0) {
      std::byte* half = scratch_.weights + (stop - tile) / 2 * kWeightBytes + kTileBytes / 2;
      for (int c = 0; c < kColumnTiles; ++c) std::memset(half + c * kTileBytes, 0, kTileBytes / 2);
    }
    const std::byte* weights = scratch_.weights;
    bool has_sums = scratch_.blocks[index].has_sums;
    for (int group = tile / 2, end = (stop + 1) / 2; group < end;) {
      const int count = std::min(end - group, 4 - group % 4);
      weigh_values(count, packed_.values(group), weights, sums(index), has_sums);
      has_sums = true;
      weights += count * kWeightBytes, group += count;
    }
  }

  /// The same over `count` V tiles of 32 tokens.
  void weigh_values(int count, const std::byte* values, const std::byte* weights, float* sums, bool has_sums) noexcept {
    const auto weigh_tiles = [&](int num_d_tiles) {
      has_sums ? amx::weigh_values<false>(count, values, weights, sums, num_d_tiles)
               : amx::weigh_values<true>(count, values, weights, sums, num_d_tiles);
    };
    if (!has_few_blocks()) return weigh_tiles(d_tiles_);
    for (int d = 0; d < d_tiles_; ++d, values += kValueStride, sums += kSlotFloats) {
      prefetch_.step();
      weigh_tiles(1);
    }
  }

  /// The same beside two terms of V and kSplitTerms of the weights.
  void weigh_split(int index, int tile, int stop) noexcept {
    SplitValues values;
    values.num_groups = (stop - tile) / 2, values.term_bytes = packed_.values_term_bytes();
    for (int g = 0; g < values.num_groups; ++g) values.groups[g] = packed_.values(tile / 2 + g);
    const bool has_sums = scratch_.blocks[index].has_sums;
    if (!has_few_blocks()) return split_weigh(values, scratch_.weights, sums(index), d_tiles_, has_sums);
    for (int d = 0; d < d_tiles_; d += 2) {
      prefetch_.step();
      split_weigh(values, scratch_.weights, sums(index) + d * kSlotFloats, 2, has_sums);
      for (int g = 0; g < values.num_groups; ++g) values.groups[g] += 2 * kValueStride;
    }
  }

  /// Scores of a token tile; those of `next_tile` follow. The slot is filled in later.
  ScorePass score_of(int index, int tile, int next_tile) const noexcept {
    ScorePass pass{};
    pass.k = packed_.keys(tile), pass.k_next = packed_.keys(next_tile % kChunkTiles).at;
    pass.ahead = pass.k_next;  // nothing to prefetch: a line that is prefetched anyway
    pass.queries = queries(index), pass.query_stride = std::int64_t{terms_} * k_tiles_ * kTileBytes;
    return pass;
  }
  int weight_terms() const noexcept { return kv_terms_ == 2 ? kSplitTerms : 1; }
  std::int64_t term_bytes() const noexcept { return kv_terms_ == 2 ? kSplitTermBytes : kWeightTermBytes; }
  float* slot(int which) const noexcept { return scratch_.scores + which * step_tiles() * kSlotFloats; }

  /// One step of scores into a slot; with kSoftmax, the weights of another come out meanwhile.
  template <bool kSoftmax>
  void score(SoftmaxState& state, const ScorePass& pass) noexcept {
    if (kv_terms_ == 1) return score_tile<kSoftmax>(k_tiles_, terms_, state, pass);
    if (!kSoftmax) return split_scores<0>(k_tiles_, terms_, state, pass);
    pass.bend != nullptr ? split_scores<kSplit + kBent>(k_tiles_, terms_, state, pass)
                         : split_scores<kSplit>(k_tiles_, terms_, state, pass);
  }

  /// Scores of a token tile into the slot in turn, by themselves.
  float* score_alone(int index, int tile) noexcept {
    ScorePass pass = score_of(index, tile, tile + step_tiles());
    pass.scores = slot(slot_);
    SoftmaxState unused;
    score<false>(unused, pass);
    return pass.scores;
  }

  /// The same as logits in base 2, or as scores whose logits are theirs times `scale_`.
  const float* logits_alone(int index, int tile) noexcept {
    float* const scores = score_alone(index, tile);
    if (!finish_logits(index, scores, tile)) bend_step(scores, nullptr);
    return scores;
  }

  /// Highest score of each column of a tile, over the tokens of a step.
  __m512 highest_score(const float* scores, int column_tile) const noexcept {
    const int tokens = step_tiles() * kTileRows;
    return highest_of(scores + column_tile * tokens * 16, tokens);
  }

  /// Raw scores of a step to logits, under the mask logits [tiles][4][16 tokens][16 columns] unless null.
  void bend_step(float* scores, const __m512i* mask) noexcept {
    for (int half = 0; half < step_tiles(); ++half) {
      bend_scores(bend_, mask != nullptr ? mask + half * kColumnTiles * 16 : nullptr, scores, step_tiles() * kTileRows,
                  half * kTileRows);
    }
  }

  /// Scores and weights of tiles [tile, stop); the softmax of each overlaps with the scores of the one after it, that
  /// of the last with `next`.
  void weights_of_tiles(int index, SoftmaxState& state, int tile, int stop, const ScorePass& next) noexcept {
    if (!slot_is_scored_) score_alone(index, tile);
    const int step = step_tiles();
    const LargeMaxima large(state, is_plain_ && kv_terms_ == 1);
    for (int t = tile; t < stop; t += step) {
      float* done = slot(slot_);
      const bool is_finished = finish_logits(index, done, t);
      large.subtract_from(done, state.scale);
      ScorePass pass = t + step < stop ? score_of(index, t + step, t + 2 * step) : next;
      slot_ ^= 1;
      pass.scores = slot(slot_), pass.done_scores = done, pass.bend = is_finished ? nullptr : &bend_;
      pass.weights = scratch_.weights + (t - tile) / 2 * kWeightBytes + (t - tile) % 2 * (kTileBytes / 2);
      if (pass.k.at != nullptr) {
        if (has_few_blocks()) prefetch_.step();
        if (const std::byte* lines = ahead_.take(ahead_lines_); lines != nullptr) pass.ahead = lines;
        score<true>(state, pass);
      } else if (kv_terms_ == 2) {
        split_softmax(state, done, pass.weights, pass.bend);
      } else {
        softmax_slot(state, done, pass.weights, pass.bend);
      }
    }
    large.put_back(state);
    slot_is_scored_ = next.k.at != nullptr;
  }

  /// Sets the maxima of columns that have none from their first tile with a visible key; 0 for this block if there is
  /// none in it. Scores that it leaves in the slot are kept if they are those of the first step, and still raw.
  void find_maxima(int index, SoftmaxState& state, int tile, int stop) noexcept {
    ColumnBlock& block = scratch_.blocks[index];
    const __m512 none = _mm512_set1_ps(kHiddenLogit);
    const int step = step_tiles();
    for (int i = 0;; ++i) {
      __mmask16 missing[kColumnTiles], any = 0;
      for (int c = 0; c < kColumnTiles; ++c) {
        missing[c] = _mm512_cmp_ps_mask(_mm512_load_ps(block.max + c * 16), none, _CMP_EQ_OQ);
        any = static_cast<__mmask16>(any | missing[c]);
      }
      if (any == 0 || tile + i * step == stop) {
        for (int c = 0; c < kColumnTiles; ++c) {
          state.max[c] = _mm512_mask_mov_ps(_mm512_load_ps(block.max + c * 16), missing[c], _mm512_setzero_ps());
        }
        if (i > 0) slot_is_scored_ = i == 1 && is_plain_;
        return;
      }
      const float* scores = logits_alone(index, is_backward_ ? stop - (i + 1) * step : tile + i * step);
      for (int c = 0; c < kColumnTiles; ++c) {
        const __m512 top = _mm512_mul_ps(highest_score(scores, c), state.scale);
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
    for (int t = tile; t < stop; t += step_tiles()) {
      const float* scores = logits_alone(index, t);
      for (int c = 0; c < kColumnTiles; ++c) {
        top[c] = _mm512_max_ps(top[c], _mm512_mul_ps(highest_score(scores, c), saved.scale));
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
    const int tokens = step_tiles() * kTileRows;
    if (!is_plain_) aim_bend(bend_, params_, block, token);
    bool is_bent = params_.mask_kind == MaskKind::kAdditive && mask_step(block, scores, token);
    const bool has_bits = params_.mask_kind == MaskKind::kBool || params_.mask_kind == MaskKind::kBits;
    if (!has_bits && token >= block.max_first && token + tokens <= block.min_end) return is_plain_ || is_bent;
    for (int half = 0; half < step_tiles(); ++half) {
      __m512i seen[kColumnTiles], all = _mm512_set1_epi32(0xffff);
      const std::int32_t first = token + half * kTileRows;
      for (int c = 0; c < kColumnTiles; ++c) {
        seen[c] = range_bits(block, c, first);
        if (has_bits && first < task_.kv_end)
          seen[c] = _mm512_and_si512(seen[c], mask_bits(params_, task_, block, c, first));
        all = _mm512_and_si512(all, seen[c]);
      }
      if (_mm512_cmpneq_epi32_mask(all, _mm512_set1_epi32(0xffff)) == 0) continue;
      if (!is_bent && !hides_raw_) bend_step(scores, nullptr), is_bent = true;
      for (int c = 0; c < kColumnTiles; ++c) {
        for (int t = 0; t < kTileRows; ++t) {
          const __mmask16 hidden = _mm512_testn_epi32_mask(seen[c], _mm512_set1_epi32(1 << t));
          _mm512_mask_storeu_ps(scores + (c * tokens + half * kTileRows + t) * 16, hidden,
                                _mm512_set1_ps(kHiddenLogit));
        }
      }
    }
    return is_plain_ || is_bent;
  }

  /// Bends the scores of a step under an additive mask; false, and no more than that, if the mask changes nothing
  /// there.
  bool mask_step(const ColumnBlock& block, float* scores, std::int32_t token) noexcept {
    __m512i mask[2 * kColumnTiles * 16];
    bool is_masked = false;
    for (int half = 0; half < step_tiles(); ++half) {
      is_masked |= mask_tiles(params_, task_, block, token + half * kTileRows, mask + half * kColumnTiles * 16);
    }
    if (is_masked) bend_step(scores, mask);
    return is_masked;
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
  const int ahead_lines_;  // a step
  const bool is_plain_;    // neither soft cap nor ALiBi nor mask
  const bool hides_raw_;   // a score of -inf is a logit of -inf
  /// From the last keys to the first: ALiBi then lowers logits on the way, and the maximum of the first tile holds.
  const bool is_backward_;
  PackedChunk packed_;
  std::int64_t chunk_ = 0;  // first token of the chunk at hand
  int num_blocks_ = 0;
  ChunkPrefetcher ahead_;   // of the next chunk, while many column blocks are computed over this one
  RowsAhead ahead_of_few_;  // the same while few are
  StreamPrefetcher<8> prefetch_;
  Bend bend_;                    // of the token tile at hand, unless all is plain
  int slot_ = 0;                 // score slot in turn
  bool slot_is_scored_ = false;  // it holds the scores of the next tile
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
