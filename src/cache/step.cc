// Step: a reservation of the storage column, seen by the compute column as slots to write and a batch to attend.
#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "cache/step_impl.h"
#include "core/align.h"
#include "core/check.h"

namespace pagedkv {
namespace {

constexpr std::uint64_t kMaxIndex = std::numeric_limits<std::int32_t>::max();  // of page table entries
constexpr Error kOverError{Errc::kClosed, "the step was committed, rolled back or moved from"};

}  // namespace

Result<void> Step::Impl::begin(const std::shared_ptr<KvCache::Impl>& owner, std::span<const StepItem> wanted) noexcept {
  try {
    items.clear();
    items.reserve(wanted.size());
    num_rows = 0;
    for (const StepItem& item : wanted) {
      if (item.sequence == nullptr) return Error{Errc::kInvalidArgument, "a sequence is null"};
      items.push_back({item.sequence->control(), item.num_new_tokens, item.tokens});
      num_rows += item.num_new_tokens;  // at most 2^32 * items: cannot overflow
    }
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for the step"};
  }
  if (num_rows > kMaxHeadRows / owner->config->options().shape.num_kv_heads) {
    return Error{Errc::kInvalidArgument, "a step has more than 2^26 new tokens times kv heads"};
  }
  Result<void> reserved = sequence::reserve(*owner->store.impl(), items);
  if (!reserved) return reserved;
  for (sequence::ReserveItem& item : items) item.tokens = {};  // borrowed until here
  over_ = false;
  cache = owner;
  cache->steps_begun.fetch_add(1, std::memory_order_relaxed);
  return {};
}

Result<void> Step::Impl::check_layer(std::uint32_t layer) const noexcept {
  if (is_over()) return kOverError;
  if (layer >= cache->config->layers().places().size()) return Error{Errc::kInvalidArgument, "layer is out of range"};
  return {};
}

Result<void> Step::Impl::write(std::uint32_t layer, ConstTensor k, ConstTensor v) noexcept {
  if (Result<void> checked = check_layer(layer); !checked) return checked;
  if (!has_slots_) {
    if (Result<void> made = make_slots(); !made) return made;
  }
  const cache::Config& config = *cache->config;
  const cache::LayerPlace place = config.layers().places()[layer];
  const KvWriteView pages = config.layout().write_view(cache->base(), place.index, config.max_pages());
  return write_kv(config.attention(place.table), pages, tables_[place.table].slots, k, v);
}

Result<void> Step::Impl::attend(std::uint32_t layer, ConstTensor q, Tensor out, std::span<float> lse) noexcept {
  if (Result<void> checked = check_layer(layer); !checked) return checked;
  if (!has_plans_) {
    if (Result<void> made = make_plans(); !made) return made;
  }
  const cache::Config& config = *cache->config;
  const cache::LayerPlace place = config.layers().places()[layer];
  const KvView pages = config.layout().view(cache->base(), place.index, config.max_pages());
  return tables_[place.table].plan->run(pages, q, out, lse, config.sinks(layer));
}

Result<void> Step::Impl::make_slots() noexcept try {
  const std::uint64_t page_size = cache->config->layout().page_size;
  tables_.resize(cache->config->layers().tables().size());
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    std::vector<std::int64_t>& slots = tables_[t].slots;
    slots.clear();
    slots.reserve(num_rows);
    for (const sequence::ReserveItem& item : items) {
      const std::span<const PageId> pages = item.control->pages(t);
      const std::uint64_t first = item.control->num_tokens;
      for (std::uint64_t token = first; token < first + item.num_new_tokens; ++token) {
        const auto page = static_cast<std::uint64_t>(to_index(pages[token / page_size]));
        slots.push_back(static_cast<std::int64_t>(page * page_size + token % page_size));
      }
    }
  }
  has_slots_ = true;
  return {};
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for the slots of the step"};
}

/// Whether every page that the new tokens see is there: the caller may have slid over more than the layers do.
bool Step::Impl::sees_all(std::size_t table, const Sequence::Control& control) const noexcept {
  const LayerGroup& group = cache->config->layers().tables()[table];
  const std::uint64_t page_size = cache->config->layout().page_size;
  const std::uint64_t window =
      group.window_left < 0 ? control.num_tokens : static_cast<std::uint64_t>(group.window_left);
  const std::uint64_t first = control.num_tokens > window ? (control.num_tokens - window) / page_size : 0;
  const std::uint64_t num_sinks = std::min(first, ceil_div(group.sink_tokens, page_size));
  const std::span<const PageId> pages = control.pages(table);
  const auto is_there = [](PageId page) { return page != kNullPage; };
  return std::all_of(pages.begin(), pages.begin() + static_cast<std::ptrdiff_t>(num_sinks), is_there) &&
         std::all_of(pages.begin() + static_cast<std::ptrdiff_t>(first), pages.end(), is_there);
}

