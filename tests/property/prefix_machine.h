// Cached sequences beside a naive model: a table of all published prefixes, kept by the events of the index.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "support/cached_store.h"

namespace pagedkv::testing {

/// One random operation. What `a`, `b` and `c` mean depends on the kind; any value is valid.
struct PrefixOp {
  std::uint32_t kind = 0, a = 0, b = 0, c = 0;
};

/// Tokens are 0..3 and sequences short, so that prefixes meet often, and a prefix fits one integer: the model compares
/// without hashing. The value of a token depends on all before it and on the namespace, so that a page that was found
/// wrongly shows.
class PrefixMachine {
 public:
  static constexpr std::uint32_t kNumKinds = 16;
  static constexpr std::uint64_t kCapacity = 40;

  PrefixMachine(std::uint32_t page_size, PrefixCacheOptions options)
      : page_size_(page_size),
        cached_(kCapacity, page_size, with_events(std::move(options))),
        key_of_(kCapacity, 0),
        candidates_(kCapacity, 0) {}

  void apply(const PrefixOp& op) {
    switch (op.kind % kNumKinds) {
      case 0:
      case 1:
      case 2: open(op); break;
      case 3: fork(op); break;
      case 4: truncate(op); break;
      case 5:
      case 6:
      case 7: close(op); break;
      case 8: pin(op); break;
      case 9: unpin(op); break;
      case 10: set_capacity(op); break;
      case 11: op.c % 64 == 0 ? cached_.index().clear() : static_cast<void>(cached_.pool().trim()); break;
      default: append(op); break;
    }
    poll_events();
  }

  /// Compares every count, and every value of every sequence.
  void check_all() {
    for (std::size_t i = 0; i < live_.size(); ++i) check_values(i);
    const PoolStats stats = cached_.pool().stats();
    std::uint64_t num_evictable = 0;
    for (const auto& [key, page] : published_) num_evictable += cached_.pool().ref_count(page) == 0 ? 1U : 0U;
    ASSERT_EQ(stats.evictable_pages, num_evictable);
    ASSERT_EQ(stats.used_pages + stats.evictable_pages + stats.free_pages, stats.capacity_pages);
    ASSERT_EQ(cached_.index().stats().published_pages, published_.size());
    std::uint64_t num_used = 0;
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(kCapacity); ++i) {
      num_used += cached_.pool().ref_count(PageId{i}) > 0 ? 1U : 0U;
    }
    ASSERT_EQ(stats.used_pages, num_used);
  }

  void finish() {
    live_.clear();
    for (const PinId pin : pins_) ASSERT_TRUE(cached_.index().unpin(pin));
    pins_.clear();
    ASSERT_EQ(cached_.pool().stats().used_pages, 0U);
    ASSERT_EQ(cached_.index().stats().pinned_pages, 0U);
    ASSERT_EQ(cached_.pool().stats().evictable_pages, published_.size());
    cached_.index().clear();
    ASSERT_EQ(cached_.pool().stats().free_pages, cached_.pool().capacity_pages());
  }

 private:
  struct Live {
    Sequence sequence;
    std::vector<Token> tokens;  ///< Held.
    std::uint64_t name_space = 0;
  };
  static constexpr std::size_t kMaxSequences = 8;
  static constexpr std::size_t kMaxTokens = 28;

  static PrefixCacheOptions with_events(PrefixCacheOptions options) {
    options.event_capacity = 4096;
    return options;
  }
  // Exact: namespace, length and two bits a token.
  static std::uint64_t key(std::uint64_t name_space, std::span<const Token> prefix) {
    std::uint64_t bits = 0;
    for (const Token token : prefix) bits = bits << 2 | static_cast<std::uint64_t>(token);
    return bits << 8 | name_space << 6 | prefix.size();
  }
  static std::string salt(std::uint64_t name_space) { return std::string(name_space, 's'); }
  static std::vector<RetentionRange> retention(std::uint32_t bits) {
    if (bits % 3 != 0) return {};
    const std::uint32_t priority = bits / 3 % 101;
    return {{.begin_token = bits % 7, .end_token = bits % 7 + 9, .priority = priority, .duration_ms = bits % 4}};
  }

