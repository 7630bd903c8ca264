// The interleaved cache, behaviour by behaviour.
#include "pagedkv/interleaved_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "support/resident_bytes.h"

namespace pagedkv {
namespace {

std::vector<float> rows_of(std::size_t first, std::size_t count, std::size_t dim, float offset) {
  std::vector<float> rows;
  for (std::size_t i = first * dim; i < (first + count) * dim; ++i)
    rows.push_back(std::sin(static_cast<float>(i)) + offset);
  return rows;
}

/// Attention of one query over the first `num_keys` rows of rows_of(0, ...).
std::vector<float> attention_of(const float* q, std::size_t num_keys, std::size_t dim) {
  const std::vector<float> k = rows_of(0, num_keys, dim, 0), v = rows_of(0, num_keys, dim, 1);
  std::vector<double> weights(num_keys);
  double sum = 0;
  for (std::size_t t = 0; t < num_keys; ++t) {
    double score = 0;
    for (std::size_t d = 0; d < dim; ++d) score += static_cast<double>(q[d]) * static_cast<double>(k[t * dim + d]);
    sum += weights[t] = std::exp(score / std::sqrt(static_cast<double>(dim)));
  }
  std::vector<float> out(dim);
  for (std::size_t d = 0; d < dim; ++d) {
    double x = 0;
    for (std::size_t t = 0; t < num_keys; ++t) x += weights[t] / sum * static_cast<double>(v[t * dim + d]);
    out[d] = static_cast<float>(x);
  }
  return out;
}

TEST(InterleavedCache, RowsLieSideBySideInPlace) {
  InterleavedCache cache = InterleavedCache::create(200, 3).value();
  ASSERT_TRUE(cache.append(rows_of(0, 1, 3, 0), rows_of(0, 1, 3, 1)));
  const float* const first = cache.rows().data();
  ASSERT_TRUE(cache.append(rows_of(1, 150, 3, 0), rows_of(1, 150, 3, 1)));
  EXPECT_EQ(cache.num_tokens(), 151u);
  EXPECT_EQ(cache.rows().data(), first) << "nothing moves";
  ASSERT_EQ(cache.rows().size(), 151u * 2 * 3);
  for (std::size_t t = 0; t < 151; ++t) {
    for (std::size_t d = 0; d < 3; ++d) {
      EXPECT_EQ(cache.rows()[(t * 2) * 3 + d], rows_of(t, 1, 3, 0)[d]);
      EXPECT_EQ(cache.rows()[(t * 2 + 1) * 3 + d], rows_of(t, 1, 3, 1)[d]);
    }
  }
}

TEST(InterleavedCache, AttendsOverAllTokens) {
  for (const std::size_t dim : {1u, 8u, 65u}) {
    InterleavedCache cache = InterleavedCache::create(300, static_cast<std::uint32_t>(dim)).value();
    ASSERT_TRUE(cache.append(rows_of(0, 130, dim, 0), rows_of(0, 130, dim, 1)));
    const std::vector<float> q = rows_of(7, 1, dim, 0.5f);
    std::vector<float> out(dim);
    ASSERT_TRUE(cache.attend(q, out));
    const std::vector<float> want = attention_of(q.data(), 130, dim);
    for (std::size_t d = 0; d < dim; ++d) EXPECT_NEAR(out[d], want[d], 1e-5);
  }
}

TEST(InterleavedCache, LastQueriesSeeKeysUpToTheirOwn) {
  InterleavedCache cache = InterleavedCache::create(64, 4).value();
  ASSERT_TRUE(cache.append(rows_of(0, 10, 4, 0), rows_of(0, 10, 4, 1)));
  const std::vector<float> q = rows_of(3, 3, 4, 0.5f);
  std::vector<float> out(q.size());
  ASSERT_TRUE(cache.attend_last(q, out));
  for (std::size_t row = 0; row < 3; ++row) {
    const std::vector<float> want = attention_of(&q[row * 4], 8 + row, 4);
    for (std::size_t d = 0; d < 4; ++d) EXPECT_NEAR(out[row * 4 + d], want[d], 1e-5);
  }
}

TEST(InterleavedCache, EmptyGivesZeros) {
  const InterleavedCache cache = InterleavedCache::create(4, 2).value();
  std::vector<float> q(2, 1.0f), out(2, 9.0f);
  ASSERT_TRUE(cache.attend(q, out));
  EXPECT_EQ(out, std::vector<float>(2, 0.0f));
  EXPECT_EQ(cache.attend_last(q, out).error(), Errc::kInvalidArgument);
}

TEST(InterleavedCache, ResetEmptiesAndKeepsTheRowsWhereTheyWere) {
  InterleavedCache cache = InterleavedCache::create(100, 2).value();
  ASSERT_TRUE(cache.append(rows_of(0, 100, 2, 0), rows_of(0, 100, 2, 1)));
  const float* const first = cache.rows().data();
  cache.reset();
  EXPECT_EQ(cache.num_tokens(), 0u);
  EXPECT_TRUE(cache.rows().empty());
  ASSERT_TRUE(cache.append(rows_of(5, 1, 2, 0), rows_of(5, 1, 2, 1)));
  EXPECT_EQ(cache.rows().data(), first);
  EXPECT_EQ(cache.rows()[0], rows_of(5, 1, 2, 0)[0]);
}

TEST(InterleavedCache, MemoryComesWithTheTokens) {
  constexpr std::size_t kDim = 64, kRowBytes = 2 * kDim * sizeof(float), kOsPage = 65536;  // of any system
  InterleavedCache cache = InterleavedCache::create(1 << 24, kDim).value();                // 8 GiB if it were all had
  for (std::size_t tokens = 0; tokens < 3000; tokens += 1000) {
    ASSERT_TRUE(cache.append(rows_of(tokens, 1000, kDim, 0), rows_of(tokens, 1000, kDim, 1)));
    const std::uint64_t resident = testing::resident_bytes(cache.rows().data(), (1ull << 24) * kRowBytes);
    EXPECT_GE(resident, (tokens + 1000) * kRowBytes);
    EXPECT_LE(resident, (tokens + 1000) * kRowBytes + kOsPage);
  }
}

TEST(InterleavedCache, ShapesJustWithinTheirBoundsAreTaken) {
  EXPECT_TRUE(InterleavedCache::create(1, 1));
  EXPECT_TRUE(InterleavedCache::create(1ull << 30, 1));
  EXPECT_EQ(InterleavedCache::create((1ull << 30) + 1, 1).error(), Errc::kInvalidArgument);
  const InterleavedCache widest = InterleavedCache::create(7, 1024).value();
  EXPECT_EQ(widest.head_dim(), 1024u);
  EXPECT_EQ(widest.capacity_tokens(), 7u);
}

TEST(InterleavedCache, TakesExactlyAsManyTokensAsItHasRoomFor) {
  InterleavedCache cache = InterleavedCache::create(65, 2).value();
  ASSERT_TRUE(cache.append(rows_of(0, 64, 2, 0), rows_of(0, 64, 2, 1)));
  EXPECT_EQ(cache.append(rows_of(0, 2, 2, 0), rows_of(0, 2, 2, 1)).error(), Errc::kInvalidArgument);
  ASSERT_TRUE(cache.append(rows_of(64, 1, 2, 0), rows_of(64, 1, 2, 1)));
  EXPECT_EQ(cache.append(rows_of(0, 1, 2, 0), rows_of(0, 1, 2, 1)).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.num_tokens(), 65u);
  const std::vector<float> q = rows_of(9, 65, 2, 0.5f);
  std::vector<float> out(q.size());
  ASSERT_TRUE(cache.attend_last(q, out)) << "a query for every token";
  for (const std::size_t row : {std::size_t{0}, std::size_t{64}}) {
    const std::vector<float> want = attention_of(&q[row * 2], row + 1, 2);
    for (std::size_t d = 0; d < 2; ++d) EXPECT_NEAR(out[row * 2 + d], want[d], 1e-5);
  }
}

TEST(InterleavedCache, QueriesAndOutputsOfOtherSizesAreRefused) {
  InterleavedCache cache = InterleavedCache::create(8, 2).value();
  ASSERT_TRUE(cache.append(rows_of(0, 2, 2, 0), rows_of(0, 2, 2, 1)));
  std::vector<float> one(1), two(2), three(3), four(4), six(6);
  EXPECT_EQ(cache.attend(four, four).error(), Errc::kInvalidArgument) << "one row alone";
  EXPECT_EQ(cache.attend(two, four).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.attend_last({}, {}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.attend_last(three, three).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.attend_last(two, four).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.attend_last(six, six).error(), Errc::kInvalidArgument) << "three rows, two tokens";
  EXPECT_EQ(cache.append(two, one).error(), Errc::kInvalidArgument);
  EXPECT_TRUE(cache.attend_last(four, four));
  InterleavedCache moved = std::move(cache);
  // NOLINTBEGIN(bugprone-use-after-move)
  EXPECT_EQ(cache.attend_last(two, two).error(), Errc::kClosed);
  EXPECT_EQ(cache.num_tokens() + cache.capacity_tokens() + cache.head_dim(), 0u);
  EXPECT_TRUE(cache.rows().empty());
  cache.reset();
  // NOLINTEND(bugprone-use-after-move)
}

TEST(InterleavedCache, BadArgumentsAreRefusedAndNothingChanges) {
  EXPECT_EQ(InterleavedCache::create(0, 4).error(), Errc::kInvalidArgument);
  EXPECT_EQ(InterleavedCache::create(1ull << 40, 4).error(), Errc::kInvalidArgument);
  EXPECT_EQ(InterleavedCache::create(4, 0).error(), Errc::kInvalidArgument);
  EXPECT_EQ(InterleavedCache::create(4, 1025).error(), Errc::kInvalidArgument);
  InterleavedCache cache = InterleavedCache::create(4, 2).value();
  std::vector<float> two(2, 1.0f), three(3), ten(10);
  EXPECT_EQ(cache.append({}, {}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.append(three, three).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.append(two, ten).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.append(ten, ten).error(), Errc::kInvalidArgument) << "five rows do not fit";
  EXPECT_EQ(cache.num_tokens(), 0u);
  EXPECT_EQ(cache.attend(three, three).error(), Errc::kInvalidArgument);
  InterleavedCache moved = std::move(cache);
  EXPECT_EQ(cache.append(two, two).error(), Errc::kClosed);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(cache.attend(two, two).error(), Errc::kClosed);
}

}  // namespace
}  // namespace pagedkv
