// Adopts published prefixes into sequences, publishes what they commit, and pins.
#include "cache/prefix_sharing.h"

#include <algorithm>
#include <array>
#include <new>
#include <utility>

#include "core/check.h"
#include "sequence/page_releaser.h"

namespace pagedkv::cache {

using Control = Sequence::Control;

Result<std::unique_ptr<PrefixSharing>> PrefixSharing::create(const SequenceStore::Impl& store, const PageLayout& layout,
                                                             const PrefixCacheOptions& options) noexcept try {
  auto index = prefix::PrefixIndex::create(store.pool, layout.page_size, options);
  if (!index) return index.error();
  return std::unique_ptr<PrefixSharing>(new PrefixSharing(store, layout, std::move(*index)));
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for the prefix cache"};
}

PrefixSharing::PrefixSharing(const SequenceStore::Impl& store, const PageLayout& layout,
                             std::unique_ptr<prefix::PrefixIndex> index)
    : pool_(store.pool), tables_(store.groups), layout_(layout), index_(std::move(index)) {}

// Opening -------------------------------------------------------------------------------------------------------------

Result<void> PrefixSharing::adopt(Control& control, std::span<const Token> tokens, const OpenOptions& options) noexcept
    try {
  if (Result<void> checked = prefix::PrefixIndex::check(options.retention); !checked) return checked;
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    auto name_space = index_->acquire(options.cache_salt, options.extra_key, t);
    if (!name_space) return name_space.error();
    control.tables[t].chain.name_space = std::move(*name_space);
  }
  if (!options.retention.empty()) {
    control.retention =
        std::make_shared<const std::vector<RetentionRange>>(options.retention.begin(), options.retention.end());
  }
  control.token_ids.assign(tokens.begin(), tokens.end());
  if (tokens.empty()) return {};

  // The last token is always computed: somebody needs its output.
  const std::span<const Token> wanted = tokens.first(tokens.size() - 1);
  Matches matches(tables_.size());
  for (sequence::PageTable& table : control.tables) {
    table.pages.reserve(wanted.size() / layout_.page_size + 1);
    table.pages.resize(wanted.size() / layout_.page_size, kNullPage);  // a null page is skipped if the next one fails
  }
  const std::uint64_t num_pages = match_all(control, wanted, matches);
  for (sequence::PageTable& table : control.tables) table.pages.resize(num_pages);
  control.num_tokens = num_pages * layout_.page_size;
  control.num_tokens += copy_partial(control, matches);
  control.cached_tokens = control.num_tokens;
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    if (tables_[t].window_left < 0) continue;
    sequence::slide(control, control.tables[t], static_cast<std::uint64_t>(tables_[t].window_left),
                    tables_[t].sink_tokens);
  }
  lookups_.fetch_add(1, std::memory_order_relaxed);
  lookup_tokens_.fetch_add(wanted.size(), std::memory_order_relaxed);
  hit_tokens_.fetch_add(control.cached_tokens, std::memory_order_relaxed);
  return {};
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for the prompt of the sequence"};
}

/// Matches every table as far as all of them match, and returns that number of full pages. When one has less than the
/// others (pages are evicted one by one), they are matched again without what it does not have.
std::uint64_t PrefixSharing::match_all(Control& control, std::span<const Token> tokens, Matches& matches) noexcept {
  const std::span<const RetentionRange> retention =
      control.retention ? std::span<const RetentionRange>(*control.retention) : std::span<const RetentionRange>{};
  for (;;) {
    std::uint64_t fewest = tokens.size() / layout_.page_size, most = 0;
    for (std::size_t t = 0; t < tables_.size(); ++t) {
      sequence::PageTable& table = control.tables[t];
      matches[t] = index_->match(table.chain, tokens, {table.pages.data(), table.pages.size()}, retention);
      fewest = std::min(fewest, matches[t].num_pages);
      most = std::max(most, matches[t].num_pages);
    }
    if (fewest == most) return fewest;
    release(control, matches);
    for (sequence::PageTable& table : control.tables) table.chain.restart();
    tokens = tokens.first(fewest * layout_.page_size);
  }
}