  std::vector<Token> random_tokens(std::uint32_t bits, std::size_t count) const {
    std::vector<Token> tokens(count);
    for (std::size_t i = 0; i < count; ++i) {
      tokens[i] = static_cast<Token>(bits >> 30);
      bits = bits * 2654435761U + 12345U;
    }
    return tokens;
  }

  void open(const PrefixOp& op) {
    if (live_.size() >= kMaxSequences) return;
    Live live;
    live.name_space = op.b % 2;
    // A prefix of something that was seen, and some new tokens.
    std::vector<Token> prompt = seen_;
    prompt.resize(std::min<std::size_t>(prompt.size(), op.b / 2 % (kMaxTokens + 1)));
    for (const Token token : random_tokens(op.c, op.a % 12)) prompt.push_back(token);
    prompt.resize(std::min(prompt.size(), kMaxTokens));
    const std::uint64_t expected_pages = pages_in_model(live.name_space, prompt);
    const std::size_t partial = partial_in_model(live.name_space, prompt, expected_pages);
    const bool has_page = cached_.pool().available_pages() > expected_pages + 1;
    live.sequence = cached_.open(prompt, salt(live.name_space), retention(op.c));
    const std::uint64_t found = live.sequence.num_tokens();
    ASSERT_EQ(found / page_size_, expected_pages);
    if (has_page) {
      ASSERT_EQ(found % page_size_, partial);
    }
    live.tokens.assign(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(found));
    live_.push_back(std::move(live));
    check_values(live_.size() - 1);
    poll_events();
    const std::vector<Token> rest(prompt.begin() + static_cast<std::ptrdiff_t>(found), prompt.end());
    if (!rest.empty()) extend(live_.back(), rest, op.c);
    if (op.a % 4 == 0) seen_ = prompt;
  }

  void append(const PrefixOp& op) {
    if (live_.empty()) return;
    Live& live = live_[op.a % live_.size()];
    const std::size_t count = std::min<std::size_t>(1 + op.b % 6, kMaxTokens - live.tokens.size());
    if (count > 0 && live.sequence.tokens().size() == live.tokens.size())
      extend(live, random_tokens(op.c, count), op.b);
  }

  void extend(Live& live, const std::vector<Token>& tokens, std::uint32_t bits) {
    const std::uint64_t needed = live.sequence.pages_needed(static_cast<std::uint32_t>(tokens.size()));
    const std::uint64_t available = cached_.pool().available_pages();
    const bool done = cached_.append(live.sequence, tokens, live.name_space, retention(bits));
    ASSERT_EQ(done, needed <= available);
    if (done) live.tokens.insert(live.tokens.end(), tokens.begin(), tokens.end());
    learn(live);
    poll_events();
    check_values(static_cast<std::size_t>(&live - live_.data()));
  }

  // Notes which pages the sequence published; the events say when they are gone.
  void learn(const Live& live) {
    if (live.sequence.tokens().size() < live.tokens.size()) return;
    for (std::size_t i = 0; (i + 1) * page_size_ <= live.tokens.size(); ++i) {
      const PageId page = live.sequence.pages()[i];
      const std::uint64_t k = key(live.name_space, std::span(live.tokens).first((i + 1) * page_size_));
      candidates_[static_cast<std::size_t>(to_index(page))] = k;
    }
  }

  void fork(const PrefixOp& op) {
    if (live_.empty() || live_.size() >= kMaxSequences) return;
    Live& parent = live_[op.a % live_.size()];
    Live child{parent.sequence.fork().value(), parent.tokens, parent.name_space};
    live_.push_back(std::move(child));
  }

  void truncate(const PrefixOp& op) {
    if (live_.empty()) return;
    Live& live = live_[op.a % live_.size()];
    live.tokens.resize(op.b % (live.tokens.size() + 1));
    ASSERT_TRUE(live.sequence.truncate(live.tokens.size()));
    check_values(op.a % live_.size());
  }

