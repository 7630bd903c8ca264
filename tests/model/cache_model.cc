// What the model predicts: page counts, references, cached prefixes, windows; and what it learns from events.
#include "model/cache_model.h"

#include <algorithm>

#include "model/cache_machine.h"

namespace pagedkv::testing {

// Who refers to each page.
std::vector<std::uint32_t> CacheMachine::references() const {
  std::vector<std::uint32_t> count(states_.size(), 0);
  const auto add = [&count](PageId page) {
    if (page != kNullPage) ++count[static_cast<std::size_t>(to_index(page))];
  };
  const auto add_all = [&add](const ModelSequence& s) {
    for (const PageIds& table : s.tables) std::for_each(table.begin(), table.end(), add);
    std::for_each(s.replaced.begin(), s.replaced.end(), add);
  };
  for (const auto& s : sequences_) add_all(*s);
  for (const ModelStep& step : steps_) {
    for (const ModelStepItem& item : step.items) {
      if (item.sequence->is_dropped) add_all(*item.sequence);
    }
  }
  for (const ModelPin& pin : pins_) std::for_each(pin.pages.begin(), pin.pages.end(), add);
  std::for_each(taken_.begin(), taken_.end(), add);
  return count;
}

std::uint64_t CacheMachine::used_pages() const {
  const std::vector<std::uint32_t> count = references();
  return static_cast<std::uint64_t>(
      std::count_if(count.begin(), count.end(), [](std::uint32_t references) { return references > 0; }));
}

std::uint64_t CacheMachine::pages_to_take(const ModelSequence& s, std::uint64_t num_new) const {
  const std::size_t held = s.rows.size();
  const std::vector<std::uint32_t> count = references();
  std::uint64_t num_pages = tables() * (pages_of(held + num_new) - pages_of(held));
  for (const PageIds& table : s.tables) {
    if (held % on_.page_size == 0) continue;
    const bool is_seen_by_others =
        count[static_cast<std::size_t>(to_index(table.back()))] > 1 || prefixes_.has(table.back());
    num_pages += is_seen_by_others ? 1U : 0U;
  }
  return num_pages;
}

// Whether a token behind `num_tokens` would see a row of an entry.
bool CacheMachine::sees(std::uint32_t table, std::size_t num_tokens, std::size_t entry) const {
  const std::size_t end = (entry + 1) * on_.page_size;
  if (windows_[table] < 0) return true;
  return end + static_cast<std::size_t>(windows_[table]) > num_tokens || entry * on_.page_size < on_.sinks;
}

// The chain has all pages of the prefix; every other table those that the next token sees.
std::vector<PageIds> CacheMachine::published_prefix(std::uint32_t tenant, std::span<const Token> tokens,
                                                    bool& is_shortened) const {
  const auto find = [&](std::uint32_t table, std::size_t entry) {
    const auto end = tokens.begin() + static_cast<std::ptrdiff_t>((entry + 1) * on_.page_size);
    return prefixes_.find({tenant, table, {tokens.begin(), end}});
  };
  const std::size_t num_full = tokens.size() / on_.page_size;
  std::size_t num_pages = 0;
  while (num_pages < num_full && find(chain_, num_pages)) ++num_pages;
  const std::size_t longest = num_pages;
  for (bool is_whole = false; !is_whole;) {
    is_whole = true;
    for (std::uint32_t t = 0; t < tables() && is_whole; ++t) {
      for (std::size_t i = 0; i < num_pages && is_whole; ++i) {
        is_whole = t == chain_ || !sees(t, num_pages * on_.page_size, i) || find(t, i).has_value();
      }
    }
    if (!is_whole) --num_pages;
  }
  is_shortened = num_pages < longest;
  std::vector<PageIds> found(tables(), PageIds(num_pages, kNullPage));
  for (std::uint32_t t = 0; t < tables(); ++t) {
    for (std::size_t i = 0; i < num_pages; ++i) {
      if (t == chain_ || sees(t, num_pages * on_.page_size, i)) found[t][i] = *find(t, i);
    }
  }
  return found;
}

// Tokens behind `num_pages` that the best published continuation has in common with the prompt.
std::size_t CacheMachine::partial_tokens(std::uint32_t tenant, std::span<const Token> tokens, std::size_t num_pages,
                                         bool& is_certain) const {
  const std::size_t begin = num_pages * on_.page_size;
  const std::size_t limit = std::min<std::size_t>(tokens.size() - begin, on_.page_size - 1);
  std::size_t best = 0;
  for (const auto& [page, key] : prefixes_.pages()) {
    if (key.tenant != tenant || key.table != chain_ || key.tokens.size() != begin + on_.page_size) continue;
    const auto differs =
        std::mismatch(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(begin + limit), key.tokens.begin());
    const auto common = static_cast<std::size_t>(differs.first - tokens.begin());
    if (common < begin) continue;
    best = std::max(best, common - begin);
  }
  // Of equally good ones the other tables may lack the pages beside the one chosen.
  is_certain = tables() == 1;
  return best;
}

// Releases what lies wholly behind the last `window` of the first `num_tokens` tokens, but for what was passed before
// and the sinks.
std::uint64_t CacheMachine::slide_table(ModelSequence& s, std::uint32_t table, std::size_t num_tokens,
                                        std::uint64_t window, std::uint64_t sinks) const {
  if (num_tokens <= window) return 0;
  const std::size_t behind = (num_tokens - window) / on_.page_size;
  std::uint64_t num_released = 0;
  for (std::size_t i = std::max(s.visited[table], pages_of(sinks)); i < behind; ++i) {
    num_released += s.tables[table][i] != kNullPage ? 1U : 0U;
    s.tables[table][i] = kNullPage;
  }
  s.visited[table] = std::max(s.visited[table], behind);
  return num_released;
}

void CacheMachine::slide_windows(ModelSequence& s, std::size_t num_tokens) const {
  for (std::uint32_t t = 0; t < tables(); ++t) {
    if (windows_[t] >= 0) slide_table(s, t, num_tokens, static_cast<std::uint64_t>(windows_[t]), on_.sinks);
  }
}

bool CacheMachine::may_truncate(const ModelSequence& s, std::uint64_t length) const {
  if (length > s.rows.size()) return false;
  for (std::uint32_t t = 0; t < tables(); ++t) {
    const std::uint64_t window = std::max(static_cast<std::uint64_t>(std::max(windows_[t], 0)), s.slid_to[t]);
    for (std::size_t i = length > window ? (length - window) / on_.page_size : 0; i < pages_of(length); ++i) {
      if (s.tables[t][i] == kNullPage) return false;
    }
  }
  return true;
}

// Events
// ----------------------------------------------------------------------------------------------------------------

// Learns what was published, by the items of a commit if there was one, and what was evicted.
void CacheMachine::poll(std::span<const ModelStepItem> published, std::span<const std::uint32_t> accepted) {
  std::vector<ModelEvent> events;
  cache_->poll_events(
      [](void* user, const CacheEvent& event) noexcept {
        static_cast<std::vector<ModelEvent>*>(user)->push_back({event.kind,
                                                                event.page,
                                                                event.sequence_number,
                                                                event.hash,
                                                                event.parent_hash,
                                                                {event.tokens.begin(), event.tokens.end()}});
      },
      &events);
  for (const ModelEvent& event : events) {
    require(event.number == next_event_++, "events are numbered");
    if (event.kind == CacheEventKind::kCleared) {
      prefixes_.clear();
      was_cleared_ = true;
    }
    if (event.kind == CacheEventKind::kStored) on_stored(event, published, accepted);
    if (event.kind != CacheEventKind::kEvicted) continue;
    const auto page = static_cast<std::size_t>(to_index(event.page));
    require(prefixes_.remove(event.page), "what is evicted was published");
    // Who uses a page uses what is published before it; but not behind windows, nor if he has not published himself.
    const bool may_be_used = slides_ || was_cleared_ || was_appended_;
    require(states_[page] != PageState::kUsed || may_be_used, "what is evicted was not in use");
  }
}

void CacheMachine::on_stored(const ModelEvent& event, std::span<const ModelStepItem> published,
                             std::span<const std::uint32_t> accepted) {
  for (std::size_t n = 0; n < published.size(); ++n) {
    const ModelSequence& s = *published[n].sequence;
    if (accepted[n] == 0) continue;
    const std::size_t num_known = std::min(s.rows.size() + accepted[n], s.ids.size()) / on_.page_size;
    for (std::uint32_t t = 0; t < tables(); ++t) {
      for (std::size_t i = 0; i < num_known; ++i) {
        if (s.tables[t][i] != event.page) continue;
        const auto end = s.ids.begin() + static_cast<std::ptrdiff_t>((i + 1) * on_.page_size);
        const PrefixKey key{s.tenant, t, {s.ids.begin(), end}};
        require(std::equal(event.tokens.begin(), event.tokens.end(), end - on_.page_size, end), "an event's tokens");
        require(prefixes_.add(event.page, key), "a prefix is published once");
        const PrefixKey parent = key.parent(on_.page_size);
        require(t != chain_ || i == 0 || prefixes_.find(parent).has_value(), "what continues a page is published");
        require(t == chain_ || prefixes_.find({s.tenant, chain_, key.tokens}).has_value(), "a side page is beside one");
        require(hashes_.emplace(key, event.hash).first->second == event.hash, "a prefix has one hash");
        require(hashes_.emplace(parent, event.parent_hash).first->second == event.parent_hash, "a parent's hash");
        return;
      }
    }
  }
  require(false, "what is published was committed");
}

}  // namespace pagedkv::testing
