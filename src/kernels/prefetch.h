// Prefetch of the K and V rows that come next, in an order that keeps memory busy while kernels compute.
//
// Layer: kernels. Measured on a Sapphire Rapids class Xeon (docs/KERNELS.md): what limits a core is how many lines it
// waits for at once. A software prefetch holds one of 16 line buffers until its line is there; the hardware's streams
// into L2 hold none, but a stream needs requests for rising lines of one OS page, and time. So prefetches go round
// several OS pages, four lines each: as many streams run ahead of them, and most prefetches find their line in L2. Not
// so on Zen 5, which wants one line after the other (cpu/prefetch_order.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/prefetch_order.h"

namespace pagedkv::kernels {

inline constexpr std::ptrdiff_t kLineBytes = 64;
inline constexpr std::ptrdiff_t kOsPageBytes = 4096;

/// Rows that will be read soon, cut where an OS page ends. Plain data; adds what fits, since all of it is a hint.
class RowsAhead {
 public:
  /// Bytes of one OS page, in whole lines, and perhaps a sliver of its neighbours: in pools that an allocator put at an
  /// odd address each page has a few lines in the next OS page, which by themselves would take the turns of a whole
  /// one.
  struct Piece {
    const std::byte* begin;
    const std::byte* end;
  };

  void clear() noexcept { num_pieces_ = 0; }

  /// Rows may have been left out.
  bool is_full() const noexcept { return num_pieces_ == kMaxPieces; }

  /// `bytes` that lie side by side.
  void add(const std::byte* row, std::int64_t bytes) noexcept {
    const std::byte* begin = row - misalignment(row, kLineBytes);
    const std::byte* const end = row + bytes + padding(row + bytes);
    if (num_pieces_ > 0) {  // rows that are not whole lines may share one
      const Piece& last = pieces_[num_pieces_ - 1];
      const bool overlaps = begin >= last.begin && begin < last.end;
      if (overlaps && os_page(last.begin) == os_page(begin)) begin = last.end;
    }
    while (begin < end) {
      Piece& last = pieces_[num_pieces_ > 0 ? num_pieces_ - 1 : 0];
      const bool follows = num_pieces_ > 0 && last.end == begin && os_page(last.begin) == os_page(begin);
      const std::byte* stop = begin - misalignment(begin, kOsPageBytes) + kOsPageBytes;
      if (stop - begin < kSliverBytes && !follows) stop += kOsPageBytes;
      if (end - stop < kSliverBytes) stop = end;
      if (follows) {
        last.end = stop;
      } else if (num_pieces_ < kMaxPieces) {
        pieces_[num_pieces_++] = {begin, stop};
      }
      begin = stop;
    }
  }

  static constexpr int kMaxPieces = 256;

  const Piece* begin() const noexcept { return pieces_; }
  const Piece* end() const noexcept { return pieces_ + num_pieces_; }

 private:
  static constexpr std::ptrdiff_t kSliverBytes = 256;

  static std::uintptr_t os_page(const std::byte* at) noexcept {
    return reinterpret_cast<std::uintptr_t>(at) / std::uintptr_t{kOsPageBytes};
  }
  static std::ptrdiff_t misalignment(const std::byte* at, std::ptrdiff_t alignment) noexcept {
    return static_cast<std::ptrdiff_t>(reinterpret_cast<std::uintptr_t>(at) % static_cast<std::uintptr_t>(alignment));
  }

  // Bytes up to the end of the line.
  static std::ptrdiff_t padding(const std::byte* at) noexcept {
    return (kLineBytes - misalignment(at, kLineBytes)) % kLineBytes;
  }

  int num_pieces_ = 0;
  Piece pieces_[kMaxPieces];
};

/// What a prefetcher's steps stand beside: little but loads, whose misses are many at a time by themselves, or less.
enum class Work { kMixed, kLoads };

/// Asks for a line.
struct PrefetchToL2 {
  [[gnu::always_inline]] static void line(const std::byte* at) noexcept {
    __builtin_prefetch(at, 0, 2);  // not L1: line buffers must be free for the loads at hand
  }
};

/// Hands out the lines of some rows, a few at each step of the work at hand: in bursts they would fill the buffers that
/// this work needs. `kStreams` OS pages are read side by side, a round.
///
/// The first lines of a round's pages are asked for a round ahead, all at once: a prefetch ends only when the address
/// is translated, and what follows waits (where a virtual machine's host maps pages of 4 KiB, 100 ns and more a page).
/// Side by side the page walks overlap. No more than a round ahead: each of these lines begins a stream of the
/// hardware, which follows 32 pages; beyond, streams are lost before they are used.
///
/// One that adapts to the CPU may ask page after page instead: a round is one page then, and two lines are asked for at
/// once (the second may be one behind the rows); of work that is little but loads, no more than where the hardware's
/// stream begins.
template <int kStreams, class Prefetch = PrefetchToL2, bool kAdapts = false>
class StreamPrefetcher {
  static_assert(RowsAhead::kMaxPieces % kStreams == 0);

