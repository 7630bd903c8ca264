// What a task of AMX prefill keeps in its scratch: packed queries, keys and values, scores, weights, and its column
// blocks.
#pragma once

#include "kernels/x86_amx_rows.h"
#include "kernels/x86_amx_split.h"

#if defined(__x86_64__)
PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

constexpr int kChunk = 512;  // tokens packed at a time: K and V 256 KiB at head_dim 128
constexpr int kChunkTiles = kChunk / kTileRows;
constexpr std::size_t kBlockBudget = 3u << 19;  // bytes of queries and sums that should stay in L2
constexpr int kMaxBlocks = 16;                  // as many as a task has, but in groups above 64
constexpr int kFewBlocks = 4;  // column blocks that have fewer products of tiles than a chunk has lines to prefetch

[[maybe_unused]] int round_tiles(std::uint32_t dim, int multiple) noexcept {
  return ceil_to(static_cast<int>(dim), multiple) / multiple;
}

/// bf16 terms of an element of K and V: an f16 is the sum of two.
int kv_terms_of(const AttendParams& params) noexcept { return is_exact(params) ? 2 : 1; }

/// Column blocks that are computed over one packing of K and V.
int blocks_a_pass(const AttendParams& params) noexcept {
  const std::size_t sums = static_cast<std::size_t>(round_tiles(params.v_head_dim, 16)) * kSlotFloats * 4;
  const std::size_t queries =
      static_cast<std::size_t>(round_tiles(params.head_dim, 32) * query_terms(params) * kColumnTiles) * kTileBytes;
  return static_cast<int>(std::clamp<std::size_t>(kBlockBudget / (sums + queries), 1, kMaxBlocks));
}

/// What a column block carries from chunk to chunk.
struct alignas(64) ColumnBlock {
  float max[kBlockColumns];  // base 2; kHiddenLogit until a key was seen
  float sum[kBlockColumns];
  std::int32_t first[kBlockColumns], end[kBlockColumns];  // visible keys
  std::int32_t position[kBlockColumns];
  float slope[kBlockColumns];
  std::int64_t mask_entry[kBlockColumns];  // of key 0, if there is a mask
  std::int32_t min_first, max_first, min_end, max_end;
  std::int32_t first_row, first_head;  // of column 0
  int num_columns;
  bool has_sums;  // else the sums hold garbage and stand for zeros
};

/// Row pointers of 32 tokens from `token` on; those outside [begin, end) are the zero row.
struct GroupRows {
  const std::byte* k[kGroupTokens];
  const std::byte* v[kGroupTokens];

  GroupRows(const KvRows& rows, std::int64_t token, std::int64_t begin, std::int64_t end,
            const std::byte* zero_row) noexcept {
    for (int i = 0; i < kGroupTokens;) {
      if (token + i < begin || token + i >= end) {
        k[i] = v[i] = zero_row, ++i;
        continue;
      }
      KvRows::Run run = rows.at(token + i);
      const std::int64_t count = std::min({run.rows, end - token - i, std::int64_t{kGroupTokens} - i});
      for (std::int64_t r = 0; r < count; ++r, ++i, run.k += rows.k_stride, run.v += rows.v_stride) {
        k[i] = run.k, v[i] = run.v;
      }
    }
  }
};

/// Pieces of scratch, 64-byte aligned. B: blocks_a_pass.
struct PrefillScratch {
  std::byte* queries;   // [B][4][terms][k tiles] tiles of [16 pairs][16 columns][2] bf16
  float* sums;          // [B][d tiles][4][16 dims][16 columns]
  ColumnBlock* blocks;  // [B]
  std::byte* k;         // [chunk / 16][k tiles][kv terms][16 tokens][32] bf16
  std::byte* values;    // [kv terms][chunk / 128][d tiles][4][16 dims][32 tokens] bf16
  float* scores;        // [2 slots][4][16 * kv terms tokens][16 columns]
  std::byte* weights;   // [weight terms][block / 32][4][16 pairs][16 columns][2] bf16
  std::byte* zero_row;  // for tokens that the task does not have
  std::size_t bytes;

  PrefillScratch(const AttendParams& params, std::byte* base) noexcept : bytes(0) {
    const auto num_blocks = static_cast<std::size_t>(blocks_a_pass(params));
    const auto k_tiles = static_cast<std::size_t>(round_tiles(params.head_dim, 32));
    const auto d_tiles = 2 * static_cast<std::size_t>(round_tiles(params.v_head_dim, 32));
    const auto terms = static_cast<std::size_t>(query_terms(params));
    const auto kv_terms = static_cast<std::size_t>(kv_terms_of(params));
    queries = take(base, num_blocks * kColumnTiles * terms * k_tiles * kTileBytes);
    sums = reinterpret_cast<float*>(take(base, num_blocks * d_tiles * kSlotFloats * 4));
    blocks = reinterpret_cast<ColumnBlock*>(take(base, num_blocks * sizeof(ColumnBlock)));
    k = take(base, kChunk / kTileRows * kv_terms * k_tiles * kTileBytes);
    values = take(base, kv_terms * kChunk / kGroupTokens * d_tiles * kTileBytes);
    scores = reinterpret_cast<float*>(take(base, 2 * kv_terms * kSlotFloats * 4));
    weights = take(base, is_exact(params) ? kSplitTerms * kSplitTermBytes : kWeightTermBytes);
    zero_row = take(base, std::max(k_tiles, d_tiles / 2) * kTileRowBytes);
  }

 private:
  std::byte* take(std::byte* base, std::size_t count) noexcept {
    std::byte* piece = base == nullptr ? nullptr : base + bytes;
    bytes += (count + 63) / 64 * 64;
    return piece;
  }
};

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
