// The tree of continuations against a plain search through all of them.
#include "prefix/sibling_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace pagedkv::prefix {
namespace {

constexpr std::uint32_t kPageSize = 5;

class SiblingTreeTest : public ::testing::Test {
 protected:
  SiblingTree tree() { return {entries.data(), tokens.data(), kPageSize, root}; }
  const Token* tokens_of(std::int32_t page) const {
    return tokens.data() + page * static_cast<std::ptrdiff_t>(kPageSize);
  }

  std::size_t longest(const std::vector<Token>& wanted) const {
    std::size_t most = 0;
    for (const std::int32_t page : members) {
      const auto differs = std::mismatch(wanted.begin(), wanted.end(), tokens_of(page));
      most = std::max(most, static_cast<std::size_t>(differs.first - wanted.begin()));
    }
    return most;
  }

  void expect_most_alike(const std::vector<Token>& wanted) {
    const SiblingTree::MostAlike found = tree().most_alike(wanted);
    ASSERT_EQ(found.num_tokens, longest(wanted));
    ASSERT_EQ(found.page < 0, found.num_tokens == 0);
    if (found.page < 0) return;
    ASSERT_NE(std::find(members.begin(), members.end(), found.page), members.end());
    ASSERT_TRUE(std::equal(wanted.begin(), wanted.begin() + static_cast<std::ptrdiff_t>(found.num_tokens),
                           tokens_of(found.page)));
  }

  std::size_t depth_below(std::int32_t page) const {
    return page < 0 ? 0 : 1 + std::max(depth_below(entries[index(page)].left), depth_below(entries[index(page)].right));
  }
  static std::size_t index(std::int32_t page) { return static_cast<std::size_t>(page); }

  std::vector<Entry> entries = std::vector<Entry>(2000);
  std::vector<Token> tokens = std::vector<Token>(2000 * kPageSize);
  std::vector<std::int32_t> members;
  std::int32_t root = -1;
};

TEST_F(SiblingTreeTest, FindsWhatAPlainSearchFindsThroughInsertionsAndErasures) {
  std::mt19937 random(11);
  std::vector<std::int32_t> outside(300);
  std::iota(outside.begin(), outside.end(), 0);
  for (int round = 0; round < 4000; ++round) {
    if (members.empty() || (random() % 2 == 0 && !outside.empty())) {
      std::swap(outside[random() % outside.size()], outside.back());
      const std::int32_t page = outside.back();
      outside.pop_back();
      // Few different tokens: many share a beginning, some are equal.
      for (std::uint32_t t = 0; t < kPageSize; ++t) {
        tokens[index(page) * kPageSize + t] = static_cast<Token>(random() % 3) - 1;
      }
      tree().insert(page);
      members.push_back(page);
    } else {
      std::swap(members[random() % members.size()], members.back());
      tree().erase(members.back());
      outside.push_back(members.back());
      members.pop_back();
    }
    std::vector<Token> wanted(random() % kPageSize);
    for (Token& token : wanted) token = static_cast<Token>(random() % 4) - 1;
    expect_most_alike(wanted);
  }
  for (const std::int32_t page : members) tree().erase(page);
  EXPECT_EQ(root, -1);
}

TEST_F(SiblingTreeTest, IsFlatAlsoWhenPagesComeInOrder) {
  for (std::int32_t page = 0; page < 2000; ++page) {
    std::fill_n(tokens.begin() + static_cast<std::ptrdiff_t>(index(page) * kPageSize), kPageSize, page);
    tree().insert(page);
  }
  EXPECT_LE(depth_below(root), 40u) << "a list would be 2000 deep";
  for (const Token token : {0, 1, 999, 1999}) EXPECT_EQ(tree().most_alike(std::vector<Token>(3, token)).page, token);
}

}  // namespace
}  // namespace pagedkv::prefix
