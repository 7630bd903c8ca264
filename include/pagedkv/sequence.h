// Sequence: one growing token stream and its page table.
//
// Layer: sequence. Made by a SequenceStore (storage alone) or by KvCache::open.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "pagedkv/export.h"
#include "pagedkv/page_pool.h"
#include "pagedkv/result.h"
#include "pagedkv/types.h"

namespace pagedkv {

/// Layers that see the same keys and share a page table. A page holds `page_size` tokens of all layers of one group, so
/// groups that share a pool need equal page bytes.
struct LayerGroup {
  /// Keys to the left of a token that it sees besides its own; -1 = all. Pages behind the window are released as the
  /// sequence advances: by a step when it commits, by `append` when the next one comes.
  std::int32_t window_left = -1;
  std::uint32_t sink_tokens = 0;  ///< First tokens whose pages a window keeps.
};
inline constexpr std::size_t kMaxLayerGroups = 64;

/// A handle that owns its page references; dropping it closes the sequence (in a step: when the step ends). It keeps
/// the pool alive.
///
/// Threads: one at a time for each sequence; different sequences at once.
class PAGEDKV_API Sequence {
 public:
  Sequence() noexcept = default;  ///< A closed sequence.
  Sequence(Sequence&&) noexcept;
  Sequence& operator=(Sequence&&) noexcept;
  ~Sequence();

  /// Makes room for `num_tokens` more tokens and counts them as held, or changes nothing.
  ///
  /// For engines that write with kernels of their own; with a KvCache use a Step. A last page shared with a fork is
  /// copied first. Groups with windows give back what none of the new tokens sees; what they see stays, and their own
  /// pages.
  ///
  /// Errors: kOutOfPages, kOutOfMemory, kOsError; kClosed, kBusy (in a step); kInvalidArgument (zero tokens, or more
  ///         than kMaxSequenceTokens in all)
  /// Cost:   at most one pool call.
  Result<void> append(std::uint32_t num_tokens) noexcept;

  /// Forgets all but the first `num_tokens` tokens and releases the pages that then hold none.
  ///
  /// Errors: kInvalidArgument (longer than the sequence, or inside what a window released), kClosed, kBusy
  Result<void> truncate(std::uint64_t num_tokens) noexcept;

  /// Releases the pages of a layer group that lie wholly behind the last `window` tokens, but for the pages of the
  /// first `sink_tokens`; their entries become kNullPage. Groups with a window of their own do so by themselves.
  ///
  /// Errors: kInvalidArgument (no such group, a window as wide as the sequence or wider), kClosed, kBusy
  /// Result: number of pages released
  Result<std::uint64_t> slide(std::uint64_t window, std::uint64_t sink_tokens = 0, std::size_t group = 0) noexcept;

  /// A second sequence with the same tokens that shares all pages; whoever writes a shared page first copies it.
  ///
  /// Errors: kOutOfMemory, kClosed, kBusy
  /// Cost:   O(pages).
  [[nodiscard]] Result<Sequence> fork() noexcept;

  /// Releases all pages, tail first. Closing twice is harmless. In a step: kBusy, nothing changed.
  Result<void> close() noexcept;

  [[nodiscard]] bool is_open() const noexcept;
  [[nodiscard]] std::uint64_t num_tokens() const noexcept;     ///< Tokens held (0 if closed).
  [[nodiscard]] std::uint64_t cached_tokens() const noexcept;  ///< Of those, found in the prefix cache when opened.
  [[nodiscard]] std::uint32_t page_size() const noexcept;
  [[nodiscard]] std::size_t num_groups() const noexcept;  ///< Layer groups (0 if closed).
  /// The page table of a layer group in token order, without copying; valid until the next call that changes the
  /// sequence. Entries released behind a window are kNullPage. Empty if there is no such group.
  [[nodiscard]] std::span<const PageId> pages(std::size_t group = 0) const noexcept;
  /// Ids of the tokens, as far as the caller gave them (open, StepItem::tokens). Valid until the next change.
  [[nodiscard]] std::span<const Token> tokens() const noexcept;
  /// Pages that `append(num_tokens)` would take now, a copy on write included; in a step beyond those that it holds.
  [[nodiscard]] std::uint64_t pages_needed(std::uint32_t num_tokens) const noexcept;

  struct Control;  ///< Defined in src/sequence; shared with the rooms above.
  [[nodiscard]] Control* control() const noexcept { return control_; }
  explicit Sequence(Control* control) noexcept : control_(control) {}

 private:
  Control* control_ = nullptr;
};

/// Opens sequences over a pool: control blocks come from one pool of nodes, page tables grow in place.
///
/// Threads: any.
class PAGEDKV_API SequenceStore {
 public:
  /// Without `groups` there is one, and it sees all keys.
  ///
  /// Errors: kInvalidArgument (page_size outside 1..256, a bad group), kOutOfMemory, kClosed (pool moved from)
  static Result<SequenceStore> create(PagePool& pool, std::uint32_t page_size,
                                      std::span<const LayerGroup> groups = {}) noexcept;
  /// Errors: kOutOfMemory
  Result<Sequence> open() noexcept;
  [[nodiscard]] std::uint64_t open_sequences() const noexcept;

  SequenceStore(SequenceStore&&) noexcept;
  SequenceStore& operator=(SequenceStore&&) noexcept;
  ~SequenceStore();

  struct Impl;
  [[nodiscard]] const std::shared_ptr<Impl>& impl() const noexcept { return impl_; }

 private:
  explicit SequenceStore(std::shared_ptr<Impl>) noexcept;
  std::shared_ptr<Impl> impl_;
};

}  // namespace pagedkv
