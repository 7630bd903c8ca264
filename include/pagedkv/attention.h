// Paged attention on CPUs: plan once a step, run once a layer, over anybody's pages.
//
// Layer: attention. Knows nothing of pools or sequences.
// See docs/KERNELS.md for the algorithms and docs/NUMERICS.md for the error bounds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>

#include "pagedkv/export.h"
#include "pagedkv/result.h"
#include "pagedkv/types.h"

namespace pagedkv {

/// What a layer computes; the same for all sequences of a batch. Plain data.
///
/// For query row i at position p of its sequence and key j, with s = sm_scale * (q_i . k_j):
/// logit = soft_cap(s) + alibi_slope[head] * (j - p) + mask(i, j), where soft_cap(s) = cap * tanh(s / cap);
/// j is visible if (not causal or j <= p) and (window_left < 0 or j >= p - window_left or j < sink_tokens) and the mask
/// lets it.
struct AttentionVariant {
  float sm_scale = 0;             ///< Multiplies q.k. 0 means 1 / sqrt(head_dim). Must be finite.
  bool causal = true;             ///< A query sees keys up to its own position.
  std::int32_t window_left = -1;  ///< Keys to the left of a query that it sees besides its own; -1 = all.
  std::uint32_t sink_tokens = 0;  ///< First tokens that every query sees beside its window (StreamingLLM).
  float logits_soft_cap =
      0;  ///< cap * tanh(x / cap) on scaled logits; 0 = off, else 2^-126 to 1e38, above sm_scale / 1e38.
  std::span<const float> sinks = {};         ///< [num_q_heads] learned logits that join the softmax without a value.
  std::span<const float> alibi_slopes = {};  ///< [num_q_heads].
  /// f16 pages: K, V, queries and weights may be rounded to bf16 for the matrix units, which is several times as fast;
  /// off, f16 is computed at f32 precision. Only "amx" and "avx512_bf16" do so, for sequences that bring more than 16
  /// query rows times query heads of a kv head (so too parts shared by `cascade`); all else is as without. Bound:
  /// docs/NUMERICS.md.
  bool f16_as_bf16 = false;
};

/// Shape and arithmetic of one attention layer. Spans in `variant` are copied by the plan.
struct AttentionConfig {
  std::uint32_t num_q_heads = 0;   ///< A multiple of `num_kv_heads`.
  std::uint32_t num_kv_heads = 0;  ///< 1 = MQA, fewer than query heads = GQA, equal = MHA.
  std::uint32_t head_dim = 0;      ///< Elements of a K (and Q) row; 1..1024.
  std::uint32_t v_head_dim = 0;    ///< Elements of a V (and output) row; 1..1024; 0 means head_dim.
  std::uint32_t page_size = 16;    ///< Tokens a page; 1..256.
  DType kv_dtype = DType::bf16;    ///< Format of the pages.
  AttentionVariant variant = {};
  std::string_view target = {};  ///< Kernel target by name (cpu.h); empty = the active one.
  /// Sequences of a batch whose leading pages are the same ids, wherever they stand in it, read them once, for all of
  /// them, in parts of 1024 or 2048 tokens; those among them that go on in common do so for what follows, level by
  /// level. Beside a window, those share a part whose rows all see the whole of it, but for what their masks hide. Only
  /// by sequences of at most 16 query rows. The shared parts run as matrix work, on "amx" and "avx512_bf16" with bf16
  /// weights: still within the bound of docs/NUMERICS.md, but the last bits of a row then depend on which other
  /// sequences share its pages.
  bool cascade = false;
};

enum class MaskKind : std::uint8_t {
  kNone = 0,
  kBool = 1,      ///< One byte an entry; non-zero = visible.
  kAdditive = 2,  ///< One f32 an entry, added to the logit; -inf = invisible.
  kBits = 3,      ///< One bit an entry, little endian in bytes; 1 = visible.
};

/// An explicit mask over (query row, key) of each sequence, on top of causality and window. Borrowed until the plan
/// is destroyed.
struct AttentionMask {
  MaskKind kind = MaskKind::kNone;
  std::span<const std::byte> bytes = {};
  /// [B] entry index (bit index for kBits) at which sequence i's [heads or 1][q_len][row_stride] entries begin.
  std::span<const std::int64_t> offsets = {};
  /// [B] entries from one query row to the next; empty = kv length of the sequence.
  std::span<const std::int64_t> row_strides = {};
  /// [B] entries from one query head to the next; empty or 0 = one mask for all heads.
  std::span<const std::int64_t> head_strides = {};
};

/// A ragged batch of B sequences: mixed prefill and decode. Borrowed until the plan has been made, except the mask.
///
/// Rows of q and out are the query rows of all sequences one after another; sequence i owns rows
/// qo_indptr[i] .. qo_indptr[i+1]-1 (none is allowed). Its page table comes in one of two forms:
///
///   CSR (FlashInfer)        kv_indptr [B+1], kv_indices [kv_indptr[B]], kv_last_page_len [B]
///                           length = page_size * (pages - 1) + last_page_len, or 0 without pages
///   padded (vLLM)           block_table [B][block_table_stride], seq_lens [B]; length = seq_lens[i]
///
/// Lengths are at most kMaxSequenceTokens (2^30), and *after* append: the new tokens' K and V are in the pages already.
/// Query row r of sequence i has the position q_start[i] + r, where q_start[i] is length - q_len unless it is given.
struct AttentionBatch {
  std::span<const std::int32_t> qo_indptr = {};   ///< [B+1], from 0, not decreasing; rows * kv heads <= kMaxHeadRows.
  std::span<const std::int32_t> kv_indptr = {};   ///< [B+1], from 0, not decreasing.
  std::span<const std::int32_t> kv_indices = {};  ///< [kv_indptr[B]] page ids in token order.
  std::span<const std::int32_t> kv_last_page_len = {};  ///< [B] 1..page_size; 0 for a sequence without pages.
  std::span<const std::int32_t> block_table = {};       ///< [B][block_table_stride]; entries past the end unread.
  std::int64_t block_table_stride = 0;
  std::span<const std::int32_t> seq_lens = {};  ///< [B].
  std::span<const std::int32_t> q_start = {};   ///< [B] position of the first query row, 0..2^30; or empty.
  AttentionMask mask = {};
};

/// One layer's pages, as they lie. Strides in bytes, multiples of the element size; elements of a row are contiguous.
/// Row (page p, kv head h, token t) of K begins at k + p * k_page_stride + h * k_head_stride + t * k_token_stride.
/// Fastest where k is at an OS page and a head's tokens of a page lie side by side (docs/KERNELS.md).
struct KvView {
  const void* k = nullptr;
  const void* v = nullptr;
  std::int64_t k_page_stride = 0, k_head_stride = 0, k_token_stride = 0;
  std::int64_t v_page_stride = 0, v_head_stride = 0, v_token_stride = 0;
  std::int64_t num_pages = 0;  ///< Page ids of a batch must be below; checked by `run`.
};

/// A schedule for one batch: which (sequence, kv head, query rows, key range) each task computes.
///
/// Long sequences are split along the keys at positions that depend on the sequence alone, and the parts are merged in
/// a fixed order, so that one long sequence keeps all threads busy and the result is bitwise the same for any number
/// of threads, any other sequences in the batch and any placement of pages.
class PAGEDKV_API AttentionPlan {
 public:
  /// Bytes of workspace that `create` needs for this batch, exactly.
  ///
  /// Errors: as `create`
  /// Cost:   as `create`
  static Result<std::size_t> workspace_bytes(const AttentionConfig& config, const AttentionBatch& batch) noexcept;

