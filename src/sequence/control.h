// The inside of Sequence: its page tables, one for each layer group, and the two-phase reservation that steps build on.
//
// A sequence in a step goes through reserve -> commit or roll_back:
//
//   reserve    takes every page that the new tokens of all sequences need with one pool call, or changes nothing.
//              Page tables then hold the new pages; a shared last page has been replaced by a copy.
//   commit     counts the first accepted[i] new tokens as held, gives the other pages back, slides windows.
//   roll_back  puts every page table back exactly as it was.
//
// In between a sequence is busy: close, fork, append and truncate answer kBusy, and a dropped Sequence is closed by the
// end of the step.
#pragma once

#include <atomic>
#include <boost/container/small_vector.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "pagedkv/page_pool.h"
#include "pagedkv/result.h"
#include "pagedkv/sequence.h"
#include "pagedkv/types.h"
#include "pool/prefix_chain.h"

namespace pagedkv {

struct RetentionRange;

namespace sequence {

/// The page table of one layer group, in token order, and what a reservation changed in it.
struct PageTable {
  boost::container::small_vector<PageId, 12> pages;  ///< kNullPage where a window released the page.
  std::uint32_t num_released = 0;                    ///< Entries up to here were visited by the window.
  std::uint64_t window = 0;                          ///< Last one slid to by the caller; 0 = none.
  std::uint32_t num_before = 0;                      ///< In a step: entries before the reservation.
  bool may_copy = false;                             ///< A page was counted for a copy of the last one.
  PageId replaced = kNullPage;                       ///< In a step: the shared page that the last entry is a copy of.
  PrefixChain chain;                                 ///< How far it is published; moved by cache/.
};

/// Copies the first `num_tokens` tokens of a page to another, of all layers of the page. Called without locks.
class PageCopier {
 public:
  virtual ~PageCopier() = default;
  virtual void copy(std::byte* to, const std::byte* from, std::uint32_t num_tokens) const noexcept = 0;
};

/// Told of every page that a sequence is about to get, before anything is written to it. Called without locks.
class PageCleaner {
 public:
  virtual ~PageCleaner() = default;
  virtual void clean(PageId page, const Sequence::Control& taker) noexcept = 0;
};

/// One sequence of a reservation.
struct ReserveItem {
  Sequence::Control* control = nullptr;
  std::uint32_t num_new_tokens = 0;    ///< At least 1.
  std::span<const Token> tokens = {};  ///< Ids of the new tokens, or empty if unknown or known already.
};

}  // namespace sequence

/// Lives in the store's pool of nodes. Owned by its Sequence, and by the step that it is in: the last one frees it.
struct PAGEDKV_LOCAL Sequence::Control {
  explicit Control(std::shared_ptr<SequenceStore::Impl> owner) noexcept : store(std::move(owner)) {}

  std::shared_ptr<SequenceStore::Impl> store;                     ///< The store (and the pool) that it is of.
  boost::container::small_vector<sequence::PageTable, 1> tables;  ///< [num_groups], at least one.
  std::uint64_t num_tokens = 0;                                   ///< Held; without those of a step.
  std::uint64_t num_new_tokens = 0;                               ///< In a step: reserved on top.
  std::uint64_t cached_tokens = 0;                                ///< Found in the prefix cache by open.
  std::vector<Token> token_ids;  ///< Of tokens 0 .. as far as known; may go beyond num_tokens (a prompt).
  /// How long its published pages stay, as `open` was told, or null. Shared by forks.
  std::shared_ptr<const std::vector<RetentionRange>> retention;
  std::uint64_t num_ids_before = 0;  ///< In a step: ids known before the reservation.

  /// Page table of a layer group; in a step it holds the reserved pages.
  [[nodiscard]] std::span<const PageId> pages(std::size_t group = 0) const noexcept {
    return {tables[group].pages.data(), tables[group].pages.size()};
  }
  [[nodiscard]] bool is_busy() const noexcept { return (state.load(std::memory_order_acquire) & kBusy) != 0; }

  // Who still needs the control block. A Sequence may be dropped by one thread while another ends its step.
  static constexpr std::uint32_t kBusy = 1;      ///< In a step.
  static constexpr std::uint32_t kOrphaned = 2;  ///< Its Sequence was dropped while it was in a step.
  std::atomic<std::uint32_t> state{0};
};

namespace sequence {

/// Reserves room for the new tokens of all items, or changes nothing. On success every item is busy until `commit` or
/// `roll_back`.
///
/// Errors: kOutOfPages, kOutOfMemory, kOsError; kClosed, kBusy (a sequence closed, or in another step);
///         kInvalidArgument  no items, null, of another store, listed twice, no new tokens, a length above
///                           kMaxSequenceTokens, ids of the wrong count or other than those known
/// Cost:   one pool call; O(items + new pages); copies pages that are shared and written.
Result<void> reserve(SequenceStore::Impl& store, std::span<const ReserveItem> items) noexcept;

/// Pages that `reserve` would take, copies on write included. Errors: as `reserve`, but kOutOfPages.
Result<std::uint64_t> count_pages(const SequenceStore::Impl& store, std::span<const ReserveItem> items) noexcept;

/// What the tokens of a reservation went through before it ends: it says which pages windows still need.
enum class NewTokens : std::uint8_t {
  kAttended,  ///< Written and attended: what the token after them sees stays.
  kToCome,    ///< Neither: what the first of them sees stays.
};

/// Ends a reservation: the first `accepted` (at most num_new_tokens) tokens are held from now on, pages of the others
/// are released. Frees the control if its Sequence was dropped: do not touch it afterwards.
void commit(Sequence::Control& control, std::uint64_t accepted, NewTokens tokens = NewTokens::kAttended) noexcept;
/// Ends a reservation: all is as it was before. Frees the control if its Sequence was dropped.
inline void roll_back(Sequence::Control& control) noexcept { commit(control, 0); }

/// Pages that `num_new_tokens` more tokens of one sequence would take, a copy on write included, which each table
/// notes.
[[nodiscard]] std::uint64_t pages_for(const SequenceStore::Impl& store, Sequence::Control& control,
                                      std::uint64_t num_new_tokens) noexcept;

/// Releases the pages of a table that lie wholly before the last `window` of the first `num_tokens` tokens and behind
/// those of the sinks. Returns how many.
std::uint64_t slide(Sequence::Control& control, PageTable& table, std::uint64_t num_tokens, std::uint64_t window,
                    std::uint64_t sink_tokens) noexcept;

/// Releases all pages, tail first, and frees the control of a sequence that is not in a step.
void destroy(Sequence::Control& control) noexcept;

/// Opens an empty sequence. Errors: kOutOfMemory
Result<Sequence> open(const std::shared_ptr<SequenceStore::Impl>& store) noexcept;

}  // namespace sequence
}  // namespace pagedkv
