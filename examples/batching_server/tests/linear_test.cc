// A product's rows must not depend on the batch: everything that the server promises about equal output rests on it.
#include "model/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>

namespace serving {
namespace {

std::vector<float> random_values(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

struct Shape {
  std::size_t out, in;
};
class LinearShapes : public ::testing::TestWithParam<Shape> {};

TEST_P(LinearShapes, ProductIsCloseToDoubleArithmetic) {
  const auto [out, in] = GetParam();
  const std::size_t rows = 5;
  const auto weights = random_values(out * in, 1);
  const auto x = random_values(padded_rows(rows) * in, 2);
  std::vector<float> y(padded_rows(rows) * out);
  for (WeightType type : {WeightType::kF32, WeightType::kBf16}) {
    Linear(weights, out, in, type).multiply(x.data(), rows, y.data());
    // A bf16 product carries the rounding of two factors (2^-9 each); an f32 one only that of the sum.
    const double relative = type == WeightType::kBf16 ? 2.1 * 0x1p-9 : static_cast<double>(in) * 0x1p-24;
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t column = 0; column < out; ++column) {
        double sum = 0, magnitude = 0;
        for (std::size_t i = 0; i < in; ++i) {
          const double term = double{x[row * in + i]} * weights[column * in + i];
          sum += term;
          magnitude += std::abs(term);
        }
        ASSERT_NEAR(y[row * out + column], sum, relative * magnitude) << row << " " << column;
      }
    }
  }
}

TEST_P(LinearShapes, RowIsBitwiseTheSameInAnyBatchAndAtAnyPlace) {
  const auto [out, in] = GetParam();
  const std::size_t rows = 150;
  const auto weights = random_values(out * in, 3);
  const auto x = random_values(2 * padded_rows(rows) * in, 4);
  for (WeightType type : {WeightType::kF32, WeightType::kBf16}) {
    const Linear linear(weights, out, in, type);
    std::vector<float> whole(padded_rows(rows) * out), part(padded_rows(rows) * out);
    linear.multiply(x.data(), rows, whole.data());
    for (std::size_t count : {1U, 2U, 3U, 4U, 5U, 7U, 8U, 15U, 16U, 17U, 31U, 33U, 63U, 64U, 65U, 100U}) {
      for (std::size_t first : {0U, 1U, 17U, 49U}) {
        linear.multiply(x.data() + first * in, count, part.data());
        ASSERT_EQ(std::memcmp(part.data(), whole.data() + first * out, count * out * sizeof(float)), 0)
            << count << " rows from " << first;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LinearShapes,
                         ::testing::Values(Shape{64, 64}, Shape{32, 64}, Shape{172, 64}, Shape{64, 172}, Shape{512, 64},
                                           Shape{300, 32}, Shape{1376, 256}, Shape{256, 688}),
                         [](const auto& instance) {
                           return std::to_string(instance.param.out) + "x" + std::to_string(instance.param.in);
                         });

}  // namespace
}  // namespace serving
