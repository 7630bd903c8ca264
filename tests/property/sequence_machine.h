// Sequences beside a naive model: every sequence is a plain array of values, copied on fork, and nothing is shared.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "pagedkv/page_pool.h"
#include "pagedkv/sequence.h"
#include "sequence/control.h"
#include "sequence/sequence_store.h"

namespace pagedkv::testing {

/// One random operation. What `a`, `b` and `c` mean depends on the kind; any value is valid.
struct SequenceOp {
  std::uint32_t kind = 0, a = 0, b = 0, c = 0;
};

/// Applies operations to the library and to the model, and compares. Slot t of a page holds a 64-bit value, which
/// stands for K and V of a token, so that a page wrongly shared or not copied shows.
class SequenceMachine {
 public:
  static constexpr std::uint32_t kNumKinds = 8;

  SequenceMachine(std::uint64_t capacity_pages, std::uint32_t page_size, std::vector<LayerGroup> groups)
      : page_size_(page_size),
        groups_(groups.empty() ? std::vector<LayerGroup>(1) : groups),
        pool_(PagePool::create({.page_bytes = page_size * sizeof(std::uint64_t),
                                .capacity_pages = capacity_pages,
                                .huge_pages = HugePages::kNever})
                  .value()),
        store_(SequenceStore::create(pool_, page_size, groups).value()) {}

  void apply(const SequenceOp& op) {
    switch (op.kind % kNumKinds) {
      case 0: open(); break;
      case 1: append(op); break;
      case 2: fork(op); break;
      case 3: truncate(op); break;
      case 4: close(op); break;
      case 5: ASSERT_TRUE(pool_.trim()); break;
      default: step(op); break;  // twice as likely
    }
  }

  /// Compares everything: values, counts of pages, references.
  void check_all() {
    std::map<PageId, std::uint32_t> references;
    for (std::size_t i = 0; i < live_.size(); ++i) {
      check(i);
      for (std::size_t g = 0; g < groups_.size(); ++g) {
        for (const PageId page : live_[i].sequence.pages(g)) references[page] += page != kNullPage ? 1 : 0;
      }
    }
    references.erase(kNullPage);
    const PoolStats stats = pool_.stats();
    std::uint64_t num_shared = 0;
    for (const auto& [page, count] : references) {
      ASSERT_EQ(pool_.ref_count(page), count) << "page " << to_index(page);
      num_shared += count > 1 ? 1 : 0;
    }
    ASSERT_EQ(stats.used_pages, references.size());
    ASSERT_EQ(stats.shared_pages, num_shared);
    ASSERT_EQ(stats.used_pages + stats.evictable_pages + stats.free_pages, stats.capacity_pages);
    ASSERT_EQ(store_.open_sequences(), live_.size());
  }

  /// Closes all and expects an empty pool.
  void finish() {
    live_.clear();
    ASSERT_EQ(pool_.stats().used_pages, 0U);
    ASSERT_EQ(pool_.stats().shared_pages, 0U);
    ASSERT_EQ(store_.open_sequences(), 0U);
  }

 private:
  struct Live {
    Sequence sequence;
    std::vector<std::uint64_t> model;  ///< [num_tokens] value of each token
  };
  static constexpr std::size_t kMaxSequences = 12;

  void open() {
    if (live_.size() >= kMaxSequences) return;
    live_.push_back({store_.open().value(), {}});
  }

  void append(const SequenceOp& op) {
    if (live_.empty()) return;
    Live& live = live_[op.a % live_.size()];
    const std::uint32_t count = 1 + op.b % (3 * page_size_);
    const std::uint64_t needed = live.sequence.pages_needed(count);
    const std::uint64_t available = pool_.available_pages();
    const Result<void> done = live.sequence.append(count);
    ASSERT_EQ(done.has_value(), needed <= available);
    if (!done) {
      ASSERT_EQ(done.error(), Errc::kOutOfPages);
    }
    if (done) write(live, count);
    check(op.a % live_.size());
  }

  void fork(const SequenceOp& op) {
    if (live_.empty() || live_.size() >= kMaxSequences) return;
    Live& parent = live_[op.a % live_.size()];
    live_.push_back({parent.sequence.fork().value(), parent.model});
    check(live_.size() - 1);
  }

  void truncate(const SequenceOp& op) {
    if (live_.empty()) return;
    Live& live = live_[op.a % live_.size()];
    const std::uint64_t num_tokens = op.b % (live.model.size() + 2);
    const Result<void> done = live.sequence.truncate(num_tokens);
    if (num_tokens > live.model.size()) {
      ASSERT_EQ(done.error(), Errc::kInvalidArgument);
    }
    if (groups_.size() == 1 && groups_[0].window_left < 0) {
      ASSERT_EQ(done.has_value(), num_tokens <= live.model.size());
    }
    if (done) live.model.resize(num_tokens);
    check(op.a % live_.size());
  }

