// Masks over sequences that are cut into parts, at multiples of 1024 keys (8192 for more than 16 rows): on every target
// and in every format against the f64 oracle.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/expect_oracle.h"

namespace pagedkv::testing {
namespace {

constexpr std::int32_t kBlock = 64, kPart = 1024;  // keys that a kernel takes at a time, and those of a part

/// The problem under every kind of mask, one for all heads and one a head, causal or not.
void expect_oracle_under_masks(ProblemShape shape) {
  for (const MaskKind kind : {MaskKind::kBool, MaskKind::kAdditive, MaskKind::kBits}) {
    for (const bool per_head : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "mask kind " << static_cast<int>(kind) << (per_head ? " a head" : ""));
      shape.mask = kind;
      shape.mask_per_head = per_head;
      shape.mask_row_padding = per_head ? 0 : 7;
      shape.config.variant.causal = per_head;
      expect_oracle(shape);
    }
  }
}

/// A layer of one kv head whose decode brings `group` columns.
ProblemShape with_group(std::uint32_t group) {
  ProblemShape shape;
  shape.config.num_q_heads = group;
  shape.config.num_kv_heads = 1;
  return shape;
}

TEST(AttendLongMask, AgreesWithOracleOverDecode) {
  ProblemShape shape = with_group(4);
  shape.sequences = {{kPart, 1},     {kPart + 1, 1},     {3000, 1},          {2 * kPart + 1, 1},
                     {kPart + 7, 1}, {2 * kPart + 9, 1}, {2 * kPart + 9, 1}, {kPart + kBlock, 1}};
  shape.mask_spans = {
      {2, 0, 1, kBlock, 3 * kBlock},                                // whole blocks
      {2, 0, 1, kPart, 2 * kPart},                                  // a whole part between two others
      {2, 0, 1, 2 * kPart + kBlock, 2 * kPart + 3 * kBlock, true},  // blocks without a hidden key
      {3, 0, 1, 0, 2 * kPart},                                      // all but the last part, of one key
      {3, 0, 1, 2 * kPart, 2 * kPart + 1, true},
      {4, 0, 1, 0, kPart + 7},              // everything
      {5, 0, 1, kPart - 1, 2 * kPart + 9},  // all but the first part
      {6, 0, 1, kPart / 2, 2 * kPart + 1},  // across both cuts
      {7, 0, 1, 0, kPart + kBlock, true},   // nothing
  };
  expect_oracle_under_masks(shape);
}

TEST(AttendLongMask, AgreesWithOracleOverDecodeOfEveryGroup) {
  for (const std::uint32_t group : {1U, 3U, 16U}) {
    SCOPED_TRACE(group);
    ProblemShape shape = with_group(group);
    shape.sequences = {{2500, 1}, {kPart + 100, 1}};
    shape.mask_spans = {{0, 0, 1, kPart, 2 * kPart}, {0, 0, 1, 0, 2 * kBlock, true}, {1, 0, 1, 3 * kBlock, kPart}};
    expect_oracle_under_masks(shape);
  }
}

// Rows of a tree see what came before it, and of the tree their ancestors.
TEST(AttendLongMask, AgreesWithOracleOverSpeculativeTrees) {
  for (const std::uint32_t group : {2U, 5U}) {
    SCOPED_TRACE(group);
    ProblemShape shape = with_group(group);
    shape.sequences = {{2 * kPart + 3, 7}, {kPart + 10, 10}, {1500, 16}, {2500, 5}};
    shape.mask_spans = {
        {0, 0, 7, 0, 2 * kPart - 4, true},  // the tree lies on both sides of a cut
        {1, 0, 10, 0, kPart, true},         // and here fills the last part
        {1, 4, 5, 0, kPart + 10},           // a row that sees nothing
        {2, 0, 16, 5 * kBlock, kPart},      // hidden from all rows
        {2, 3, 9, kPart, 1500},             // a part hidden from some of them
        {2, 9, 10, 0, 1500},                // a row that sees nothing
        {3, 0, 4, 0, 2 * kPart},            // parts of which one row alone sees a key
        {3, 4, 5, 0, 2 * kPart, true},
    };
    expect_oracle_under_masks(shape);
  }
}

TEST(AttendLongMask, AgreesWithOracleOverPrefill) {
  constexpr std::int32_t kLongPart = 8 * kPart;
  ProblemShape shape = with_group(2);
  // Parts of 1024 keys, of 8192, and none.
  shape.sequences = {{kPart + 16, 16}, {kLongPart + 70, 17}, {kPart + 100, 70}, {kPart + 140, 130}};
  shape.mask_spans = {
      {1, 0, 17, kPart, 3 * kPart},            // hidden from all rows
      {1, 0, 17, 4 * kPart, 5 * kPart, true},  // and seen by all
      {1, 5, 6, 0, kLongPart + 70},            // a row that sees nothing
      {1, 7, 9, 0, kLongPart},                 // rows that see the last part alone
      {1, 9, 12, kLongPart, kLongPart + 70},   // and the first one alone
      {2, 0, 30, 2 * kBlock, kPart + kBlock},  // blocks that rows of other tiles see
      {2, 66, 67, 0, kPart + 100},             // a row that sees nothing
      {3, 0, 130, 0, kPart},                   // all but the newest blocks
      {3, 20, 60, kPart, kPart + 140},         // rows that see nothing side by side
      {3, 125, 130, kBlock, 5 * kBlock, true},
  };
  expect_oracle_under_masks(shape);
}

TEST(AttendLongMask, AgreesWithOracleBesideEveryOtherVariant) {
  ProblemShape shape;
  shape.config.variant = {.window_left = 1500, .sink_tokens = 70, .logits_soft_cap = 20};
  shape.sinks = shape.alibi = true;
  shape.q_dtype = DType::bf16;
  shape.sequences = {{3000, 1}, {2700, 5}, {2 * kPart + 20, 20}};
  shape.mask_spans = {{0, 0, 1, 2 * kPart, 2 * kPart + 5 * kBlock},
                      {1, 0, 2, kPart, 2 * kPart},
                      {1, 2, 3, 0, 2700},  // sees its sink's logit alone
                      {2, 0, 20, kPart, kPart + 4 * kBlock},
                      {2, 8, 9, 0, kPart}};
  expect_oracle_under_masks(shape);
}

// The row's neighbours in the batch and in its sequence see keys.
TEST(AttendLongMask, RowThatSeesNothingOfAnyPartIsZeroAndMinusInfinity) {
  ProblemShape shape = with_group(2);
  shape.sequences = {{3000, 1}, {2500, 3}, {2500, 1}, {8 * kPart + 30, 20}};
  shape.mask_spans = {{0, 0, 1, 0, 3000}, {1, 1, 2, 0, 2500}, {3, 6, 7, 0, 8 * kPart + 30}};
  const std::vector<std::size_t> empty_rows = {0, 2, 5 + 6};
  for (const MaskKind kind : {MaskKind::kBool, MaskKind::kAdditive, MaskKind::kBits}) {
    shape.mask = kind;
    for (const StoredFormat& format : kStoredFormats) {
      format.set(shape.config);
      const Problem problem(shape);
      on_every_target(problem, [&](const char*, const Outputs&, const Outputs& got) {
        const std::size_t heads = shape.config.num_q_heads, width = heads * shape.config.head_dim;
        for (std::size_t row = 0; row < got.lse.size() / heads; ++row) {
          const bool is_empty = std::ranges::find(empty_rows, row) != empty_rows.end();
          for (std::size_t h = 0; h < heads; ++h) {
            ASSERT_EQ(got.lse[row * heads + h] == -std::numeric_limits<double>::infinity(), is_empty) << row;
          }
          const auto out = got.out.begin() + static_cast<std::ptrdiff_t>(row * width);
          const bool is_zero =
              std::all_of(out, out + static_cast<std::ptrdiff_t>(width), [](double x) { return x == 0; });
          ASSERT_EQ(is_zero, is_empty) << row;
        }
      });
    }
  }
}

}  // namespace
}  // namespace pagedkv::testing