/// The arrays of the batch; tables of a sequence are equally long, whatever their windows released.
Result<void> Step::Impl::make_batch() {
  const std::uint64_t page_size = cache->config->layout().page_size;
  tables_.resize(cache->config->layers().tables().size());
  for (Table& table : tables_) table.kv_indices.clear();
  qo_indptr_.assign(1, 0);
  kv_indptr_.assign(1, 0);
  kv_last_page_len_.clear();
  for (const sequence::ReserveItem& item : items) {
    const std::uint64_t num_tokens = item.control->num_tokens + item.num_new_tokens;
    const std::uint64_t kv_end = static_cast<std::uint64_t>(kv_indptr_.back()) + item.control->pages().size();
    if (kv_end > kMaxIndex) return Error{Errc::kInvalidArgument, "the page tables of a step have 2^31 entries or more"};
    for (std::size_t t = 0; t < tables_.size(); ++t) {
      if (!sees_all(t, *item.control)) {
        return Error{Errc::kInvalidArgument, "a sequence was slid over pages that the layers see"};
      }
      // Pages behind a window are gone. No row sees them, so any valid id may stand for them.
      for (const PageId page : item.control->pages(t)) {
        tables_[t].kv_indices.push_back(page == kNullPage ? 0 : to_index(page));
      }
    }
    qo_indptr_.push_back(qo_indptr_.back() + static_cast<std::int32_t>(item.num_new_tokens));
    kv_indptr_.push_back(static_cast<std::int32_t>(kv_end));
    kv_last_page_len_.push_back(static_cast<std::int32_t>((num_tokens - 1) % page_size + 1));
  }
  return {};
}

Result<void> Step::Impl::make_plans() noexcept try {
  if (Result<void> made = make_batch(); !made) return made;
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    Result<AttentionPlan> plan =
        AttentionPlan::create(cache->config->attention(t), {.qo_indptr = qo_indptr_,
                                                            .kv_indptr = kv_indptr_,
                                                            .kv_indices = tables_[t].kv_indices,
                                                            .kv_last_page_len = kv_last_page_len_});
    if (!plan) return plan.error();
    tables_[t].plan.emplace(std::move(*plan));
  }
  has_plans_ = true;
  return {};
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for the page tables of the step"};
}

Result<void> Step::Impl::commit(std::span<const std::uint32_t> accepted) noexcept {
  if (is_over()) return kOverError;
  if (accepted.size() != items.size()) {
    return Error{Errc::kInvalidArgument, "accepted must have an entry for each item of the step"};
  }
  std::uint64_t num_accepted = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (accepted[i] > items[i].num_new_tokens) {
      return Error{Errc::kInvalidArgument, "more tokens are accepted than the item has"};
    }
    num_accepted += accepted[i];
  }
  for (std::size_t i = 0; i < items.size(); ++i) commit_item(*items[i].control, accepted[i]);
  cache->steps_committed.fetch_add(1, std::memory_order_relaxed);
  cache->tokens_committed.fetch_add(num_accepted, std::memory_order_relaxed);
  end();
  return {};
}

Result<void> Step::Impl::commit_all() noexcept {
  if (is_over()) return kOverError;
  for (const sequence::ReserveItem& item : items) commit_item(*item.control, item.num_new_tokens);
  cache->steps_committed.fetch_add(1, std::memory_order_relaxed);
  cache->tokens_committed.fetch_add(num_rows, std::memory_order_relaxed);
  end();
  return {};
}

void Step::Impl::commit_item(Sequence::Control& control, std::uint32_t accepted) noexcept {
  // Published first, because the commit releases pages behind windows.
  if (cache->prefixes && accepted > 0) cache->prefixes->publish(control, control.num_tokens + accepted);
  sequence::commit(control, accepted);
}

void Step::Impl::roll_back() noexcept {
  if (is_over()) return;
  // In reverse, so that the pool's free list is as it was too and the next step finds the same warm pages.
  for (std::size_t i = items.size(); i-- > 0;) sequence::roll_back(*items[i].control);
  cache->steps_rolled_back.fetch_add(1, std::memory_order_relaxed);
  end();
}

void Step::Impl::end() noexcept {
  over_ = true;
  has_slots_ = has_plans_ = false;
  for (Table& table : tables_) table.plan.reset();
}

// The public face ----------------------------------------------------------------------------------------------------

Result<void> Step::write(std::uint32_t layer, ConstTensor k, ConstTensor v) noexcept {
  return impl_ ? impl_->write(layer, k, v) : kOverError;
}
Result<void> Step::attend(std::uint32_t layer, ConstTensor q, Tensor out, std::span<float> lse) noexcept {
  return impl_ ? impl_->attend(layer, q, out, lse) : kOverError;
}
Result<void> Step::commit() noexcept { return impl_ ? impl_->commit_all() : kOverError; }
Result<void> Step::commit(std::span<const std::uint32_t> accepted) noexcept {
  return impl_ ? impl_->commit(accepted) : kOverError;
}
void Step::rollback() noexcept {
  if (impl_) impl_->roll_back();
}
std::size_t Step::num_rows() const noexcept { return impl_ ? static_cast<std::size_t>(impl_->num_rows) : 0; }
std::size_t Step::num_items() const noexcept { return impl_ ? impl_->num_items() : 0; }

Step::Step() noexcept = default;
Step::Step(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Step::Step(Step&&) noexcept = default;
Step& Step::operator=(Step&& other) noexcept {
  if (this != &other) {
    const Step gone(std::move(*this));
    impl_ = std::move(other.impl_);
  }
  return *this;
}
Step::~Step() {
  if (!impl_) return;
  impl_->roll_back();
  const std::shared_ptr<KvCache::Impl> cache = std::move(impl_->cache);
  cache->put_step(std::move(impl_));
}

}  // namespace pagedkv
