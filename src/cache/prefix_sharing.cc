// Adopts published prefixes into sequences, publishes what they commit, and pins.
#include "cache/prefix_sharing.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <new>
#include <utility>

#include "core/align.h"
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

namespace {

std::size_t widest_table(const std::vector<LayerGroup>& tables) noexcept {
  const auto is_narrower = [](const LayerGroup& a, const LayerGroup& b) {
    return static_cast<std::uint32_t>(a.window_left) < static_cast<std::uint32_t>(b.window_left);  // -1 is the widest
  };
  return static_cast<std::size_t>(std::max_element(tables.begin(), tables.end(), is_narrower) - tables.begin());
}

std::span<PageId> pages_of(sequence::PageTable& table) noexcept { return {table.pages.data(), table.pages.size()}; }

std::span<const RetentionRange> retention_of(const Control& control) noexcept {
  return control.retention ? std::span<const RetentionRange>(*control.retention) : std::span<const RetentionRange>{};
}

}  // namespace

PrefixSharing::PrefixSharing(const SequenceStore::Impl& store, const PageLayout& layout,
                             std::unique_ptr<prefix::PrefixIndex> index)
    : pool_(store.pool),
      tables_(store.groups),
      chain_table_(widest_table(tables_)),
      layout_(layout),
      index_(std::move(index)) {}

// Opening -------------------------------------------------------------------------------------------------------------

/// Gives every table its namespace, and room for the full pages of `tokens`, which are null.
Result<void> PrefixSharing::acquire(Tables tables, std::span<const Token> tokens, const OpenOptions& options) {
  for (std::size_t t = 0; t < tables.size(); ++t) {
    auto name_space = index_->acquire(options.cache_salt, options.extra_key, t);
    if (!name_space) return name_space.error();
    tables[t].chain.name_space = std::move(*name_space);
  }
  for (sequence::PageTable& table : tables) {
    table.pages.reserve(tokens.size() / layout_.page_size + 1);
    table.pages.resize(tokens.size() / layout_.page_size, kNullPage);
  }
  return {};
}

Result<void> PrefixSharing::adopt(Control& control, std::span<const Token> tokens, const OpenOptions& options) noexcept
    try {
  if (Result<void> checked = prefix::PrefixIndex::check(options.retention); !checked) return checked;
  // The last token is always computed: somebody needs its output.
  const std::span<const Token> wanted = tokens.first(tokens.empty() ? 0 : tokens.size() - 1);
  const Tables tables(control.tables.data(), control.tables.size());
  if (Result<void> acquired = acquire(tables, wanted, options); !acquired) return acquired;
  if (!options.retention.empty()) {
    control.retention =
        std::make_shared<const std::vector<RetentionRange>>(options.retention.begin(), options.retention.end());
  }
  control.token_ids.assign(tokens.begin(), tokens.end());
  if (tokens.empty()) return {};

  const prefix::Match match = match_all(tables, wanted, retention_of(control));
  control.num_tokens = match.num_pages * layout_.page_size;
  control.num_tokens += copy_partial(control, match);
  control.cached_tokens = control.num_tokens;
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    if (tables_[t].window_left < 0) continue;
    sequence::slide(control, control.tables[t], control.num_tokens, static_cast<std::uint64_t>(tables_[t].window_left),
                    tables_[t].sink_tokens);
  }
  lookups_.fetch_add(1, std::memory_order_relaxed);
  lookup_tokens_.fetch_add(wanted.size(), std::memory_order_relaxed);
  hit_tokens_.fetch_add(control.cached_tokens, std::memory_order_relaxed);
  return {};
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for the prompt of the sequence"};
}

/// Matches the chain, and shortens it until every side table has what the next token sees. Page tables then have the
/// match's num_pages entries.
prefix::Match PrefixSharing::match_all(Tables tables, std::span<const Token> tokens,
                                       std::span<const RetentionRange> retention) noexcept {
  sequence::PageTable& chain = tables[chain_table_];
  prefix::Match match = index_->match(chain.chain, tokens, pages_of(chain), retention);
  const std::uint64_t num_found = match.num_pages;
  std::size_t num_agreed = 0;
  for (std::size_t t = 0; num_agreed < tables.size(); t = (t + 1) % tables.size()) {
    const std::uint64_t num_pages = match_side(tables, t, match.num_pages, retention);
    num_agreed = num_pages < match.num_pages ? 1 : num_agreed + 1;
    match.num_pages = num_pages;
  }
  sequence::PageReleaser released(*pool_);
  if (match.num_pages < num_found) {
    index_->rewind(chain.chain, pages_of(chain), match.num_pages);
    released.add(match.partial);
    match.partial = kNullPage;
    match.partial_tokens = 0;
  }
  for (sequence::PageTable& table : tables) {
    for (std::size_t i = table.pages.size(); i-- > match.num_pages;) released.add(table.pages[i]);
    table.pages.resize(match.num_pages);
    table.chain.num_pages = match.num_pages;
    table.chain.num_restarts = chain.chain.num_restarts;
  }
  return match;
}

