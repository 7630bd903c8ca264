// The keys and values of a chunk as AMX tiles: K in place or copied, V transposed.
//
// Layer: kernels, only for x86_amx_prefill.cc (see x86_amx_instructions.h for the compile region).
#pragma once

#include <span>

#include "kernels/x86_amx_prefill_scratch.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

/// One chunk at a time, packed once for all column blocks of a pass. Absorbs page sizes, strides and odd dimensions.
class PackedChunk {
 public:
  /// A token of the chunk whose V is not finite, and that row.
  struct Exception {
    std::int32_t token;
    const std::byte* v;
  };

  PackedChunk(const AttendParams& params, const KvRows& rows, const PrefillScratch& scratch) noexcept
      : params_(params),
        rows_(rows),
        scratch_(scratch),
        k_tiles_(round_tiles(params.head_dim, 32)),
        d_tiles_(2 * round_tiles(params.v_head_dim, 32)),
        kv_terms_(kv_terms_of(params)),
        has_whole_key_tiles_(params.kv_dtype == DType::bf16 && rows.k_bytes % kTileRowBytes == 0 &&
                             rows.k_stride == rows.k_bytes) {
    std::memset(scratch.zero_row, 0, static_cast<std::size_t>(std::max(k_tiles_, d_tiles_ / 2)) * kTileRowBytes);
    for (int tile = 0; tile < kChunkTiles; ++tile) keys_[tile] = {key_tiles(tile), kTileRowBytes, kTileBytes};
  }

  /// Tokens [begin, end) of the chunk that starts at token `chunk`; zeros up to whole groups of 32. Unless all of it
  /// was prefetched already, what comes in the next groups is while one is packed.
  void pack(std::int64_t chunk, std::int64_t begin, std::int64_t end, bool was_prefetched) noexcept {
    chunk_ = chunk;
    const std::int64_t first_group = begin / kGroupTokens * kGroupTokens;
    num_exceptions_ = 0;
    ChunkPrefetcher ahead;
    for (std::int64_t token = first_group; token < end; token += kGroupTokens) {
      ahead.clear();
      const std::int64_t next = token + 2 * kGroupTokens;
      if (next < end && !was_prefetched) ahead.add(rows_, next, std::min<std::int64_t>(kGroupTokens, end - next));
      GroupRows group(rows_, token, begin, end, scratch_.zero_row);
      const int index = static_cast<int>((token - chunk_) / kGroupTokens);
      for (int half = 0; half < 2; ++half) {
        if (find_keys(token + half * kTileRows, begin, end)) continue;
        pack_keys(group.k + half * kTileRows, index * 2 + half, ahead);
      }
      if (pack_values(group, index, ahead)) [[unlikely]]
        pack_exceptions(group, token, ahead);
    }
  }

  /// K of token tile `tile`; of one that was not packed, what may be prefetched.
  const KeyTile& keys(int tile) const noexcept { return keys_[tile]; }

  /// V of a group of 32 tokens: [d tiles] tiles of [16 dims][32 tokens], 4 tiles apart; terms lie values_term_bytes()
  /// apart.
  std::byte* values(int group) const noexcept {
    return scratch_.values + (std::int64_t{group} / 4 * d_tiles_ * 4 + group % 4) * kTileBytes;
  }
  std::int64_t values_term_bytes() const noexcept {
    return std::int64_t{kChunk / kGroupTokens} * d_tiles_ * kTileBytes;
  }

  /// Tokens whose values were packed as zeros.
  std::span<const Exception> exceptions() const noexcept {
    return {exceptions_, static_cast<std::size_t>(num_exceptions_)};
  }

 private:
  /// Where K of a token tile lies if it does not stand in place.
  std::byte* key_tiles(int tile) const noexcept {
    return scratch_.k + std::int64_t{tile} * kv_terms_ * k_tiles_ * kTileBytes;
  }

  /// True if the K rows of 16 tokens can stand in place: side by side in a page, all there, of whole tiles.
  bool find_keys(std::int64_t token, std::int64_t begin, std::int64_t end) noexcept {
    if (!has_whole_key_tiles_ || token < begin || token + kTileRows > end) return false;
    const KvRows::Run run = rows_.at(token);
    if (run.rows < kTileRows) return false;
    keys_[(token - chunk_) / kTileRows] = {run.k, rows_.k_stride, kTileRowBytes};
    return true;
  }

  /// Elements [first, first + 32) of a row of `dim` as bf16, or the first of their terms.
  PAGEDKV_AMX_INLINE __m512i piece(const std::byte* row, int first, int dim) const noexcept {
    if (params_.kv_dtype == DType::bf16) return _mm512_maskz_loadu_epi16(first_lanes32(dim - first), row + 2 * first);
    return kv_terms_ == 1 ? rounded_piece(row, DType::f16, first, dim) : exact_piece(row, DType::f16, first, dim, 0);
  }

  /// Dims [first, first + 16) of two tokens as pairs of bf16, one of their terms.
  PAGEDKV_AMX_INLINE static __m512i exact_pairs(const std::byte* even, const std::byte* odd, int first, int dim,
                                                int term) noexcept {
    const __mmask16 lanes = first_lanes16(dim - first);
    __m512 x = load_floats(even + 2 * first, DType::f16, lanes), y = load_floats(odd + 2 * first, DType::f16, lanes);
    if (term == 1) x = beyond_finite_bf16(x), y = beyond_finite_bf16(y);
    return cut_to_bf16_pairs(x, y);
  }

