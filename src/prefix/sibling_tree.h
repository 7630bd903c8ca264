// The pages that continue one page, ordered by their tokens: the one that begins most alike is found in O(log n).
//
// A treap with priorities made of page ids; its links are in the entries. Under the pool's lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pagedkv/types.h"
#include "prefix/entry.h"

namespace pagedkv::prefix {

/// A view of the tree whose root is `root`. Links to pages are ids, -1 for none.
class SiblingTree {
 public:
  /// Shape: entries [num_pages], tokens [num_pages][page_size]
  SiblingTree(Entry* entries, const Token* tokens, std::uint32_t page_size, std::int32_t& root) noexcept
      : entries_(entries), tokens_(tokens), page_size_(page_size), root_(&root) {}

  /// Requires: the page is in no tree and its tokens are in place
  /// Cost:     O(log n) on average
  void insert(std::int32_t page) noexcept;
  /// Requires: the page is in this tree, with the tokens it came with
  /// Cost:     O(log n) on average
  void erase(std::int32_t page) noexcept;

  struct MostAlike {
    std::int32_t page = -1;
    std::size_t num_tokens = 0;  ///< That it has in common with what was wanted, from the first on.
  };
  /// The page that begins with the most of `wanted`; none if no page begins with its first token.
  ///
  /// Shape: wanted.size() <= page_size
  /// Cost:  O(log n) on average
  [[nodiscard]] MostAlike most_alike(std::span<const Token> wanted) const noexcept;

 private:
  [[nodiscard]] const Token* tokens_of(std::int32_t page) const noexcept {
    return tokens_ + static_cast<std::int64_t>(page) * page_size_;
  }
  [[nodiscard]] bool is_before(std::int32_t a, std::int32_t b) const noexcept;
  /// Where the way to `page` goes on from `at`.
  [[nodiscard]] std::int32_t& next(std::int32_t at, std::int32_t page) const noexcept {
    return is_before(page, at) ? entries_[at].left : entries_[at].right;
  }

  Entry* entries_;
  const Token* tokens_;
  std::uint32_t page_size_;  // tokens
  std::int32_t* root_;
};

}  // namespace pagedkv::prefix
