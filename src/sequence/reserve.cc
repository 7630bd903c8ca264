// The two-phase reservation: pages for the new tokens of many sequences, all or none.
#include <algorithm>
#include <boost/container/small_vector.hpp>
#include <cstring>
#include <new>

#include "core/align.h"
#include "pool/pool_impl.h"
#include "sequence/control.h"
#include "sequence/page_releaser.h"
#include "sequence/sequence_store.h"

namespace pagedkv::sequence {

namespace {

using Control = Sequence::Control;
using PageIds = boost::container::small_vector<PageId, 256>;
using Tokens = boost::container::small_vector<Token, 256>;

// Whether the last page of a table would be written by the next token although others can see it.
bool must_copy_last(const SequenceStore::Impl& store, const Control& control, const PageTable& table) noexcept {
  if (control.num_tokens % store.page_size == 0) return false;
  return !store.pool->is_exclusive(table.pages.back());
}

std::uint64_t pages_to_grow(const SequenceStore::Impl& store, const Control& control, const PageTable& table,
                            std::uint64_t num_new_tokens) noexcept {
  const std::uint64_t needed = ceil_div(control.num_tokens + num_new_tokens, store.page_size);
  return needed > table.pages.size() ? needed - table.pages.size() : 0;  // a step may hold them already
}

// Checks an item whose sequence is claimed.
Result<void> check_item(const ReserveItem& item) noexcept {
  const Control* const control = item.control;
  if (item.num_new_tokens == 0) return Error{Errc::kInvalidArgument, "a sequence has no new tokens"};
  if (control->num_tokens + item.num_new_tokens > kMaxSequenceTokens) {
    return Error{Errc::kInvalidArgument, "a sequence would exceed 2^30 tokens"};
  }
  if (item.tokens.empty()) return {};
  if (item.tokens.size() != item.num_new_tokens) {
    return Error{Errc::kInvalidArgument, "token ids and new tokens differ in number"};
  }
  // Ids known already, from the prompt, must be the same.
  const std::vector<Token>& known = control->token_ids;
  if (known.size() > control->num_tokens) {
    const auto begin = known.begin() + static_cast<std::ptrdiff_t>(control->num_tokens);
    const std::size_t count = std::min<std::size_t>(known.size() - control->num_tokens, item.tokens.size());
    if (!std::equal(begin, begin + static_cast<std::ptrdiff_t>(count), item.tokens.begin())) {
      return Error{Errc::kInvalidArgument, "token ids differ from those given before"};
    }
  }
  return {};
}

// Checks an item and makes its sequence busy.
Result<void> claim(const SequenceStore::Impl& store, std::span<const ReserveItem> items, std::size_t index) noexcept {
  Control* const control = items[index].control;
  if (control == nullptr) return Error{Errc::kClosed, "a sequence is closed"};
  if (control->store.get() != &store) return Error{Errc::kInvalidArgument, "a sequence belongs to another cache"};
  std::uint32_t idle = 0;
  if (!control->state.compare_exchange_strong(idle, Control::kBusy, std::memory_order_acquire)) {
    for (const ReserveItem& earlier : items.first(index)) {
      if (earlier.control == control) return Error{Errc::kInvalidArgument, "a sequence is listed twice"};
    }
    return Error{Errc::kBusy, "a sequence is in another step"};
  }
  Result<void> checked = check_item(items[index]);
  if (!checked) control->state.store(0, std::memory_order_release);
  return checked;
}

void unclaim(std::span<const ReserveItem> items) noexcept {
  for (const ReserveItem& item : items) item.control->state.store(0, std::memory_order_release);
}

// Room for whatever `extend` will add, so that it cannot fail.
void make_room(const SequenceStore::Impl& store, const ReserveItem& item) {
  Control& control = *item.control;
  for (PageTable& table : control.tables) {
    const std::size_t needed = ceil_div(control.num_tokens + item.num_new_tokens, store.page_size);
    if (needed > table.pages.capacity()) table.pages.reserve(std::max(needed, table.pages.capacity() * 2));
  }
  const std::size_t num_ids = control.num_tokens + item.tokens.size();
  if (!item.tokens.empty() && num_ids > control.token_ids.capacity()) {
    control.token_ids.reserve(std::max(num_ids, control.token_ids.capacity() * 2));
  }
}

void copy_page(SequenceStore::Impl& store, PageId from, PageId to, std::uint32_t num_tokens) noexcept {
  store.copied_pages.fetch_add(1, std::memory_order_relaxed);
  std::byte* const target = store.pool->page_data(to);
  const std::byte* const source = store.pool->page_data(from);
  if (store.copier != nullptr) {
    store.copier->copy(target, source, num_tokens);
  } else {
    std::memcpy(target, source, store.pool->page_bytes());
  }
}

// Puts reserved pages into the tables of one sequence. Returns the pages that it did not take: when a sharer left
// meanwhile, a copy is not needed any more.
const PageId* extend(SequenceStore::Impl& store, const ReserveItem& item, std::span<const Token> tokens,
                     const PageId* fresh) noexcept {
  Control& control = *item.control;
  control.num_new_tokens = item.num_new_tokens;
  control.num_ids_before = control.token_ids.size();
  for (PageTable& table : control.tables) {
    table.num_before = static_cast<std::uint32_t>(table.pages.size());
    table.replaced = kNullPage;
    const std::uint64_t num_grown = pages_to_grow(store, control, table, item.num_new_tokens);
    const bool copies = table.may_copy && must_copy_last(store, control, table);
    for (std::uint64_t i = 0; store.cleaner != nullptr && i < num_grown + (copies ? 1 : 0); ++i) {
      store.cleaner->clean(fresh[i], control);
    }
    if (copies) {
      table.replaced = table.pages.back();
      table.pages.back() = *fresh++;
      copy_page(store, table.replaced, table.pages.back(),
                static_cast<std::uint32_t>(control.num_tokens % store.page_size));
    }
    table.pages.insert(table.pages.end(), fresh, fresh + num_grown);
    fresh += num_grown;
  }
  // Ids join those known if nothing between is unknown.
  const std::uint64_t known = control.token_ids.size();
  if (!tokens.empty() && known >= control.num_tokens) {
    const std::uint64_t skip = std::min<std::uint64_t>(known - control.num_tokens, tokens.size());
    control.token_ids.insert(control.token_ids.end(), tokens.begin() + static_cast<std::ptrdiff_t>(skip), tokens.end());
  }
  return fresh;
}

}  // namespace

// Whether the last page is copied is decided here, once: who refers to it after this, by PagePool::retain in another
// thread, sees it written; who leaves spares the copy.
std::uint64_t pages_for(const SequenceStore::Impl& store, Control& control, std::uint64_t num_new_tokens) noexcept {
  std::uint64_t num_pages = 0;
  for (PageTable& table : control.tables) {
    table.may_copy = must_copy_last(store, control, table);
    num_pages += pages_to_grow(store, control, table, num_new_tokens) + (table.may_copy ? 1U : 0U);
  }
  return num_pages;
}

Result<std::uint64_t> count_pages(const SequenceStore::Impl& store, std::span<const ReserveItem> items) noexcept {
  if (items.empty()) return Error{Errc::kInvalidArgument, "there are no sequences"};
  std::uint64_t num_pages = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    Result<void> claimed = claim(store, items, i);
    if (!claimed) {
      unclaim(items.first(i));
      return claimed.error();
    }
    num_pages += pages_for(store, *items[i].control, items[i].num_new_tokens);
  }
  unclaim(items);
  return num_pages;
}

