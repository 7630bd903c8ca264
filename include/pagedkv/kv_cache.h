// KvCache and Step: the facade most servers need. One pool, many sequences, steps that happen whole or not at all.
//
// Layer: cache. Joins the storage and the compute column.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>

#include "pagedkv/attention.h"
#include "pagedkv/export.h"
#include "pagedkv/page_pool.h"
#include "pagedkv/prefix_cache.h"
#include "pagedkv/result.h"
#include "pagedkv/sequence.h"
#include "pagedkv/types.h"

namespace pagedkv {

/// What the cache must know of a model.
struct ModelShape {
  std::uint32_t num_layers = 1;   ///< 1..4096.
  std::uint32_t num_q_heads = 0;  ///< A multiple of `num_kv_heads`.
  std::uint32_t num_kv_heads = 0;
  std::uint32_t head_dim = 0;    ///< 1..1024.
  std::uint32_t v_head_dim = 0;  ///< 1..1024; 0 means head_dim.
  DType dtype = DType::bf16;     ///< Format of the pages.
};

/// Layers that see the same keys, such as the sliding ones of a model that also has full ones.
struct KvLayerGroup {
  std::span<const std::uint32_t> layers = {};  ///< Layer numbers; every layer is in one group.
  std::int32_t window_left = -1;               ///< As AttentionVariant::window_left, for these layers.
  std::uint32_t sink_tokens = 0;               ///< As AttentionVariant::sink_tokens; their pages are kept.
};

struct KvCacheOptions {
  ModelShape shape = {};
  std::uint32_t page_size = 16;      ///< Tokens a page, 1..256.
  std::uint64_t capacity_bytes = 0;  ///< One of the two; rounded down to whole pages.
  std::uint64_t capacity_pages = 0;
  std::uint64_t max_capacity_pages = 0;  ///< What `set_capacity` may raise it to; 0 = the capacity.
  std::uint64_t watermark_pages = 0;     ///< Pages that `can_admit` keeps in hand for running sequences.
  HugePages huge_pages = HugePages::kTransparent;
  /// A page that was another tenant's (another cache_salt or extra_key) is zeroed before a sequence gets it, so that
  /// not even a kernel that reads behind a sequence's end finds anything. Without a prefix cache salts are not looked
  /// at, and every page is zeroed. Not what others write into pages of the same pool. See docs/SECURITY.md.
  bool zero_pages_between_tenants = false;
  bool prefix_cache = true;        ///< Full pages of known tokens stay findable until they are needed.
  PrefixCacheOptions prefix = {};  ///< Eviction policy, events, clock.
  /// What every layer computes. Spans are copied; `sinks` may be [num_layers][num_q_heads], for each layer its own.
  /// Pages behind `window_left` are released as sequences advance, but for those of the first `sink_tokens`.
  AttentionVariant attention = {};
  /// Layers with windows of their own, with `attention.window_left` at -1 and `attention.sink_tokens` at 0; empty =
  /// all layers alike. Copied.
  std::span<const KvLayerGroup> layer_groups = {};
  /// Layers of a group that share a page; groups of more take several page tables. 0 = as many as leave at most a
  /// twentieth of the places in pages empty (CacheStats::padding_bytes_per_token says what they cost).
  std::uint32_t layers_per_page = 0;
  bool cascade = false;          ///< As AttentionConfig::cascade: a step reads pages that its sequences share once.
  std::string_view target = {};  ///< Kernel target by name; empty = the one active when the cache is created.
};

/// Options of one sequence.
struct OpenOptions {
  std::string_view cache_salt = {};                ///< Namespace of a tenant: prefixes are shared only within it.
  std::string_view extra_key = {};                 ///< Whatever else changes K and V: adapter, images.
  std::span<const RetentionRange> retention = {};  ///< How long its pages stay cached; copied. 256 at most.
};

/// One sequence of a step.
struct StepItem {
  Sequence* sequence = nullptr;
  std::uint32_t num_new_tokens = 0;  ///< At least 1.
  /// [num_new_tokens] ids of the new tokens, or empty if `open` was given them. After a step whose ids nobody gave,
  /// later ones are ignored: nothing more of the sequence is published.
  std::span<const Token> tokens = {};
};

struct CacheStats {
  PoolStats pool = {};
  std::uint64_t open_sequences = 0;
  std::uint64_t steps_begun = 0, steps_committed = 0, steps_rolled_back = 0;
  std::uint64_t tokens_committed = 0;
  std::uint64_t copied_pages = 0;  ///< Copies on write.
  /// What `open` found, and what is published. Pages and events count a page table each, tokens once.
  PrefixStats prefix = {};
  double bytes_per_token = 0;  ///< Of a full page, over all page tables.
  double padding_bytes_per_token =
      0;  ///< Of those, behind no row: alignment, and places of layer groups without a layer.
};

/// A transaction over a batch of sequences: its pages are reserved, all or none; K and V of the new tokens are
/// written and attended layer by layer; then all or a part of the new tokens is committed. Dropped without commit, it
/// leaves every sequence as it was.
///
/// Rows of q, k, v and out are the new tokens of the items in order, `num_rows()` in all.
///
/// Threads: one at a time; steps over disjoint sequences run at once.
class PAGEDKV_API Step {
 public:
  /// Writes K and V of all new tokens of one layer.
  ///
  /// Shape:  k [num_rows][num_kv_heads][head_dim], v [num_rows][num_kv_heads][v_head_dim], any dtype, converted
  /// Errors: as write_kv, and kInvalidArgument (layer), kClosed (after commit)
  /// Cost:   as write_kv; the first call of a step also looks up the slots. Allocates nothing later.
  Result<void> write(std::uint32_t layer, ConstTensor k, ConstTensor v) noexcept;

