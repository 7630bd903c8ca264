// The AMX kernels against the f64 oracle: shapes, groups, poisoned tails, page sizes, variants; independence of rows.
#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "cpu/amx.h"
#include "kernels/attend_case.h"
#include "kernels/kernel_table.h"

namespace pagedkv::testing {
namespace {

std::string describe(const AttendShape& s) {
  return "group " + std::to_string(s.group) + " rows " + std::to_string(s.num_rows) + " dims " +
         std::to_string(s.head_dim) + "/" + std::to_string(s.v_head_dim) + " page " + std::to_string(s.page_size) +
         " len " + std::to_string(s.kv_len) + " first_pos " + std::to_string(s.first_pos) + " causal " +
         std::to_string(s.causal) + " window " + std::to_string(s.window_left) + " cap " + std::to_string(s.soft_cap) +
         " alibi " + std::to_string(s.alibi) + " sinks " + std::to_string(s.sinks) + " mask " +
         std::to_string(static_cast<int>(s.mask)) + " nhd " + std::to_string(s.interleaved_heads) + " q " +
         to_string(s.q_dtype) + " kv " + to_string(s.kv_dtype) + " out " + to_string(s.out_dtype) + " scale " +
         std::to_string(s.query_scale) + " " + std::to_string(s.third_row_scale);
}

// Weights are rounded to bf16 before they meet V ~ N(0, 1), each by at most 2^-8 of itself: so the error of an output
// is at most 2^-8 max|v|, and its root mean square, over many elements, 2^-8 / sqrt(3) of the outputs' at most. The
// fast exponential adds 7.5e-5. A bf16 output is off by 2^-8 of itself again. Over f16 pages nothing is rounded to
// bf16; what f32 rounds grows with the logits.
constexpr double kLargestValue = 5.0;
constexpr double kExactError = 1e-5;

void expect_near(const AttendShape& shape, const AttendCase::Result& got, const AttendCase::Result& want) {
  ASSERT_EQ(got.out.size(), want.out.size());
  const double rounding = shape.out_dtype == DType::bf16 ? 1.0 / 256 : shape.out_dtype == DType::f16 ? 1.0 / 2048 : 0;
  const bool is_exact = shape.kv_dtype == DType::f16 && !shape.f16_as_bf16;
  const double largest = is_exact ? kExactError * shape.query_scale : kLargestValue / 256;
  double squared_error = 0, squared_out = 0;
  for (std::size_t i = 0; i < want.out.size(); ++i) {
    const double out = want.out[i], error = static_cast<double>(got.out[i]) - out;
    ASSERT_LE(std::abs(error), largest + rounding * std::abs(out)) << describe(shape) << " element " << i;
    squared_error += error * error, squared_out += out * out;
  }
  ASSERT_LE(std::sqrt(squared_error),
            ((is_exact ? kExactError * shape.query_scale : 3e-3) + rounding) * std::sqrt(squared_out))
      << describe(shape);
  for (std::size_t i = 0; i < want.lse.size(); ++i) {
    if (std::isinf(want.lse[i])) {
      ASSERT_EQ(got.lse[i], want.lse[i]) << describe(shape) << " row " << i;
    } else {
      ASSERT_NEAR(got.lse[i], want.lse[i], (is_exact ? kExactError : 2e-4) + 2e-6 * std::abs(want.lse[i]))
          << describe(shape) << " row " << i;
    }
  }
}

class AmxKernel : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cpu::amx_usable()) GTEST_SKIP() << "this machine has no AMX";
  }

  static const AttendKernel& kernel_for(const AttendCase& test_case, std::int32_t rows) {
    const AttendKernel* kernel = kernels::find_amx_attend(test_case.params(), rows);
    if (kernel == nullptr) throw std::logic_error("no AMX kernel takes this shape");
    return *kernel;
  }
  static void check(const AttendShape& shape) {
    AttendCase test_case(shape);
    expect_near(shape, test_case.run(kernel_for(test_case, shape.num_rows)), test_case.expected());
  }

  static bool is_taken(const AttendShape& shape) {
    return kernels::find_amx_attend(AttendCase(shape).params(), shape.num_rows) != nullptr;
  }

  // A decode over bf16 pages and, with more columns than are left to AVX-512, over f16 pages.
  static void check_decode(AttendShape shape) {
    check(shape);
    shape.kv_dtype = DType::f16;
    if (shape.num_rows * static_cast<std::int32_t>(shape.group) < 9 || !is_taken(shape)) return;
    for (const DType queries : {DType::f32, shape.q_dtype}) {
      shape.q_dtype = queries;
      check(shape);
    }
  }

  // Every kind of mask, with and without heads of its own, and positions other than the last ones.
  static void check_masks_and_positions(const AttendShape& plain) {
    for (const MaskKind mask : {MaskKind::kBool, MaskKind::kAdditive, MaskKind::kBits}) {
      AttendShape shape = plain;
      shape.mask = mask, shape.page_size = 3;
      check(shape);
      shape.mask_a_head = true, shape.causal = false, shape.sinks = true;
      check(shape);
    }
    AttendShape encoder = plain;
    encoder.causal = false, encoder.first_pos = 2;
    check(encoder);
    AttendShape early = plain;
    early.first_pos = 0;
    check(early);
  }
};