 public:
  explicit StreamPrefetcher(cpu::PrefetchOrder order = cpu::PrefetchOrder::kPagesInTurn) noexcept
      : page_after_page_(kAdapts && order == cpu::PrefetchOrder::kPageAfterPage) {}

  /// All lines of `rows` over about `num_steps` calls of step(), and the first lines of what comes after them, if that
  /// is known. Both stay as they are meanwhile.
  void start(const RowsAhead& rows, const RowsAhead* after, std::size_t num_steps, Work work = Work::kMixed) noexcept {
    constexpr std::ptrdiff_t kAll = std::numeric_limits<std::ptrdiff_t>::max();
    const std::ptrdiff_t reach = is_page_after_page() && work == Work::kLoads ? kStreamBegin : kAll;
    std::ptrdiff_t num_groups = 0;  // shorter pieces of a round take as many turns as the longest
    Round* round = rounds_;
    for (const RowsAhead::Piece* piece = rows.begin(); piece != rows.end(); ++round) {
      *round = round_of(piece, rows);
      for (; piece != round->end; ++piece) round->bytes = std::max(round->bytes, piece->end - piece->begin);
      round->bytes = std::min(round->bytes, reach);
      num_groups += (round->end - round->begin) * ((round->bytes + group_bytes() - 1) / group_bytes());
    }
    *round = after == nullptr ? Round{nullptr, nullptr, 0} : round_of(after->begin(), *after);
    pace_ = num_groups * kOne / static_cast<std::ptrdiff_t>(num_steps + 1) + 1;
    credit_ = 0;
    begin_round(rounds_);
  }

  [[gnu::always_inline]] void step() noexcept {
    for (credit_ += pace_; credit_ >= kOne; credit_ -= kOne) emit();
  }

 private:
  static constexpr std::ptrdiff_t kGroupBytes = 256;  // of one page before the next one, if pages are read in turn
  static constexpr std::ptrdiff_t kPairBytes = 2 * kLineBytes;  // asked for at once, if they are read one after another
  static constexpr std::ptrdiff_t kStreamBegin = 256;           // of each page, where loads keep memory busy
  static constexpr std::ptrdiff_t kOne = 1 << 16;               // a group, in the units of `pace_` and `credit_`

  // Pages that are read side by side.
  struct Round {
    const RowsAhead::Piece* begin;
    const RowsAhead::Piece* end;
    std::ptrdiff_t bytes;  // of the longest; 0 behind the last round
  };
  Round round_of(const RowsAhead::Piece* first, const RowsAhead& rows) const noexcept {
    return {first, rows.end() - first > streams() ? first + streams() : rows.end(), 0};
  }

  [[gnu::always_inline]] bool is_page_after_page() const noexcept { return kAdapts && page_after_page_; }
  int streams() const noexcept { return is_page_after_page() ? 1 : kStreams; }
  std::ptrdiff_t group_bytes() const noexcept { return is_page_after_page() ? kPairBytes : kGroupBytes; }

  [[gnu::always_inline]] void emit() noexcept {
    if (is_page_after_page()) {
      Prefetch::line(line_);
      Prefetch::line(line_ + kLineBytes);
      line_ += kPairBytes;
      if (line_ >= line_end_) [[unlikely]]
        begin_round(round_ + 1);
      return;
    }
    const std::byte* const line = piece_->begin + offset_;
    const std::ptrdiff_t bytes = piece_->end - line;
    if (bytes >= kGroupBytes) [[likely]] {
      Prefetch::line(line);
      Prefetch::line(line + kLineBytes);
      Prefetch::line(line + 2 * kLineBytes);
      Prefetch::line(line + 3 * kLineBytes);
    } else {
      for (std::ptrdiff_t at = 0; at < bytes; at += kLineBytes) Prefetch::line(line + at);
    }
    if (++piece_ != round_->end) return;
    piece_ = round_->begin, offset_ += kGroupBytes;
    if (offset_ >= round_->bytes) begin_round(round_ + 1);
  }

  void begin_round(const Round* round) noexcept {
    round_ = round, piece_ = round->begin, offset_ = 0;
    if (round->bytes == 0) {  // behind the last one: no step calls emit any more
      pace_ = credit_ = 0;
      return;
    }
    if (is_page_after_page()) line_ = piece_->begin, line_end_ = piece_->begin + round->bytes;
    for (const RowsAhead::Piece* next = round[1].begin; next != round[1].end; ++next) {
      Prefetch::line(next->begin);
    }
  }

  const RowsAhead::Piece* piece_ = nullptr;  // next in the round
  const Round* round_ = rounds_;
  std::ptrdiff_t offset_ = 0;             // bytes from the begin of each piece
  std::ptrdiff_t pace_ = 0, credit_ = 0;  // groups a step, and groups owed
  Round rounds_[std::size_t{RowsAhead::kMaxPieces} / (kAdapts ? 1 : kStreams) + 1];
  bool page_after_page_;
  const std::byte* line_ = nullptr;  // page after page: the next line, and where its page ends
  const std::byte* line_end_ = nullptr;
};

}  // namespace pagedkv::kernels