  /// Attention of all new tokens over their sequences, as KvCacheOptions::attention says. Write the layer first.
  ///
  /// Shape:  q [num_rows][num_q_heads][head_dim], out [num_rows][num_q_heads][v_head_dim],
  ///         lse [num_rows][num_q_heads] natural logarithm or empty
  /// Errors: kInvalidArgument (layer or size; the caller slid over what the layer sees), kClosed, kCancelled,
  ///         kOutOfMemory
  /// Cost:   as AttentionPlan::run; the first call of a step also makes the plan of all layers. Allocates nothing
  /// later.
  Result<void> attend(std::uint32_t layer, ConstTensor q, Tensor out, std::span<float> lse = {}) noexcept;

  /// Makes all new tokens part of their sequences. The step is over. Errors: kClosed (it was already)
  Result<void> commit() noexcept;
  /// Makes the first `accepted[i]` new tokens of item i part of its sequence and releases the rest.
  ///
  /// Errors: kInvalidArgument (sizes, or more than the item's new tokens; the step goes on), kClosed
  Result<void> commit(std::span<const std::uint32_t> accepted) noexcept;
  /// Leaves every sequence as it was before the step. Also done by the destructor.
  void rollback() noexcept;

  [[nodiscard]] std::size_t num_rows() const noexcept;
  [[nodiscard]] std::size_t num_items() const noexcept;

  Step() noexcept;  ///< A step that is over.
  Step(Step&&) noexcept;
  Step& operator=(Step&&) noexcept;  ///< Rolls the target back first.
  ~Step();

  struct Impl;
  explicit Step(std::unique_ptr<Impl>) noexcept;

 private:
  std::unique_ptr<Impl> impl_;
};

/// Thread-safe; sequences and steps keep what they need of it alive.
class PAGEDKV_API KvCache {
 public:
  /// Errors: kInvalidArgument  a shape or capacity that is zero, absurd or overflows
  ///         kUnsupported      unknown target
  ///         kOsError, kOutOfMemory
  static Result<KvCache> create(const KvCacheOptions& options) noexcept;

  /// Opens a sequence for a prompt. It already holds the longest cached prefix (`num_tokens()`), at most all tokens but
  /// the last; feed the rest through steps. Without tokens it begins empty.
  ///
  /// The prefix goes as far as one page table has all of its full pages (that of a group without a window, if there is
  /// one) and every other has those that the next token sees: of a sliding group its window and sinks. Then come the
  /// matching rows of a page that only begins as the prompt goes on, of all such pages the one that does so longest.
  ///
  /// Full pages whose tokens are known, from here or from StepItem::tokens, are published when they are committed; a
  /// page that another sequence has published with the same tokens before it takes its place. Where a window is
  /// narrower than a page, only the pages until one is released behind it.
  ///
  /// Errors: kInvalidArgument (a prompt, key or retention out of range), kOutOfMemory
  /// Cost:   below 10 ns a token; and the copy of a page of which only the first rows match
  Result<Sequence> open(std::span<const Token> tokens = {}, const OpenOptions& options = {}) noexcept;