TEST_F(AmxKernel, DecodeMatchesOracleForEveryGroup) {
  for (std::uint32_t group = 3; group <= 16; ++group) {
    for (const std::int64_t len : {1, 15, 16, 17, 33, 64, 100, 300}) {
      check_decode({.group = group, .kv_len = len, .seed = group});
      check_decode({.group = group, .head_dim = 64, .v_head_dim = 64, .kv_len = len, .seed = group});
      check_decode({.group = group, .head_dim = 256, .v_head_dim = 256, .kv_len = len, .seed = group});
    }
  }
}

TEST_F(AmxKernel, DecodeMatchesOracleForEveryHeadDim) {
  for (const std::uint32_t group : {3U, 4U, 6U, 13U}) {
    for (const std::uint32_t dim : {32U, 33U, 40U, 63U, 80U, 96U, 112U, 160U, 192U, 576U}) {
      check_decode({.group = group, .head_dim = dim, .v_head_dim = dim, .kv_len = 70});
      check_decode({.group = group, .head_dim = dim, .v_head_dim = 64, .kv_len = 70});
      check_decode({.group = group, .head_dim = 128, .v_head_dim = dim, .kv_len = 70});
    }
  }
  check_decode({.group = 16, .head_dim = 576, .v_head_dim = 512, .kv_len = 200, .values_in_keys = true});
}

TEST_F(AmxKernel, DecodeMatchesOracleForEveryPageSizeAndLayout) {
  for (const std::uint32_t page_size : {1U, 3U, 5U, 16U, 24U, 32U, 64U, 256U}) {
    for (const bool interleaved : {false, true}) {
      for (const std::uint32_t group : {3U, 7U, 16U}) {
        check_decode({.group = group, .page_size = page_size, .kv_len = 211, .interleaved_heads = interleaved});
      }
    }
  }
}

TEST_F(AmxKernel, DecodeMatchesOracleForEveryVariant) {
  for (const std::uint32_t group : {1U, 2U, 4U, 5U, 8U, 16U}) {
    const std::int32_t rows = static_cast<std::int32_t>(16 / group > 3 ? 3 : 1);
    for (const std::int64_t len : {5, 130}) {
      const AttendShape plain{.group = group, .num_rows = rows, .kv_len = len};
      for (const std::int32_t window : {0, 1, 20, 64}) {
        AttendShape shape = plain;
        shape.window_left = window;
        check_decode(shape);
        shape.alibi = shape.sinks = true, shape.soft_cap = 5;
        check_decode(shape);
      }
      check_masks_and_positions(plain);
      if (rows * static_cast<std::int32_t>(group) >= 13) {  // as many as decode takes over f16 pages
        AttendShape f16 = plain;
        f16.kv_dtype = DType::f16, f16.q_dtype = DType::f32;
        check_masks_and_positions(f16);
      }
      AttendShape peaky = plain;
      peaky.query_scale = 40;
      check_decode(peaky);
    }
  }
}

TEST_F(AmxKernel, DecodeTakesQueriesAndOutputsOfEveryFormat) {
  for (const DType q : {DType::f32, DType::f16, DType::bf16}) {
    for (const DType out : {DType::f32, DType::f16, DType::bf16}) {
      for (const std::uint32_t group : {3U, 9U})
        check_decode({.group = group, .kv_len = 90, .q_dtype = q, .out_dtype = out});
    }
  }
}