  void close(const SequenceOp& op) {
    if (live_.empty()) return;
    const std::size_t index = op.a % live_.size();
    if (op.b % 2 == 0) {
      ASSERT_TRUE(live_[index].sequence.close());
    }
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(index));
  }

  // A transaction over up to four neighbouring sequences, with full, partial or no commit, or a sequence dropped in it.
  void step(const SequenceOp& op) {
    if (live_.empty()) return;
    const std::size_t first = op.a % live_.size();
    const std::size_t num_items = std::min<std::size_t>(1 + op.a / 64 % 4, live_.size() - first);
    std::vector<sequence::ReserveItem> items;
    for (std::size_t i = 0; i < num_items; ++i) {
      const auto count = static_cast<std::uint32_t>(1 + (op.b >> (4 * i)) % (2 * page_size_));
      items.push_back({.control = live_[first + i].sequence.control(), .num_new_tokens = count, .tokens = {}});
    }
    SequenceStore::Impl& store = *store_.impl();
    const std::uint64_t needed = sequence::count_pages(store, items).value();
    const std::uint64_t available = pool_.available_pages();
    const Result<void> reserved = sequence::reserve(store, items);
    ASSERT_EQ(reserved.has_value(), needed <= available);
    if (reserved) end_step(op, items, first);
    for (std::size_t i = first; i < std::min(first + num_items, live_.size()); ++i) check(i);
  }

  void end_step(const SequenceOp& op, const std::vector<sequence::ReserveItem>& items, std::size_t first) {
    // New tokens are written before the fate of the step is known, as kernels do.
    for (std::size_t i = 0; i < items.size(); ++i) {
      Live& live = live_[first + i];
      for (std::uint32_t t = 0; t < items[i].num_new_tokens; ++t) live.model.push_back(++next_value_);
      store_values(live, items[i].num_new_tokens, *items[i].control);
    }
    for (std::size_t i = 0; i < items.size(); ++i) {
      Live& live = live_[first + i];
      const std::uint32_t accepted = (op.c >> (8 * i)) % (items[i].num_new_tokens + 1);
      live.model.resize(live.model.size() - items[i].num_new_tokens + accepted);
      ASSERT_EQ(live.sequence.close().error(), Errc::kBusy);
      const bool drop = i == 0 && op.c % 16 == 15;
      if (drop) live.sequence = Sequence();
      sequence::commit(*items[i].control, accepted);
    }
    std::erase_if(live_, [](const Live& live) { return !live.sequence.is_open(); });
  }

  void write(Live& live, std::uint32_t count) {
    for (std::uint32_t t = 0; t < count; ++t) live.model.push_back(++next_value_);
    store_values(live, count, *live.sequence.control());
  }

  // Stores the last `count` values of the model into the pages of every group.
  void store_values(const Live& live, std::uint32_t count, const Sequence::Control& control) {
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const auto pages = control.pages(g);
      for (std::size_t t = live.model.size() - count; t < live.model.size(); ++t) {
        ASSERT_NE(pages[t / page_size_], kNullPage) << "no place for token " << t;
        values(pages[t / page_size_])[t % page_size_] = live.model[t];
      }
    }
  }

  // Compares one sequence with its model: every token that the next one can see.
  void check(std::size_t index) {
    const Live& live = live_[index];
    const std::size_t num_tokens = live.model.size();
    ASSERT_EQ(live.sequence.num_tokens(), num_tokens);
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const auto pages = live.sequence.pages(g);
      ASSERT_EQ(pages.size(), (num_tokens + page_size_ - 1) / page_size_);
      for (std::size_t t = 0; t < num_tokens; ++t) {
        if (!is_visible(groups_[g], t, num_tokens)) continue;
        ASSERT_NE(pages[t / page_size_], kNullPage) << "token " << t << " of " << num_tokens << ", group " << g;
        ASSERT_EQ(values(pages[t / page_size_])[t % page_size_], live.model[t]) << "token " << t << ", group " << g;
      }
    }
  }

  static bool is_visible(const LayerGroup& group, std::size_t token, std::size_t num_tokens) {
    if (group.window_left < 0 || token < group.sink_tokens) return true;
    return token + static_cast<std::size_t>(group.window_left) >= num_tokens;
  }

  std::uint64_t* values(PageId page) { return reinterpret_cast<std::uint64_t*>(pool_.page_data(page)); }

  std::uint32_t page_size_;
  std::vector<LayerGroup> groups_;
  PagePool pool_;
  SequenceStore store_;
  std::vector<Live> live_;
  std::uint64_t next_value_ = 0;
};

}  // namespace pagedkv::testing