/// Copies the first rows of pages that continue the match for some tokens, and drops these pages. Returns the tokens.
std::uint32_t PrefixSharing::copy_partial(Control& control, const Matches& matches) noexcept {
  std::uint32_t num_tokens = layout_.page_size;
  for (const prefix::Match& match : matches) num_tokens = std::min(num_tokens, match.partial_tokens);
  std::array<PageId, kMaxLayerGroups> copies;
  const std::span<PageId> wanted(copies.data(), matches.size());
  const bool copied = num_tokens > 0 && pool_->allocate(wanted).has_value();
  for (std::size_t t = 0; copied && t < matches.size(); ++t) {
    layout_.copy_rows(pool_->page_data(copies[t]), pool_->page_data(matches[t].partial), num_tokens);
    control.tables[t].pages.push_back(copies[t]);  // there is room
  }
  sequence::PageReleaser released(*pool_);
  for (const prefix::Match& match : matches) released.add(match.partial);
  return copied ? num_tokens : 0;
}

void PrefixSharing::release(const Control& control, const Matches& matches) noexcept {
  sequence::PageReleaser released(*pool_);
  for (std::size_t t = 0; t < matches.size(); ++t) {
    released.add(matches[t].partial);
    for (std::uint64_t i = matches[t].num_pages; i-- > 0;) released.add(control.tables[t].pages[i]);
  }
}

// Publishing ----------------------------------------------------------------------------------------------------------

void PrefixSharing::publish(Control& control, std::uint64_t num_tokens) noexcept {
  const std::uint64_t known = std::min<std::uint64_t>(num_tokens, control.token_ids.size());
  const std::span<const Token> tokens = std::span<const Token>(control.token_ids).first(known);
  const std::span<const RetentionRange> retention =
      control.retention ? std::span<const RetentionRange>(*control.retention) : std::span<const RetentionRange>{};
  for (sequence::PageTable& table : control.tables) {
    index_->publish(table.chain, tokens, {table.pages.data(), table.pages.size()}, retention);
  }
}

// Pins ----------------------------------------------------------------------------------------------------------------

Result<PinId> PrefixSharing::pin(std::span<const Token> tokens, const OpenOptions& options) noexcept try {
  const std::scoped_lock guard(pins_mutex_);
  std::vector<PinId>& pins = pins_[next_pin_];
  Error error;
  try {
    pins.reserve(tables_.size());
    for (std::size_t t = 0; t < tables_.size() && error == Errc::kOk; ++t) {
      auto name_space = index_->acquire(options.cache_salt, options.extra_key, t);
      Result<PinId> pin = name_space ? index_->pin(*name_space, tokens) : Result<PinId>(name_space.error());
      error = pin.error();
      if (pin) pins.push_back(*pin);
    }
  } catch (const std::bad_alloc&) {
    error = {Errc::kOutOfMemory, "no memory for a pin"};
  }
  if (error == Errc::kOk) return PinId{next_pin_++};
  for (const PinId pin : pins) (void)index_->unpin(pin);
  pins_.erase(next_pin_);
  return error;
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for a pin"};
}

Result<void> PrefixSharing::unpin(PinId pin) noexcept {
  const std::scoped_lock guard(pins_mutex_);
  const auto known = pins_.find(static_cast<std::uint64_t>(pin));
  if (known == pins_.end()) return Error{Errc::kNotFound, "nothing is pinned under this id"};
  for (const PinId of_table : known->second) {
    [[maybe_unused]] const Result<void> done = index_->unpin(of_table);
    PAGEDKV_ASSERT(done.has_value());
  }
  pins_.erase(known);
  return {};
}

PrefixStats PrefixSharing::stats() noexcept {
  PrefixStats stats = index_->stats();
  stats.lookups = lookups_.load(std::memory_order_relaxed);
  stats.lookup_tokens = lookup_tokens_.load(std::memory_order_relaxed);
  stats.hit_tokens = hit_tokens_.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace pagedkv::cache