TEST_F(AmxKernel, RowWithoutKeysGivesZerosAndMinusInfinity) {
  for (const DType pages : {DType::bf16, DType::f16}) {
    AttendShape shape{.group = 8, .num_rows = 2, .kv_len = 40, .first_pos = 100, .kv_dtype = pages, .window_left = 3};
    AttendCase test_case(shape);
    const AttendCase::Result result = test_case.run(kernel_for(test_case, 2));
    for (const float x : result.out) EXPECT_EQ(x, 0.f);
    for (const float x : result.lse) EXPECT_EQ(x, -std::numeric_limits<float>::infinity());
  }
}

// Two parts of the keys, merged by their lse in f64.
void expect_parts_merge(const AttendShape& shape, const AttendKernel& kernel, std::int64_t cut) {
  AttendCase test_case(shape);
  AttendCase::Result a = test_case.run(kernel, 1, 0, cut, 0, shape.num_rows, true);
  const AttendCase::Result b = test_case.run(kernel, 1, cut, shape.kv_len, 0, shape.num_rows, true);
  for (std::size_t row = 0; row < a.lse.size(); ++row) {
    const double la = a.lse[row], lb = b.lse[row], top = std::max(la, lb);
    const double wa = std::exp(la - top), wb = std::exp(lb - top);
    for (std::size_t d = 0; d < shape.v_head_dim; ++d) {
      float& x = a.out[row * shape.v_head_dim + d];
      x = static_cast<float>(
          (wa * static_cast<double>(x) + wb * static_cast<double>(b.out[row * shape.v_head_dim + d])) / (wa + wb));
    }
    a.lse[row] = static_cast<float>(top + std::log(wa + wb));
  }
  expect_near(shape, a, test_case.expected());
}

TEST_F(AmxKernel, DecodePartsMergeToTheWhole) {
  for (const std::uint32_t group : {4U, 7U, 16U}) {
    for (const std::int64_t cut : {1, 16, 50, 128, 199}) {
      AttendShape shape{.group = group, .kv_len = 200, .sinks = true};
      AttendCase test_case(shape);
      expect_parts_merge(shape, kernel_for(test_case, 1), cut);
      if (group < 16) continue;
      shape.kv_dtype = DType::f16;
      AttendCase f16(shape);
      expect_parts_merge(shape, kernel_for(f16, 1), cut);
    }
  }
}

TEST_F(AmxKernel, PrefillMatchesOracleForEveryGroup) {
  for (const std::uint32_t group : {1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U, 9U, 12U, 16U, 17U, 40U, 71U}) {
    const std::int32_t few = static_cast<std::int32_t>(16 / group) + 1;
    for (const std::int32_t rows : {few, few + 3, 37}) {
      check({.group = group, .num_rows = rows, .kv_len = rows, .seed = group});
      check({.group = group, .num_rows = rows, .kv_len = rows + 33, .seed = group});
    }
  }
}

TEST_F(AmxKernel, PrefillMatchesOracleOverManyBlocksAndChunks) {
  for (const std::int64_t len : {255, 256, 257, 511, 512, 513, 545, 800, 1100}) {
    check({.group = 4, .num_rows = 70, .kv_len = len});
    check({.group = 1, .num_rows = 130, .kv_len = len});
    check({.group = 4, .num_rows = 70, .kv_len = len, .window_left = 200});
  }
}

TEST_F(AmxKernel, PrefillMatchesOracleForEveryHeadDim) {
  for (const std::uint32_t dim : {1U, 7U, 16U, 31U, 32U, 40U, 64U, 80U, 96U, 112U, 160U, 192U, 256U, 288U}) {
    check({.group = 4, .head_dim = dim, .v_head_dim = dim, .num_rows = 20, .kv_len = 90});
    check({.group = 3, .head_dim = dim, .v_head_dim = 64, .num_rows = 20, .kv_len = 90});
    check({.group = 5, .head_dim = 128, .v_head_dim = dim, .num_rows = 20, .kv_len = 90});
  }
  check({.group = 128, .num_kv_heads = 2, .head_dim = 576, .v_head_dim = 512, .kv_len = 300, .values_in_keys = true});
  check({.group = 16, .head_dim = 576, .v_head_dim = 512, .num_rows = 40, .kv_len = 70, .values_in_keys = true});
}

TEST_F(AmxKernel, PrefillMatchesOracleForEveryPageSizeAndLayout) {
  for (const std::uint32_t page_size : {1U, 3U, 5U, 16U, 24U, 64U, 256U}) {
    for (const bool interleaved : {false, true}) {
      check({.group = 7, .page_size = page_size, .num_rows = 21, .kv_len = 211, .interleaved_heads = interleaved});
    }
  }
}