Result<void> reserve(SequenceStore::Impl& store, std::span<const ReserveItem> items) noexcept {
  if (items.empty()) return Error{Errc::kInvalidArgument, "there are no sequences"};
  std::uint64_t num_pages = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    Result<void> claimed = claim(store, items, i);
    if (!claimed) {
      unclaim(items.first(i));
      return claimed;
    }
    num_pages += pages_for(store, *items[i].control, items[i].num_new_tokens);
  }

  // Before there is room for the ids: those of 2^31 tokens would be gigabytes, whatever the pool holds.
  if (Result<void> refused = store.pool->refuse_impossible(num_pages); !refused) {
    unclaim(items);
    return refused;
  }
  PageIds fresh;
  Tokens ids;  // of all items: theirs may lie in the very arrays that grow, as Sequence::tokens() gives them
  try {
    for (const ReserveItem& item : items) ids.insert(ids.end(), item.tokens.begin(), item.tokens.end());
    for (const ReserveItem& item : items) make_room(store, item);
    fresh.resize(num_pages);
  } catch (const std::bad_alloc&) {
    unclaim(items);
    return Error{Errc::kOutOfMemory, "no memory for a page table"};
  }
  Result<void> allocated = store.pool->allocate({fresh.data(), fresh.size()});
  if (!allocated) {
    unclaim(items);
    return allocated;
  }

  const PageId* next = fresh.data();
  const PageId* const end = next + fresh.size();
  std::span<const Token> tokens = {ids.data(), ids.size()};
  for (const ReserveItem& item : items) {
    next = extend(store, item, tokens.first(item.tokens.size()), next);
    tokens = tokens.subspan(item.tokens.size());
  }
  PageReleaser unneeded(*store.pool);
  while (next != end) unneeded.add(*next++);
  return {};
}

}  // namespace pagedkv::sequence