  /// Checks the batch and builds its schedule.
  ///
  /// With `workspace` (64-byte aligned, at least `workspace_bytes`, borrowed while the plan lives) the partial states
  /// live there; without, the plan allocates them.
  ///
  /// Errors:  kInvalidArgument  a shape out of range, spans of the wrong size, indices not monotonic, negative ids
  ///          kUnsupported      no such target or format here
  ///          kOutOfMemory      workspace or bookkeeping could not be had
  /// Cost:    O(B + rows + pages + tasks); allocates. Call it outside the layer loop.
  /// Threads: any thread; shares nothing with other plans.
  static Result<AttentionPlan> create(const AttentionConfig& config, const AttentionBatch& batch,
                                      std::span<std::byte> workspace = {}) noexcept;

  /// Plans the next step of the same sequences: as many query rows each, longer keys. Results are those of a new plan.
  ///
  /// Requires: the pages that the plan knows are still the leading pages of their sequences (ids not compared)
  /// Errors:   kInvalidArgument  other sequences, rows or kind of mask; fewer pages; a workspace of the caller that has
  ///                             become too small; or as `create`
  ///           kClosed           the plan was moved from
  ///           kOutOfMemory
  ///           After any of them the plan is as it was.
  /// Cost:     O(B + tasks), a look at each query row and page id; copies only new pages, reuses the plan's memory.
  /// Threads:  not while a run is under way.
  Result<void> extend(const AttentionBatch& batch) noexcept;