TEST_F(AmxKernel, PrefillMatchesOracleForEveryVariant) {
  for (const std::uint32_t group : {1U, 3U, 4U, 8U}) {
    const AttendShape plain{.group = group, .num_rows = 50, .kv_len = 330};
    for (const std::int32_t window : {0, 1, 20, 64, 300}) {
      AttendShape shape = plain;
      shape.window_left = window;
      check(shape);
      shape.alibi = shape.sinks = true, shape.soft_cap = 5;
      check(shape);
    }
    check_masks_and_positions(plain);
    for (const float scale : {10.f, 100.f}) {  // the maximum of the first tile is far from the true one
      AttendShape peaky = plain;
      peaky.query_scale = scale, peaky.kv_len = 900;
      check(peaky);
    }
  }
}

TEST_F(AmxKernel, PrefillMatchesOracleAtLogitsOfAnySize) {
  for (const float scale : {1e5F, 1e7F, 1e9F, 1e12F, 1e20F, 1e30F}) {
    for (const std::uint32_t group : {1U, 4U}) {
      AttendShape shape{.group = group, .num_rows = 70, .kv_len = 700, .query_scale = scale};
      check(shape);
      shape.causal = false, shape.first_pos = 0, shape.window_left = 300, shape.sinks = true;
      check(shape);
    }
  }
}

TEST_F(AmxKernel, PrefillTakesQueriesAndOutputsOfEveryFormat) {
  for (const DType q : {DType::f32, DType::f16, DType::bf16}) {
    for (const DType out : {DType::f32, DType::f16, DType::bf16}) {
      check({.group = 3, .num_rows = 30, .kv_len = 90, .q_dtype = q, .out_dtype = out});
      check({.group = 3, .head_dim = 192, .num_rows = 30, .kv_len = 90, .q_dtype = q, .out_dtype = out});
    }
  }
}

TEST_F(AmxKernel, PrefillPartsMergeToTheWhole) {
  for (const std::int64_t cut : {1, 16, 50, 256, 700}) {
    AttendShape shape{.group = 4, .num_rows = 60, .kv_len = 800, .sinks = true};
    AttendCase test_case(shape);
    expect_parts_merge(shape, kernel_for(test_case, shape.num_rows), cut);
  }
}

// Rows of a task, alone and in other company, bit for bit: also where the overflow of a neighbour takes a block back,
// and where a neighbour's mask or window has a tile bent and hidden before the softmax instead of on its way.
void expect_rows_alone_as_together(const AttendShape& shape, const AttendKernel& kernel, AttendCase& test_case) {
  const AttendCase::Result all = test_case.run(kernel);
  for (const std::int32_t first : {0, 1, 17, 50, 99}) {
    const std::int32_t count = std::min(first % 2 == 0 ? 23 : 1, 100 - first);
    const std::int64_t end = 600 + first + count;  // keys past the rows' own positions are no task's business
    const AttendCase::Result some = test_case.run(kernel, 1, 0, end, first, count);
    SCOPED_TRACE(describe(shape));
    ASSERT_NO_FATAL_FAILURE(expect_same_rows(shape, some, all, first));
  }
}

TEST_F(AmxKernel, PrefillRowDoesNotDependOnItsNeighbours) {
  const AttendShape plain{.num_rows = 100, .kv_len = 700, .sinks = true};
  std::vector<AttendShape> variants(9, plain);
  variants[1].soft_cap = 5;
  variants[2].alibi = true;
  variants[3].soft_cap = 5, variants[3].alibi = true, variants[3].mask = MaskKind::kBool;
  variants[4].mask = MaskKind::kAdditive;
  variants[5].kv_dtype = DType::f16;
  variants[6].kv_dtype = variants[7].kv_dtype = DType::f16, variants[6].f16_as_bf16 = variants[7].f16_as_bf16 = true;
  variants[7].soft_cap = 5;
  variants[8].third_row_scale = 1e12F;
  for (AttendShape shape : variants) {
    for (const std::uint32_t group : {1U, 4U, 7U}) {
      for (const float scale : {1.f, 30.f}) {
        for (const std::int32_t window : {-1, 90}) {
          shape.group = group, shape.query_scale = scale, shape.window_left = window;
          AttendCase test_case(shape);
          ASSERT_NO_FATAL_FAILURE(
              expect_rows_alone_as_together(shape, kernel_for(test_case, shape.num_rows), test_case));
        }
      }
    }
  }
}

}  // namespace
}  // namespace pagedkv::testing
