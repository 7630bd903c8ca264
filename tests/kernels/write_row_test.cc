// Conversion of whole rows on every target: as one element at a time, of every 16-bit pattern and around every
// rounding.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cpu/targets.h"
#include "format/convert.h"
#include "kernels/write.h"
#include "pagedkv/cpu.h"

namespace pagedkv::kernels {
namespace {

constexpr DType kFormats[] = {DType::f32, DType::f16, DType::bf16};

/// f32 as they come: the values of all f16 and bf16, what lies halfway to the next one, and the neighbours of that; odd
/// NaN, subnormals, infinities and what overflows. No multiple of any vector's length.
std::vector<float> numbers() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> all = {0.0F, -0.0F, 65519.0F, 65520.0F, -1e5F, 3e38F, 1e-45F, -1e-40F};
  for (const std::uint32_t nan : {0x7F800001U, 0xFF800001U, 0x7FC00000U, 0x7FFFFFFFU, 0xFFFF8000U}) {
    all.push_back(std::bit_cast<float>(nan));
  }
  for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
    for (const float value :
         {format::to_f32(f16_t{static_cast<std::uint16_t>(bits)}), std::bit_cast<float>(bits << 16)}) {
      const float f16_half = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | 0x1000U),
                  bf16_half = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | 0x8000U);
      for (const float middle : {value, f16_half, bf16_half}) {
        all.insert(all.end(), {std::nextafter(middle, -kInfinity), middle, std::nextafter(middle, kInfinity)});
      }
    }
  }
  if (all.size() % 8 == 0) all.push_back(1.0F);
  return all;
}

/// As `to`, element by element.
std::vector<std::byte> converted(const std::vector<std::byte>& from, DType from_dtype, DType to_dtype) {
  const std::size_t count = from.size() / size_of(from_dtype);
  std::vector<std::byte> to(count * size_of(to_dtype));
  for (std::size_t i = 0; i < count; ++i) {
    format::store_element(to.data(), i, to_dtype, format::load_element(from.data(), i, from_dtype));
  }
  return to;
}

// Bit for bit, but for which NaN a NaN is.
void expect_same(const std::vector<std::byte>& got, const std::vector<std::byte>& want, DType dtype) {
  const std::size_t size = size_of(dtype);
  for (std::size_t i = 0; i * size < want.size(); ++i) {
    if (std::equal(got.begin() + static_cast<std::ptrdiff_t>(i * size),
                   got.begin() + static_cast<std::ptrdiff_t>((i + 1) * size),
                   want.begin() + static_cast<std::ptrdiff_t>(i * size))) {
      continue;
    }
    const float g = format::load_element(got.data(), i, dtype), w = format::load_element(want.data(), i, dtype);
    ASSERT_TRUE(std::isnan(g) && std::isnan(w)) << i << ": " << g << " for " << w;
  }
}

TEST(WriteRow, ConvertsAsOneElementAtATime) {
  const std::vector<float> values = numbers();
  const auto* const bytes = reinterpret_cast<const std::byte*>(values.data());
  const std::vector<std::byte> floats(bytes, bytes + values.size() * sizeof(float));
  for (const TargetInfo& target : targets()) {
    if (!target.available) continue;
    const WriteRowFn write_row = find_write_row(cpu::target_of(target));
    for (const DType from_dtype : kFormats) {
      const std::vector<std::byte> from = converted(floats, DType::f32, from_dtype);
      for (const DType to_dtype : kFormats) {
        for (const bool stream : {false, true}) {
          SCOPED_TRACE(std::string(target.name) + ": " + to_string(from_dtype) + " to " + to_string(to_dtype));
          std::vector<std::byte> got(values.size() * size_of(to_dtype));
          write_row(got.data(), to_dtype, from.data(), from_dtype, values.size(), stream);
          fence();
          expect_same(got, converted(from, from_dtype, to_dtype), to_dtype);
        }
      }
    }
  }
}

}  // namespace
}  // namespace pagedkv::kernels
