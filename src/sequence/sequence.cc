// The public face of a sequence: append, truncate, fork, close, and what it holds.
#include "pagedkv/sequence.h"

#include <algorithm>
#include <new>
#include <utility>

#include "core/align.h"
#include "pool/pool_impl.h"
#include "sequence/control.h"
#include "sequence/page_releaser.h"
#include "sequence/sequence_store.h"

namespace pagedkv {

namespace {

constexpr Error kClosedError{Errc::kClosed, "the sequence is closed"};
constexpr Error kBusyError{Errc::kBusy, "the sequence is in a step"};

// Whether the tokens to come after `num_tokens` would find every page that their window sees.
bool window_is_whole(const sequence::PageTable& table, const LayerGroup& group, std::uint64_t num_tokens,
                     std::uint64_t page_size) noexcept {
  const std::uint64_t window = std::max(static_cast<std::uint64_t>(std::max(group.window_left, 0)), table.window);
  const std::uint64_t first = num_tokens > window ? (num_tokens - window) / page_size : 0;
  const std::uint64_t last = ceil_div(num_tokens, page_size);
  return std::find(table.pages.begin() + static_cast<std::ptrdiff_t>(first),
                   table.pages.begin() + static_cast<std::ptrdiff_t>(last),
                   kNullPage) == table.pages.begin() + static_cast<std::ptrdiff_t>(last);
}

}  // namespace

Result<Sequence> sequence::open(const std::shared_ptr<SequenceStore::Impl>& store) noexcept {
  auto control = SequenceStore::Impl::make_control(store);
  if (!control) return control.error();
  return Sequence(*control);
}

Result<void> Sequence::append(std::uint32_t num_tokens) noexcept {
  if (control_ == nullptr) return kClosedError;
  const sequence::ReserveItem item{.control = control_, .num_new_tokens = num_tokens, .tokens = {}};
  Result<void> reserved = sequence::reserve(*control_->store, {&item, 1});
  if (reserved) sequence::commit(*control_, num_tokens, sequence::NewTokens::kToCome);
  return reserved;
}

Result<void> Sequence::truncate(std::uint64_t num_tokens) noexcept {
  if (control_ == nullptr) return kClosedError;
  Control& control = *control_;
  if (control.is_busy()) return kBusyError;
  if (num_tokens > control.num_tokens) {
    return Error{Errc::kInvalidArgument, "a sequence cannot be truncated to more tokens than it holds"};
  }
  const SequenceStore::Impl& store = *control.store;
  for (std::size_t g = 0; g < control.tables.size(); ++g) {
    if (!window_is_whole(control.tables[g], store.groups[g], num_tokens, store.page_size)) {
      return Error{Errc::kInvalidArgument, "a sequence cannot be truncated into what its window released"};
    }
  }
  sequence::PageReleaser released(*store.pool);
  const std::uint64_t num_pages = ceil_div(num_tokens, store.page_size);
  for (sequence::PageTable& table : control.tables) {
    while (table.pages.size() > num_pages) {
      released.add(table.pages.back());
      table.pages.pop_back();
    }
    table.num_released = std::min(table.num_released, static_cast<std::uint32_t>(num_pages));
    if (num_tokens < table.chain.num_pages * store.page_size) table.chain.restart();
  }
  control.num_tokens = num_tokens;
  control.cached_tokens = std::min(control.cached_tokens, num_tokens);
  if (control.token_ids.size() > num_tokens) control.token_ids.resize(num_tokens);
  return {};
}

Result<std::uint64_t> Sequence::slide(std::uint64_t window, std::uint64_t sink_tokens, std::size_t group) noexcept {
  if (control_ == nullptr) return kClosedError;
  if (control_->is_busy()) return kBusyError;
  if (group >= control_->tables.size()) return Error{Errc::kInvalidArgument, "there is no such layer group"};
  if (window >= control_->num_tokens) return Error{Errc::kInvalidArgument, "the window is as wide as the sequence"};
  sequence::PageTable& table = control_->tables[group];
  table.window = window;
  table.num_released = 0;  // look at all entries: sinks kept before may not be wanted any more
  return sequence::slide(*control_, table, control_->num_tokens, window, sink_tokens);
}

Result<Sequence> Sequence::fork() noexcept {
  if (control_ == nullptr) return kClosedError;
  const Control& parent = *control_;
  if (parent.is_busy()) return kBusyError;
  auto made = SequenceStore::Impl::make_control(parent.store);
  if (!made) return made.error();
  Control& child = **made;
  boost::container::small_vector<PageId, 256> shared;  // of all groups, without released entries
  try {
    for (std::size_t g = 0; g < parent.tables.size(); ++g) {
      const sequence::PageTable& table = parent.tables[g];
      shared.reserve(shared.size() + table.pages.size());
      std::copy_if(table.pages.begin(), table.pages.end(), std::back_inserter(shared),
                   [](PageId page) { return page != kNullPage; });
      child.tables[g].pages = table.pages;
      child.tables[g].num_released = table.num_released;
      child.tables[g].window = table.window;
      child.tables[g].chain = table.chain;
    }
    child.token_ids = parent.token_ids;
  } catch (const std::bad_alloc&) {
    SequenceStore::Impl::free_control(&child);
    return Error{Errc::kOutOfMemory, "no memory for a page table"};
  }
  Result<void> retained = parent.store->pool->retain({shared.data(), shared.size()});
  if (!retained) {
    SequenceStore::Impl::free_control(&child);
    return retained.error();
  }
  child.num_tokens = parent.num_tokens;
  child.cached_tokens = parent.cached_tokens;
  child.retention = parent.retention;
  return Sequence(&child);
}

Result<void> Sequence::close() noexcept {
  if (control_ == nullptr) return {};
  if (control_->is_busy()) return kBusyError;
  sequence::destroy(*std::exchange(control_, nullptr));
  return {};
}

bool Sequence::is_open() const noexcept { return control_ != nullptr; }
std::uint64_t Sequence::num_tokens() const noexcept { return control_ != nullptr ? control_->num_tokens : 0; }
std::uint64_t Sequence::cached_tokens() const noexcept { return control_ != nullptr ? control_->cached_tokens : 0; }
std::uint32_t Sequence::page_size() const noexcept { return control_ != nullptr ? control_->store->page_size : 0; }
std::size_t Sequence::num_groups() const noexcept { return control_ != nullptr ? control_->tables.size() : 0; }

std::span<const PageId> Sequence::pages(std::size_t group) const noexcept {
  return group < num_groups() ? control_->pages(group) : std::span<const PageId>{};
}

std::span<const Token> Sequence::tokens() const noexcept {
  return control_ != nullptr ? std::span<const Token>(control_->token_ids) : std::span<const Token>{};
}

std::uint64_t Sequence::pages_needed(std::uint32_t num_tokens) const noexcept {
  if (control_ == nullptr || num_tokens == 0) return 0;
  return sequence::pages_for(*control_->store, *control_, num_tokens);
}

Sequence::Sequence(Sequence&& other) noexcept : control_(std::exchange(other.control_, nullptr)) {}

Sequence& Sequence::operator=(Sequence&& other) noexcept {
  if (this != &other) {
    const Sequence gone(std::move(*this));
    control_ = std::exchange(other.control_, nullptr);
  }
  return *this;
}

Sequence::~Sequence() {
  if (control_ == nullptr) return;
  // In a step the pages are still in use: its end closes the sequence then.
  const std::uint32_t before = control_->state.fetch_or(Control::kOrphaned, std::memory_order_acq_rel);
  if ((before & Control::kBusy) == 0) sequence::destroy(*control_);
  control_ = nullptr;
}

}  // namespace pagedkv
