// Tests of single-element conversions: every 16-bit pattern, and rounding to nearest even between them.
#include "format/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace pagedkv::format {
namespace {

// The value of an f16 by its definition.
double value_of(f16_t half) {
  const double sign = (half.bits & 0x8000U) != 0 ? -1 : 1;
  const int exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
  if (exponent == 31) return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

TEST(Convert, EveryF16WidensToItsValue) {
  for (unsigned bits = 0; bits < 0x10000U; ++bits) {
    const f16_t half{static_cast<std::uint16_t>(bits)};
    const double want = value_of(half), got = static_cast<double>(to_f32(half));
    ASSERT_TRUE(std::isnan(want) ? std::isnan(got) : got == want) << bits;
    ASSERT_TRUE(std::isnan(want) || std::signbit(got) == std::signbit(want)) << bits;
  }
}

TEST(Convert, EveryF16AndBf16SurvivesTheWayToF32AndBack) {
  for (unsigned bits = 0; bits < 0x10000U; ++bits) {
    const f16_t half{static_cast<std::uint16_t>(bits)};
    ASSERT_TRUE(std::isnan(to_f32(half)) || to_f16(to_f32(half)).bits == bits) << bits;
    const bf16_t brain{static_cast<std::uint16_t>(bits)};
    ASSERT_TRUE(std::isnan(to_f32(brain)) || to_bf16(to_f32(brain)).bits == bits) << bits;
  }
}

TEST(Convert, NumbersBetweenTwoF16GoToTheNearestAndTiesToEven) {
  for (unsigned bits = 0; bits < 0x7BFFU; ++bits) {
    const float low = to_f32(f16_t{static_cast<std::uint16_t>(bits)});
    const float high = to_f32(f16_t{static_cast<std::uint16_t>(bits + 1)});
    const float middle = low + (high - low) / 2;  // exact in f32
    ASSERT_EQ(to_f16(middle).bits, bits + bits % 2) << bits;
    ASSERT_EQ(to_f16(std::nextafter(middle, 0.0F)).bits, bits) << bits;
    ASSERT_EQ(to_f16(std::nextafter(middle, 1e9F)).bits, bits + 1) << bits;
    ASSERT_EQ(to_f16(-middle).bits, 0x8000U | (bits + bits % 2)) << bits;
  }
}

TEST(Convert, NumbersBetweenTwoBf16GoToTheNearestAndTiesToEven) {
  for (unsigned bits = 0; bits < 0x7F7FU; ++bits) {
    const float middle = std::bit_cast<float>(bits << 16 | 0x8000U);
    ASSERT_EQ(to_bf16(middle).bits, bits + bits % 2) << bits;
    ASSERT_EQ(to_bf16(std::bit_cast<float>(bits << 16 | 0x7FFFU)).bits, bits) << bits;
    ASSERT_EQ(to_bf16(std::bit_cast<float>(bits << 16 | 0x8001U)).bits, bits + 1) << bits;
  }
}

TEST(Convert, LargeNumbersOverflowToInfinityAndNanStaysNan) {
  EXPECT_EQ(to_f16(65519.0F).bits, 0x7BFF);
  EXPECT_EQ(to_f16(65520.0F).bits, 0x7C00);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7F80);
  EXPECT_TRUE(std::isnan(to_f32(to_f16(std::nanf("")))));
  EXPECT_TRUE(std::isnan(to_f32(to_bf16(std::bit_cast<float>(0x7F800001U)))));  // a payload that rounding would lose
}

}  // namespace
}  // namespace pagedkv::format