  /// Begins a step: every page that it takes is reserved, or none and nothing changed.
  ///
  /// Errors: kOutOfPages       preempt or wait; every sequence is as it was
  ///         kInvalidArgument  no items, a null or foreign sequence, one listed twice, zero new tokens, ids that
  ///                           differ from those given before or in number from the new tokens, a sequence
  ///                           above kMaxSequenceTokens, new tokens times kv heads above kMaxHeadRows
  ///         kClosed, kBusy    a sequence closed, or in another step
  ///         kOutOfMemory, kOsError
  Result<Step> begin_step(std::span<const StepItem> items) noexcept;
  Result<Step> begin_step(std::initializer_list<StepItem> items) noexcept {
    return begin_step(std::span<const StepItem>(items.begin(), items.size()));
  }

  /// What a scheduler asks before it acts. Exact when no other thread allocates in between.
  [[nodiscard]] std::uint64_t pages_available() const noexcept;  ///< Free + evictable.
  /// Pages that a sequence of `num_tokens` holds at most, if no step adds more than `step_tokens` (0 = all at once):
  /// with windows, prompts in chunks need fewer.
  [[nodiscard]] std::uint64_t pages_for_tokens(std::uint64_t num_tokens, std::uint64_t step_tokens = 0) const noexcept;
  /// Pages that `begin_step(items)` would take, copies on write included. Errors: as begin_step, but kOutOfPages.
  Result<std::uint64_t> pages_needed(std::span<const StepItem> items) const noexcept;
  /// Whether a prompt of `prompt_tokens`, and `max_new_tokens` after it, fits now above the watermark, if no step adds
  /// more than `step_tokens` (0 = all at once).
  [[nodiscard]] bool can_admit(std::uint64_t prompt_tokens, std::uint64_t max_new_tokens = 0,
                               std::uint64_t step_tokens = 0) const noexcept;

  [[nodiscard]] CacheStats stats() const noexcept;
  [[nodiscard]] const KvCacheOptions& options() const noexcept;
  [[nodiscard]] std::uint64_t page_bytes() const noexcept;
  /// One layer's pages as a strided view, for kernels of one's own. Errors: kInvalidArgument (layer)
  Result<KvView> view(std::uint32_t layer) const noexcept;
  /// Which page table of a sequence, as Sequence::pages takes it, is of this layer. Errors: kInvalidArgument (layer)
  Result<std::size_t> page_table_of(std::uint32_t layer) const noexcept;
  [[nodiscard]] PagePool& pool() noexcept;

  /// Gives the memory of free pages back to the OS; returns the bytes given. Cached pages stay; what ended steps kept
  /// for the next ones is freed. Errors: kOsError
  Result<std::uint64_t> trim() noexcept;
  /// As PagePool::set_capacity, in pages.
  Result<void> set_capacity(std::uint64_t num_pages) noexcept;

  /// Keeps the cached prefix of `tokens` (full pages) from eviction until it is unpinned.
  ///
  /// Errors: kNotFound  nothing of it is cached
  ///         kUnsupported (no prefix cache), kInvalidArgument (a key or prompt too long), kOutOfMemory
  Result<PinId> pin(std::span<const Token> tokens, const OpenOptions& options = {}) noexcept;
  /// Errors: kNotFound (no such pin), kUnsupported (no prefix cache); nothing changed
  Result<void> unpin(PinId pin) noexcept;
  /// Makes all cached prefixes unfindable. Sequences keep their pages.
  void clear_prefix_cache() noexcept;
  /// Passes the events queued by now (PrefixCacheOptions::event_capacity) to `callback` in this thread, oldest first;
  /// returns how many. With several page tables, each publishes pages of its own.
  std::uint64_t poll_events(CacheEventCallback callback, void* user) noexcept;

  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  ~KvCache();

  struct Impl;

 private:
  explicit KvCache(std::shared_ptr<Impl>) noexcept;
  std::shared_ptr<Impl> impl_;
};

}  // namespace pagedkv