/// The longest prefix of at most `num_pages` pages of which a table has all that the next token sees: these pages are
/// retained.
std::uint64_t PrefixSharing::match_side(Tables tables, std::size_t table, std::uint64_t num_pages,
                                        std::span<const RetentionRange> retention) noexcept {
  if (table == chain_table_) return num_pages;
  const LayerGroup& group = tables_[table];
  const std::uint64_t page_size = layout_.page_size;
  const std::span<const PageId> chain = pages_of(tables[chain_table_]);
  const std::span<PageId> pages = pages_of(tables[table]);
  const prefix::Namespace& name_space = *tables[table].chain.name_space;
  for (;;) {
    const std::uint64_t num_tokens = num_pages * page_size;
    const std::uint64_t window =
        group.window_left < 0 ? num_tokens
                              : std::min<std::uint64_t>(num_tokens, static_cast<std::uint32_t>(group.window_left));
    const std::uint64_t first = (num_tokens - window) / page_size;
    const std::uint64_t num_sinks = std::min(first, ceil_div(group.sink_tokens, page_size));
    std::uint64_t found = index_->match_side(name_space, chain, pages, first, num_pages, retention);
    if (found == first) {
      found = index_->match_side(name_space, chain, pages, 0, num_sinks, retention);
      if (found == 0) return num_pages;
    }
    num_pages = found - 1;  // that page is missing
  }
}

/// Copies the first rows of pages that continue the match for some tokens, and drops these pages. Returns the tokens.
std::uint32_t PrefixSharing::copy_partial(Control& control, const prefix::Match& match) noexcept {
  const Tables tables(control.tables.data(), control.tables.size());
  if (match.partial == kNullPage) return 0;
  std::array<PageId, kMaxLayerGroups> from, copies;
  bool is_there = true;
  for (std::size_t t = 0; t < tables.size(); ++t) {
    from[t] = t == chain_table_ ? match.partial : kNullPage;
    if (t == chain_table_) continue;
    is_there =
        is_there && index_->match_side(*tables[t].chain.name_space, {&match.partial, 1}, {&from[t], 1}, 0, 1) == 0;
  }
  const bool copied = is_there && pool_->allocate({copies.data(), tables.size()}).has_value();
  for (std::size_t t = 0; copied && t < tables.size(); ++t) {
    if (control.store->cleaner != nullptr) control.store->cleaner->clean(copies[t], control);
    layout_.copy_rows(pool_->page_data(copies[t]), pool_->page_data(from[t]), match.partial_tokens);
    tables[t].pages.push_back(copies[t]);  // there is room
  }
  sequence::PageReleaser released(*pool_);
  for (std::size_t t = 0; t < tables.size(); ++t) released.add(from[t]);
  return copied ? match.partial_tokens : 0;
}

// Publishing ----------------------------------------------------------------------------------------------------------

void PrefixSharing::publish(Control& control, std::uint64_t num_tokens) noexcept {
  const std::uint64_t known = std::min<std::uint64_t>(num_tokens, control.token_ids.size());
  const std::span<const Token> tokens = std::span<const Token>(control.token_ids).first(known);
  const std::span<const RetentionRange> retention = retention_of(control);
  sequence::PageTable& chain = control.tables[chain_table_];
  index_->publish(chain.chain, tokens, pages_of(chain), retention);
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    if (t == chain_table_) continue;
    sequence::PageTable& side = control.tables[t];
    index_->publish_side(side.chain, chain.chain, tokens, pages_of(chain), pages_of(side), retention);
  }
}

// Pins ----------------------------------------------------------------------------------------------------------------

Result<PinId> PrefixSharing::pin(std::span<const Token> tokens, const OpenOptions& options) noexcept try {
  std::vector<sequence::PageTable> tables(tables_.size());
  if (Result<void> acquired = acquire(tables, tokens, options); !acquired) return acquired.error();
  std::vector<PageId> pages;
  pages.reserve(tables.size() * (tokens.size() / layout_.page_size));  // all memory is had before a page is retained
  const prefix::Match match = match_all(tables, tokens, {});
  {
    sequence::PageReleaser(*pool_).add(match.partial);
  }
  for (const sequence::PageTable& table : tables) {
    std::copy_if(table.pages.rbegin(), table.pages.rend(), std::back_inserter(pages),
                 [](PageId page) { return page != kNullPage; });
  }
  return index_->pin(std::move(pages));
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for a pin"};
}

PrefixStats PrefixSharing::stats() noexcept {
  PrefixStats stats = index_->stats();
  stats.lookups = lookups_.load(std::memory_order_relaxed);
  stats.lookup_tokens = lookup_tokens_.load(std::memory_order_relaxed);
  stats.hit_tokens = hit_tokens_.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace pagedkv::cache
