// Tests of merge_states: the state of a union of keys from the states of its parts.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "pagedkv/attention.h"

namespace pagedkv {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

TEST(MergeStates, WeighsOutputsByTheirSums) {
  std::vector<float> out_a = {1, 2}, lse_a = {std::log(3.0F)};
  const std::vector<float> out_b = {5, 10}, lse_b = {0};
  ASSERT_TRUE(merge_states(out_a, lse_a, out_b, lse_b).has_value());
  EXPECT_NEAR(out_a[0], 2, 1e-6);
  EXPECT_NEAR(out_a[1], 4, 1e-6);
  EXPECT_NEAR(lse_a[0], std::log(4.0), 1e-6);
}

TEST(MergeStates, EmptyStateChangesNothingOnEitherSide) {
  std::vector<float> out = {1, 2, 0, 0, 0, 0}, lse = {0.5F, kMinusInfinity, kMinusInfinity};
  const std::vector<float> other = {9, 9, 3, 4, 7, 7}, other_lse = {kMinusInfinity, 1.5F, kMinusInfinity};
  ASSERT_TRUE(merge_states(out, lse, other, other_lse).has_value());
  EXPECT_EQ(out, (std::vector<float>{1, 2, 3, 4, 0, 0}));
  EXPECT_EQ(lse, (std::vector<float>{0.5F, 1.5F, kMinusInfinity}));
}

TEST(MergeStates, OfRandomPartsIsTheStateOfTheWhole) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 30);
  for (int attempt = 0; attempt < 50; ++attempt) {
    std::vector<float> logits(40), values(40);
    for (float& logit : logits) logit = normal(random);
    for (float& value : values) value = normal(random);
    const auto state = [&](std::size_t begin, std::size_t end) {
      double sum = 0, weighted = 0;
      for (std::size_t i = begin; i < end; ++i) {
        sum += std::exp(static_cast<double>(logits[i]));
        weighted += std::exp(static_cast<double>(logits[i])) * static_cast<double>(values[i]);
      }
      return std::pair{weighted / sum, std::log(sum)};
    };
    const auto a = state(0, 13), b = state(13, 40), whole = state(0, 40);
    std::vector<float> out = {static_cast<float>(a.first)}, lse = {static_cast<float>(a.second)};
    const std::vector<float> out_b = {static_cast<float>(b.first)}, lse_b = {static_cast<float>(b.second)};
    ASSERT_TRUE(merge_states(out, lse, out_b, lse_b).has_value());
    EXPECT_NEAR(static_cast<double>(out[0]), whole.first, 1e-3);
    EXPECT_NEAR(static_cast<double>(lse[0]), whole.second, 1e-4);
  }
}

TEST(MergeStates, RefusesSizesThatDoNotMatch) {
  std::vector<float> two = {1, 2}, one = {1}, three = {1, 2, 3};
  EXPECT_EQ(merge_states(two, one, three, one).error(), Errc::kInvalidArgument);
  EXPECT_EQ(merge_states(two, one, two, two).error(), Errc::kInvalidArgument);
  EXPECT_EQ(merge_states(three, two, three, two).error(), Errc::kInvalidArgument);
  EXPECT_EQ(two, (std::vector<float>{1, 2}));
}

}  // namespace
}  // namespace pagedkv