  /// Computes out = softmax(logits) V for every query row.
  ///
  /// A row that sees no key gives zeros and lse = -inf, never NaN; with a sink, zeros and lse = sink.
  ///
  /// Shape:   q [rows][num_q_heads][head_dim], out [rows][num_q_heads][v_head_dim], any dtype each;
  ///          lse [rows][num_q_heads], natural logarithm, or empty;
  ///          sinks [num_q_heads] of this layer in place of AttentionVariant::sinks, or empty
  /// Errors:  kInvalidArgument  a span of the wrong size, a page id not below pages.num_pages, bad strides or sinks
  ///          kCancelled        the caller's task group was cancelled; out and lse are unspecified
  ///          kClosed           the plan was moved from
  ///          kOutOfMemory      oneTBB had no memory for its tasks; out and lse are unspecified
  /// Result:  bitwise equal for any thread count; across targets within the bound of docs/NUMERICS.md
  /// Cost:    decode reads each visible page once a kv head, prefill once a task of 256 to 1024 (row, head) pairs.
  ///          Allocates nothing itself, takes no lock; oneTBB may allocate for its tasks.
  /// Threads: runs in the caller's tbb::task_arena; one run of a plan at a time, several plans at once.
  /// Source:  online softmax, arXiv:1805.02867; mergeable states, arXiv:2501.01005; paging, arXiv:2309.06180
  Result<void> run(const KvView& pages, ConstTensor q, Tensor out, std::span<float> lse = {},
                   std::span<const float> sinks = {}) const noexcept;

  [[nodiscard]] std::size_t num_rows() const noexcept;    ///< Query rows of the batch.
  [[nodiscard]] const char* target() const noexcept;      ///< Name of the kernel target in use.
  [[nodiscard]] std::uint64_t kv_bytes() const noexcept;  ///< Bytes of visible K and V that one run reads, once a head.
  /// The same over these pages: values that lie inside their keys (MLA) are read with them.
  [[nodiscard]] std::uint64_t kv_bytes(const KvView& pages) const noexcept;
  [[nodiscard]] double flops() const noexcept;  ///< 2 * (head_dim + v_head_dim) a visible (query head, key).

  AttentionPlan(AttentionPlan&&) noexcept;
  AttentionPlan& operator=(AttentionPlan&&) noexcept;
  ~AttentionPlan();

 private:
  struct Impl;
  explicit AttentionPlan(std::unique_ptr<Impl>) noexcept;
  std::unique_ptr<Impl> impl_;
};

/// Merges two attention states over disjoint keys into the first: the state of their union.
///
/// Shape:  out_a, out_b [rows][dim] f32; lse_a, lse_b [rows] natural logarithm; rows = lse_a.size()
/// Errors: kInvalidArgument  sizes that do not match
/// Source: FlashInfer's attention states, arXiv:2501.01005; empty states (lse = -inf) are neutral
PAGEDKV_API Result<void> merge_states(std::span<float> out_a, std::span<float> lse_a, std::span<const float> out_b,
                                      std::span<const float> lse_b) noexcept;

/// Pages that may be written, as they lie; and read, since each is a KvView.
struct KvWriteView {
  void* k = nullptr;
  void* v = nullptr;
  std::int64_t k_page_stride = 0, k_head_stride = 0, k_token_stride = 0;  ///< Bytes, as in KvView.
  std::int64_t v_page_stride = 0, v_head_stride = 0, v_token_stride = 0;
  std::int64_t num_pages = 0;

  operator KvView() const noexcept {  // NOLINT(google-explicit-constructor): as T* is a const T*
    return {k,        v, k_page_stride, k_head_stride, k_token_stride, v_page_stride, v_head_stride, v_token_stride,
            num_pages};
  }
};

/// Writes rows of K and V into pages, converting to their format; with non-temporal stores where they pay. Token i goes
/// to slot `slots[i]` = page * page_size + offset in the page.
///
/// Shape:   k [slots][num_kv_heads][head_dim], v [slots][num_kv_heads][v_head_dim]; negative slots are skipped
/// Errors:  kInvalidArgument  sizes that do not match, or a slot outside the pages; nothing was written
///          kUnsupported      no such target here; nothing was written
///          kCancelled        the caller's task group was cancelled; some slots may have been written, others not
///          kOutOfMemory      oneTBB had no memory for its tasks; likewise
/// Cost:    one pass; parallel in the caller's arena when there is enough to write. Allocates nothing itself.
/// Threads: slots must differ, within a call as between concurrent ones.
PAGEDKV_API Result<void> write_kv(const AttentionConfig& config, const KvWriteView& pages,
                                  std::span<const std::int64_t> slots, ConstTensor k, ConstTensor v) noexcept;

}  // namespace pagedkv
