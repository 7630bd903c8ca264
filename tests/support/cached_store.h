// Sequences over a prefix index, opened and committed as the cache does, without attention.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "memory/os_memory.h"
#include "pool/pool_impl.h"
#include "prefix/prefix_index.h"
#include "sequence/control.h"
#include "sequence/sequence_store.h"

namespace pagedkv::testing {

/// The value that stands for K and V of the last of `tokens`: it depends on all of them and on the namespace.
inline std::uint64_t value_of(std::uint64_t name_space, std::uint64_t value_before, Token token) {
  std::uint64_t x = value_before * 0x9e3779b97f4a7c15U + name_space * 0x632be59bd9b4e019U +
                    static_cast<std::uint64_t>(static_cast<std::uint32_t>(token)) + 1;
  x ^= x >> 29;
  return x * 0xbf58476d1ce4e5b9U;
}

class CachedStore {
 public:
  CachedStore(std::uint64_t capacity_pages, std::uint32_t page_size, const PrefixCacheOptions& options = {})
      : page_size_(page_size),
        pool_(PagePool::create({.page_bytes = page_size * sizeof(std::uint64_t),
                                .capacity_pages = capacity_pages,
                                .huge_pages = HugePages::kNever})
                  .value()),
        store_(SequenceStore::create(pool_, page_size).value()),
        index_(prefix::PrefixIndex::create(pool_.impl(), page_size, options).value()) {}

  /// Opens a sequence with the longest cached prefix of all but the last token.
  Sequence open(std::span<const Token> tokens, std::string_view salt = {},
                std::span<const RetentionRange> retention = {}) {
    Sequence sequence = store_.open().value();
    Sequence::Control& control = *sequence.control();
    control.tables[0].chain.name_space = index_->acquire(salt, {}).value();
    if (tokens.empty()) return sequence;
    control.token_ids.assign(tokens.begin(), tokens.end());
    auto& table = control.tables[0].pages;
    table.resize((tokens.size() - 1) / page_size_);
    const prefix::Match match = index_->match(control.tables[0].chain, tokens.first(tokens.size() - 1),
                                              {table.data(), table.size()}, retention);
    table.resize(match.num_pages);
    control.num_tokens = match.num_pages * page_size_;
    if (match.partial != kNullPage) adopt_partial(control, match);
    control.cached_tokens = control.num_tokens;
    return sequence;
  }
  Sequence open(std::initializer_list<Token> tokens, std::string_view salt = {}) {
    return open(std::span<const Token>(tokens.begin(), tokens.size()), salt);
  }

  /// Appends tokens, stores their values, publishes full pages. False if pages ran out.
  bool append(Sequence& sequence, std::span<const Token> tokens, std::uint64_t name_space = 0,
              std::span<const RetentionRange> retention = {}) {
    Sequence::Control& control = *sequence.control();
    const sequence::ReserveItem item{
        .control = &control, .num_new_tokens = static_cast<std::uint32_t>(tokens.size()), .tokens = tokens};
    const Result<void> reserved = sequence::reserve(*store_.impl(), {&item, 1});
    if (!reserved) return false;
    const std::uint64_t begin = control.num_tokens;
    std::uint64_t before = begin == 0 ? 0 : value(sequence, begin - 1);
    for (std::uint64_t t = 0; t < tokens.size(); ++t) {
      before = value_of(name_space, before, tokens[t]);
      *slot(control.pages()[(begin + t) / page_size_], (begin + t) % page_size_) = before;
    }
    sequence::commit(control, tokens.size());
    publish(sequence, retention);
    return true;
  }
  /// Opens, computes the rest of the prompt, publishes.
  Sequence prefill(std::span<const Token> tokens, std::string_view salt = {},
                   std::span<const RetentionRange> retention = {}) {
    Sequence sequence = open(tokens, salt, retention);
    EXPECT_TRUE(append(sequence, tokens.subspan(sequence.num_tokens()), 0, retention));
    return sequence;
  }

  std::uint64_t publish(Sequence& sequence, std::span<const RetentionRange> retention = {}) {
    Sequence::Control& control = *sequence.control();
    auto& table = control.tables[0].pages;
    const std::size_t known = std::min<std::size_t>(control.token_ids.size(), control.num_tokens);
    return index_->publish(control.tables[0].chain, std::span<const Token>(control.token_ids).first(known),
                           {table.data(), table.size()}, retention);
  }

  /// Pins the full pages of the published prefix of `tokens`.
  Result<PinId> pin(std::span<const Token> tokens, std::string_view salt = {}) {
    PrefixChain chain;
    chain.name_space = index_->acquire(salt, {}).value();
    std::vector<PageId> pages(tokens.size() / page_size_);
    const prefix::Match match = index_->match(chain, tokens, pages);
    if (match.partial != kNullPage) {
      EXPECT_TRUE(pool_.release({&match.partial, 1}));
    }
    pages.resize(match.num_pages);
    std::reverse(pages.begin(), pages.end());
    return index_->pin(std::move(pages));
  }

  std::uint64_t value(const Sequence& sequence, std::uint64_t token) {
    return *slot(sequence.pages()[token / page_size_], token % page_size_);
  }
  std::uint64_t* slot(PageId page, std::uint64_t offset) {
    return reinterpret_cast<std::uint64_t*>(pool_.page_data(page)) + offset;
  }

  PagePool& pool() { return pool_; }
  SequenceStore& store() { return store_; }
  prefix::PrefixIndex& index() { return *index_; }

 private:
  void adopt_partial(Sequence::Control& control, const prefix::Match& match) {
    const Result<PageId> copy = pool_.allocate();
    if (copy) {
      std::memcpy(slot(*copy, 0), slot(match.partial, 0), match.partial_tokens * sizeof(std::uint64_t));
      control.tables[0].pages.push_back(*copy);
      control.num_tokens += match.partial_tokens;
    }
    EXPECT_TRUE(pool_.release({&match.partial, 1}));
  }

  std::uint32_t page_size_;
  PagePool pool_;
  SequenceStore store_;
  std::unique_ptr<prefix::PrefixIndex> index_;
};

/// Tokens first, first + 1, ...
inline std::vector<Token> run_of_tokens(std::size_t count, Token first = 0) {
  std::vector<Token> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = first + static_cast<Token>(i);
  return tokens;
}

}  // namespace pagedkv::testing
