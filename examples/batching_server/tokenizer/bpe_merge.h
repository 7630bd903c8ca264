// Byte-pair merging in O(n log n): the best pair of neighbours is joined until no pair is in the vocabulary.
#pragma once

#include <pagedkv/types.h>

#include <cstdint>
#include <queue>
#include <utility>
#include <vector>

namespace serving {

/// What joining two neighbours gives, and how urgent it is. Lower `rank` joins first; the leftmost of equals.
struct Merge {
  double rank;
  pagedkv::Token joined;
};

/// Joins `symbols` in place. `find(left, right)` returns a Merge, or none, as std::optional.
///
/// The plain loop (join the best pair, look at all pairs again) is quadratic, which a long prompt would make an attack.
/// Here a heap holds the pairs and a linked list the symbols; a pair whose symbols have changed since is skipped.
template <class FindMerge>
void bpe_merge(std::vector<pagedkv::Token>& symbols, const FindMerge& find) {
  struct Pair {
    double rank;
    std::uint32_t left, right;         // Positions of the symbols.
    pagedkv::Token left_id, right_id;  // Their ids when the pair was seen.
    pagedkv::Token joined;
  };
  const auto later = [](const Pair& a, const Pair& b) {
    return a.rank > b.rank || (a.rank == b.rank && a.left > b.left);
  };
  std::priority_queue<Pair, std::vector<Pair>, decltype(later)> pairs(later);

  constexpr pagedkv::Token kGone = -1;
  const auto count = static_cast<std::uint32_t>(symbols.size());
  std::vector<std::uint32_t> next(count), previous(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1;  // `count` is the end.
    previous[i] = i - 1;
  }
  const auto consider = [&](std::uint32_t left, std::uint32_t right) {
    if (const auto merge = find(symbols[left], symbols[right])) {
      pairs.push({merge->rank, left, right, symbols[left], symbols[right], merge->joined});
    }
  };
  for (std::uint32_t i = 0; i + 1 < count; ++i) consider(i, i + 1);

  while (!pairs.empty()) {
    const Pair best = pairs.top();
    pairs.pop();
    if (symbols[best.left] != best.left_id || symbols[best.right] != best.right_id || next[best.left] != best.right) {
      continue;
    }
    symbols[best.left] = best.joined;
    symbols[best.right] = kGone;
    next[best.left] = next[best.right];
    if (next[best.left] < count) {
      previous[next[best.left]] = best.left;
      consider(best.left, next[best.left]);
    }
    if (best.left > 0) consider(previous[best.left], best.left);
  }
  std::erase(symbols, kGone);
}

}  // namespace serving