  void close(const PrefixOp& op) {
    if (live_.empty()) return;
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(op.a % live_.size()));
  }

  void pin(const PrefixOp& op) {
    if (pins_.size() >= 2) return;
    std::vector<Token> prompt = seen_;
    prompt.resize(std::min<std::size_t>(prompt.size(), op.a % 16));
    const std::uint64_t name_space = op.b % 2;
    std::uint64_t expected = 0;
    while ((expected + 1) * page_size_ <= prompt.size() &&
           published_.contains(key(name_space, std::span(prompt).first((expected + 1) * page_size_)))) {
      ++expected;
    }
    auto pinned = cached_.pin(prompt, salt(name_space));
    ASSERT_EQ(pinned.has_value(), expected > 0);
    if (pinned) pins_.push_back(*pinned);
  }

  void unpin(const PrefixOp& op) {
    if (pins_.empty()) {
      ASSERT_EQ(cached_.index().unpin(PinId{op.a}).error(), Errc::kNotFound);
      return;
    }
    const auto which = pins_.begin() + static_cast<std::ptrdiff_t>(op.a % pins_.size());
    ASSERT_TRUE(cached_.index().unpin(*which));
    ASSERT_EQ(cached_.index().unpin(*which).error(), Errc::kNotFound);
    pins_.erase(which);
  }

  void set_capacity(const PrefixOp& op) {
    const std::uint64_t wanted = op.c % 8 == 0 ? 8 + op.a % (kCapacity + 2 - 8) : kCapacity;
    const std::uint64_t used = cached_.pool().stats().used_pages;
    ASSERT_EQ(cached_.pool().set_capacity(wanted).has_value(), wanted <= kCapacity && wanted >= used);
  }

  // The longest prefix of full pages that the model knows, of all but the last token.
  std::uint64_t pages_in_model(std::uint64_t name_space, const std::vector<Token>& prompt) const {
    std::uint64_t count = 0;
    while ((count + 1) * page_size_ < prompt.size() &&
           published_.contains(key(name_space, std::span(prompt).first((count + 1) * page_size_)))) {
      ++count;
    }
    return count;
  }

  // Tokens that the best continuation shares with the prompt behind `num_pages`: tries all that could be published.
  std::size_t partial_in_model(std::uint64_t name_space, const std::vector<Token>& prompt,
                               std::uint64_t num_pages) const {
    if (prompt.empty()) return 0;
    const std::size_t begin = num_pages * page_size_;
    const std::size_t limit = std::min<std::size_t>(prompt.size() - 1 - begin, page_size_ - 1);
    std::size_t best = 0;
    for (std::uint32_t bits = 0; bits < 1U << 2 * page_size_; ++bits) {
      std::vector<Token> prefix(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(begin));
      for (std::uint32_t i = 0; i < page_size_; ++i) prefix.push_back(static_cast<Token>(bits >> 2 * i & 3U));
      std::size_t common = 0;
      while (common < limit && prefix[begin + common] == prompt[begin + common]) ++common;
      if (common > best && published_.contains(key(name_space, prefix))) best = common;
    }
    return best;
  }

  void check_values(std::size_t index) {
    const Live& live = live_[index];
    ASSERT_EQ(live.sequence.num_tokens(), live.tokens.size());
    ASSERT_EQ(live.sequence.pages().size(), (live.tokens.size() + page_size_ - 1) / page_size_);
    std::uint64_t expected = 0;
    for (std::size_t t = 0; t < live.tokens.size(); ++t) {
      expected = value_of(live.name_space, expected, live.tokens[t]);
      ASSERT_EQ(cached_.value(live.sequence, t), expected) << "token " << t;
    }
  }

  void poll_events() {
    cached_.index().poll_events(
        [](void* user, const CacheEvent& event) noexcept { static_cast<PrefixMachine*>(user)->on_event(event); }, this);
  }
  void on_event(const CacheEvent& event) {
    if (event.kind == CacheEventKind::kCleared) {
      published_.clear();
      return;
    }
    std::uint64_t& k = key_of_[static_cast<std::size_t>(to_index(event.page))];
    if (event.kind == CacheEventKind::kEvicted) {
      EXPECT_EQ(published_.erase(k), 1U);
      return;
    }
    k = candidates_[static_cast<std::size_t>(to_index(event.page))];
    EXPECT_TRUE(published_.emplace(k, event.page).second) << "a prefix was published twice";
  }

  std::uint32_t page_size_;
  CachedStore cached_;
  std::vector<Live> live_;
  std::vector<PinId> pins_;
  std::vector<Token> seen_;                              // a prompt that later ones begin with
  std::unordered_map<std::uint64_t, PageId> published_;  // by exact prefix
  std::vector<std::uint64_t> key_of_;                    // [capacity] of a published page
  std::vector<std::uint64_t> candidates_;                // [capacity] what a page stands for if it is stored
};

}  // namespace pagedkv::testing
