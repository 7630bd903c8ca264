// A treap over entries: priorities fall from the root down, so that its shape does not depend on the order of
// insertion.
#include "prefix/sibling_tree.h"

#include <algorithm>

namespace pagedkv::prefix {
namespace {

// Different for different pages, and without a pattern in common with their tokens.
std::uint32_t priority(std::int32_t page) noexcept {
  auto x = static_cast<std::uint32_t>(page) * 0x9e3779b1U;
  x ^= x >> 15;
  x *= 0x85ebca6bU;
  return x ^ x >> 13;
}

}  // namespace

// By tokens; pages of equal ones, which only a hash that contradicts itself lets be, by id.
bool SiblingTree::is_before(std::int32_t a, std::int32_t b) const noexcept {
  const Token *const x = tokens_of(a), *const y = tokens_of(b);
  const auto differs = std::mismatch(x, x + page_size_, y);
  return differs.first == x + page_size_ ? a < b : *differs.first < *differs.second;
}

void SiblingTree::insert(std::int32_t page) noexcept {
  std::int32_t* link = root_;
  while (*link >= 0 && priority(*link) > priority(page)) link = &next(*link, page);
  // What was here is split into what comes before the page and what comes after it.
  std::int32_t rest = *link;
  *link = page;
  std::int32_t *before = &entries_[page].left, *after = &entries_[page].right;
  while (rest >= 0) {
    if (is_before(rest, page)) {
      *before = rest;
      before = &entries_[rest].right;
      rest = *before;
    } else {
      *after = rest;
      after = &entries_[rest].left;
      rest = *after;
    }
  }
  *before = *after = -1;
}

void SiblingTree::erase(std::int32_t page) noexcept {
  std::int32_t* link = root_;
  while (*link != page) link = &next(*link, page);
  // Its two subtrees are joined.
  std::int32_t before = entries_[page].left, after = entries_[page].right;
  while (before >= 0 && after >= 0) {
    if (priority(before) > priority(after)) {
      *link = before;
      link = &entries_[before].right;
      before = *link;
    } else {
      *link = after;
      link = &entries_[after].left;
      after = *link;
    }
  }
  *link = before >= 0 ? before : after;
}

// What begins most alike is a neighbour of `wanted` in the order, and both neighbours are on the way down to it.
SiblingTree::MostAlike SiblingTree::most_alike(std::span<const Token> wanted) const noexcept {
  MostAlike best;
  for (std::int32_t at = *root_; at >= 0;) {
    const Token* const known = tokens_of(at);
    const auto differs = std::mismatch(wanted.begin(), wanted.end(), known);
    const auto count = static_cast<std::size_t>(differs.first - wanted.begin());
    if (count > best.num_tokens) best = {at, count};
    if (count == wanted.size()) break;
    at = wanted[count] < known[count] ? entries_[at].left : entries_[at].right;
  }
  return best;
}

}  // namespace pagedkv::prefix