  /// 16 rows of K to tiles of 32 dims.
  void pack_keys(const std::byte* const* rows, int tile, ChunkPrefetcher& ahead) noexcept {
    const int dim = static_cast<int>(params_.head_dim);
    const int lines = ahead.num_lines() / (2 * kGroupTokens);
    std::byte* const tiles = key_tiles(tile);
    for (int t = 0; t < kTileRows; ++t) {
      std::byte* to = tiles + t * kTileRowBytes;
      for (int i = 0; i < k_tiles_; ++i) {
        _mm512_store_si512(to, piece(rows[t], i * 32, dim)), to += kTileBytes;
        if (kv_terms_ == 2) _mm512_store_si512(to, exact_piece(rows[t], DType::f16, i * 32, dim, 1)), to += kTileBytes;
      }
      ahead.emit(lines);
    }
    keys_[tile] = {tiles, kTileRowBytes, kTileBytes};
  }

  /// True if an infinity or a NaN is among the values.
  bool pack_values(const GroupRows& group, int index, ChunkPrefetcher& ahead) noexcept {
    // Dwords (2 tokens) of dimensions 0..15 and 16..31 of a 64-byte piece.
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const int dim = static_cast<int>(params_.v_head_dim);
    std::byte* const first = values(index);
    const int total = ahead.num_lines();
    const int lines = total == 0 ? 0 : total / d_tiles_ / (has_whole_key_tiles_ ? 8 : 16 * kv_terms_) + 1;
    __m512i largest = _mm512_setzero_si512();  // of the values without their sign, in the upper 15 bits
    for (int tile = 0; tile < kv_terms_ * d_tiles_; tile += 2) {
      const int term = tile / d_tiles_, d = tile % d_tiles_;
      std::byte* const to = first + term * values_term_bytes() + d * 4 * kTileBytes;
      const __mmask32 lanes = first_lanes32(dim - d * 16);
      __m512i a[16], b[16];
      for (int pair = 0; pair < 16; ++pair) {
        __m512i even = _mm512_maskz_loadu_epi16(lanes, group.v[2 * pair] + d * 32);
        __m512i odd = _mm512_maskz_loadu_epi16(lanes, group.v[2 * pair + 1] + d * 32);
        for (int i = 0; lines == 0 && i < 2; ++i) {  // they lie in L2: the next pieces
          _mm_prefetch(reinterpret_cast<const char*>(group.v[2 * pair + i] + d * 32 + 64), _MM_HINT_T0);
        }
        largest = _mm512_max_epu16(largest, _mm512_max_epu16(_mm512_add_epi16(even, even), _mm512_add_epi16(odd, odd)));
        if (kv_terms_ == 2) {
          a[pair] = exact_pairs(group.v[2 * pair], group.v[2 * pair + 1], d * 16, dim, term);
          b[pair] = exact_pairs(group.v[2 * pair], group.v[2 * pair + 1], d * 16 + 16, dim, term);
        } else {
          if (params_.kv_dtype == DType::f16) {
            even = piece(group.v[2 * pair], d * 16, dim), odd = piece(group.v[2 * pair + 1], d * 16, dim);
          }
          a[pair] = _mm512_permutex2var_epi16(even, low, odd);
          b[pair] = _mm512_permutex2var_epi16(even, high, odd);
        }
        ahead.emit(lines);
      }
      transpose16(a);
      transpose16(b);
      for (int i = 0; i < 16; ++i) {
        _mm512_store_si512(to + i * kTileRowBytes, a[i]);
        _mm512_store_si512(to + 4 * kTileBytes + i * kTileRowBytes, b[i]);
      }
    }
    return _mm512_cmpge_epu16_mask(largest, infinity_bits(params_.kv_dtype)) != 0;
  }

  /// Packs zeros for the rows that hold an infinity or a NaN, and notes them: a product with weight 0 would make NaN of
  /// columns that do not see them.
  void pack_exceptions(GroupRows& group, std::int64_t token, ChunkPrefetcher& ahead) noexcept {
    for (int t = 0; t < kGroupTokens; ++t) {
      if (is_finite_row(group.v[t], params_.kv_dtype, params_.v_head_dim)) continue;
      exceptions_[num_exceptions_++] = {static_cast<std::int32_t>(token - chunk_) + t, group.v[t]};
      group.v[t] = scratch_.zero_row;
    }
    pack_values(group, static_cast<int>((token - chunk_) / kGroupTokens), ahead);
  }

  const AttendParams& params_;
  const KvRows& rows_;
  const PrefillScratch& scratch_;
  const int k_tiles_, d_tiles_, kv_terms_;
  const bool has_whole_key_tiles_;  // rows of K are whole tiles wide and lie side by side in a page
  std::int64_t chunk_ = 0;          // first token of the chunk at hand
  KeyTile keys_[std::size_t{kChunkTiles}] = {};
  int num_exceptions_ = 0;
  Exception exceptions_[kChunk];
};

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
