// Every kernel target that the machine runs, every format and every variant, against the f64 oracle.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/expect_oracle.h"

namespace pagedkv::testing {
namespace {

ProblemShape mixed() {
  ProblemShape shape;
  shape.sequences = {{100, 1}, {65, 40}, {1, 1}, {64, 3}, {0, 0}, {130, 1}};
  return shape;
}

TEST(Attend, AgreesWithOracleOverDecodeLengths) {
  ProblemShape shape;
  shape.sequences.clear();
  for (const std::int32_t length : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300}) {
    shape.sequences.push_back({length, 1});
  }
  expect_oracle(shape);
}

TEST(Attend, AgreesWithOracleOverLongSequencesInParts) {
  ProblemShape shape;
  shape.sequences = {{1023, 1}, {1024, 1}, {1025, 1}, {3000, 2}, {2100, 16}};
  expect_oracle(shape);
}

TEST(Attend, AgreesWithOracleOverPrefill) {
  ProblemShape shape;
  shape.sequences = {{100, 100}, {150, 37}, {64, 64}, {5, 5}, {300, 129}};
  expect_oracle(shape);
}

TEST(Attend, AgreesWithOracleOverHeadDims) {
  for (const auto& [k, v] : {std::pair{1U, 1U},
                             {3U, 5U},
                             {13U, 13U},
                             {16U, 16U},
                             {33U, 55U},
                             {64U, 64U},
                             {80U, 80U},
                             {96U, 96U},
                             {112U, 40U},
                             {128U, 96U},
                             {256U, 256U},
                             {576U, 512U},
                             {1024U, 1024U}}) {
    SCOPED_TRACE(::testing::Message() << k << "/" << v);
    ProblemShape shape;
    shape.config.head_dim = k;
    shape.config.v_head_dim = v;
    shape.sequences = {{70, 1}, {40, 9}};
    expect_oracle(shape);
  }
}

TEST(Attend, AgreesWithOracleOverGroups) {
  for (const auto& [q, kv] : {std::pair{1U, 1U},
                              {12U, 12U},
                              {9U, 3U},
                              {16U, 1U},
                              {28U, 4U},
                              {24U, 8U},
                              {10U, 2U},
                              {64U, 8U},
                              {34U, 2U},
                              {128U, 1U}}) {
    SCOPED_TRACE(::testing::Message() << q << "/" << kv);
    ProblemShape shape;
    shape.config.num_q_heads = q;
    shape.config.num_kv_heads = kv;
    shape.sequences = {{90, 1}, {75, 11}};
    expect_oracle(shape);
  }
}

TEST(Attend, AgreesWithOracleOverPageSizes) {
  for (const std::uint32_t page_size : {1U, 2U, 3U, 4U, 5U, 16U, 48U, 64U, 96U, 255U, 256U}) {
    SCOPED_TRACE(page_size);
    ProblemShape shape = mixed();
    shape.config.page_size = page_size;
    expect_oracle(shape);
  }
}

TEST(Attend, AgreesWithOracleOverLayouts) {
  for (const PageLayout layout : {PageLayout::kOurs, PageLayout::kTokenMajor, PageLayout::kApart}) {
    for (const bool padded : {false, true}) {
      ProblemShape shape = mixed();
      shape.layout = layout;
      shape.padded_table = padded;
      expect_oracle(shape);
    }
  }
}

TEST(Attend, AgreesWithOracleOverLatentPages) {
  ProblemShape shape;
  shape.config = {.num_q_heads = 16, .num_kv_heads = 1, .head_dim = 576, .v_head_dim = 512};
  shape.layout = PageLayout::kLatent;
  shape.sequences = {{130, 1}, {70, 5}};
  expect_oracle(shape);
}

TEST(Attend, AgreesWithOracleOverElementTypes) {
  for (const DType q : kFormats) {
    for (const DType out : kFormats) {
      ProblemShape shape = mixed();
      shape.q_dtype = q;
      shape.out_dtype = out;
      expect_oracle(shape);
    }
  }
}

TEST(Attend, AgreesWithOracleWithoutCausality) {
  ProblemShape shape;
  shape.config.variant.causal = false;
  shape.sequences = {{100, 7}, {10, 30, 0}, {1, 1}, {678, 20}, {0, 3, 0}};
  expect_oracle(shape);
}

TEST(Attend, AgreesWithOracleOverWindows) {
  for (const std::int32_t window : {0, 1, 3, 13, 64, 127, 5000}) {
    SCOPED_TRACE(window);
    ProblemShape shape;
    shape.config.variant.window_left = window;
    shape.sequences = {{100, 1}, {200, 150}, {1, 1}, {2500, 3}};
    expect_oracle(shape);
  }
}

TEST(Attend, AgreesWithOracleWithSinks) {
  for (const std::int32_t window : {-1, 10}) {
    ProblemShape shape;
    shape.config.variant.window_left = window;
    shape.sinks = true;
    shape.sequences = {{100, 1}, {90, 70}, {2500, 2}, {0, 2, 0}};
    expect_oracle(shape);
  }
}

TEST(Attend, AgreesWithOracleWithSinkTokensBesideWindows) {
  for (const std::uint32_t sink_tokens : {1U, 4U, 63U, 64U, 65U, 200U, 4000U, ~0U}) {
    for (const std::int32_t window : {0, 13, 100, 1500}) {
      SCOPED_TRACE(::testing::Message() << sink_tokens << " sink tokens, window " << window);
      ProblemShape shape;
      shape.config.variant.window_left = window;
      shape.config.variant.sink_tokens = sink_tokens;
      shape.out_dtype = DType::bf16;
      shape.sequences = {{100, 1}, {200, 150}, {1, 1}, {2500, 3}, {300, 20}, {40, 3, 200}, {0, 2, 0}};
      expect_oracle(shape);
    }
  }
}

TEST(Attend, AgreesWithOracleWithSinkTokensAndEveryOtherVariant) {
  ProblemShape shape = mixed();
  shape.sequences.push_back({1100, 2});
  shape.config.variant = {.sm_scale = 0.3F, .window_left = 20, .sink_tokens = 5, .logits_soft_cap = 20};
  shape.sinks = shape.alibi = true;
  for (const MaskKind mask : {MaskKind::kNone, MaskKind::kBits, MaskKind::kAdditive}) {
    shape.mask = mask;
    shape.config.variant.causal = true;
    expect_oracle(shape);
    shape.config.variant.causal = false;
    expect_oracle(shape);
  }
}

TEST(Attend, SinkTokensWithoutAWindowChangeNothing) {
  ProblemShape shape = mixed();
  const Problem without(shape);
  shape.config.variant.sink_tokens = 4;
  const Problem with(shape);
  for (const char* target : runnable_targets()) EXPECT_TRUE(*with.run(target) == *without.run(target)) << target;
}

TEST(Attend, KeysBetweenSinkTokensAndWindowAreNotRead) {
  ProblemShape shape;
  shape.config.page_size = 4;
  shape.config.variant.window_left = 9;
  shape.config.variant.sink_tokens = 4;
  shape.sequences = {{2000, 1}, {300, 40}};
  for (const StoredFormat& format : kStoredFormats) {
    format.set(shape.config);
    const Problem problem(shape);
    const auto want = problem.reference();
    const AttentionBatch batch = problem.batch();
    // Pages that no row sees become NaN: token 4 .. 1988 of the first sequence, 4 .. 248 of the second.
    auto* const pages = const_cast<std::byte*>(static_cast<const std::byte*>(problem.view().k));
    const auto poison = [&](std::int32_t first_index, std::int32_t last_index) {
      for (std::int32_t i = first_index; i <= last_index; ++i) {
        std::memset(pages + batch.kv_indices[static_cast<std::size_t>(i)] * problem.view().k_page_stride, 0xFF,
                    static_cast<std::size_t>(problem.view().k_page_stride));
      }
    };
    poison(1, 496);
    poison(batch.kv_indptr[1] + 1, batch.kv_indptr[1] + 61);
    for (const char* target : targets_of(shape.config)) {
      const auto got = problem.run(target);
      ASSERT_TRUE(got.has_value());
      EXPECT_EQ(problem.difference(*got, *want, arithmetic_of(target, problem.config())), "") << target;
    }
  }
}

TEST(Attend, AgreesWithOracleWithSoftCap) {
  for (const float cap : {1.0F, 30.0F, 50.0F, 1000.0F}) {
    ProblemShape shape = mixed();
    shape.config.variant.logits_soft_cap = cap;
    expect_oracle(shape);
  }
}

TEST(Attend, AgreesWithOracleWithAlibi) {
  ProblemShape shape = mixed();
  shape.alibi = true;
  expect_oracle(shape);
  shape.config.variant.causal = false;
  expect_oracle(shape);
}

TEST(Attend, AgreesWithOracleUnderMasks) {
  for (const MaskKind kind : {MaskKind::kBool, MaskKind::kAdditive, MaskKind::kBits}) {
    for (const bool per_head : {false, true}) {
      ProblemShape shape = mixed();
      shape.mask = kind;
      shape.mask_per_head = per_head;
      expect_oracle(shape);
      shape.config.variant.causal = false;
      expect_oracle(shape);
    }
  }
}

TEST(Attend, AgreesWithOracleWithAllVariantsAtOnce) {
  ProblemShape shape = mixed();
  shape.config.variant = {.sm_scale = 0.3F, .window_left = 40, .logits_soft_cap = 20};
  shape.sinks = shape.alibi = true;
  shape.mask = MaskKind::kAdditive;
  shape.q_dtype = DType::bf16;
  shape.out_dtype = DType::f16;
  expect_oracle(shape);
}

TEST(Attend, RowThatSeesNothingIsZeroAndMinusInfinity) {
  ProblemShape shape;
  shape.config.variant.window_left = 2;
  shape.sequences = {{0, 2, 0}, {5, 3, 20}};
  const Problem problem(shape);
  for (const char* target : runnable_targets()) {
    const auto got = problem.run(target);
    ASSERT_TRUE(got.has_value()) << got.error().what;
    for (const double value : got->out) EXPECT_EQ(value, 0.0);
    for (const double value : got->lse) EXPECT_EQ(value, -std::numeric_limits<double>::infinity());
  }
}

TEST(Attend, RowThatSeesNothingButASinkIsZeroAndTheSinksLogit) {
  ProblemShape shape;
  shape.sinks = true;
  shape.config.variant.window_left = 2;
  shape.sequences = {{0, 2, 0}, {5, 3, 20}, {3000, 20, 4000}};
  const Problem problem(shape);
  const auto want = problem.reference();
  ASSERT_TRUE(want.has_value()) << want.error().what;
  for (const char* target : runnable_targets()) {
    const auto got = problem.run(target);
    ASSERT_TRUE(got.has_value()) << got.error().what;
    for (const double value : got->out) EXPECT_EQ(value, 0.0);
    for (std::size_t i = 0; i < got->lse.size(); ++i) {
      const double sink = static_cast<double>(problem.config().variant.sinks[i % shape.config.num_q_heads]);
      EXPECT_NEAR(got->lse[i], sink, 1e-5) << target << " " << i;
      EXPECT_NEAR(want->lse[i], sink, 1e-9) << i;
    }
  }
}

TEST(Attend, LargeScoresNeitherOverflowNorVanish) {
  ProblemShape shape = mixed();
  shape.config.variant.sm_scale = 40;
  shape.q_dtype = DType::bf16;
  expect_oracle(shape);
}

// Rows see their own key alone, at logits of about +-1e37: each has all the weight of its row.
void expect_very_low_logits_seen(ProblemShape shape) {
  shape.config.num_q_heads = 6;
  shape.config.variant.window_left = 0;
  shape.q_scale = shape.k_scale = 3e18F;
  for (const DType format : {DType::f32, DType::bf16}) {
    shape.config.kv_dtype = format;
    const Problem problem(shape);
    on_every_target(problem, [](const char*, const Outputs& want, const Outputs& got) {
      EXPECT_TRUE(
          std::any_of(want.lse.begin(), want.lse.end(), [](double x) { return std::isfinite(x) && x < -1e36; }));
      for (std::size_t i = 0; i < want.out.size(); ++i) ASSERT_NEAR(got.out[i], want.out[i], 1e-3) << i;
      for (std::size_t i = 0; i < want.lse.size(); ++i) {
        const bool sees_nothing = std::isinf(want.lse[i]);
        ASSERT_TRUE(sees_nothing ? got.lse[i] == want.lse[i] : std::fabs(got.lse[i] - want.lse[i]) < 1e34) << i;
      }
    });
  }
}

TEST(Attend, AKeyWithAVeryLowLogitIsSeenInDecode) {
  ProblemShape shape;
  shape.sequences = {{68, 2}, {67, 1}, {300, 1}};
  expect_very_low_logits_seen(shape);
}

TEST(Attend, AKeyWithAVeryLowLogitIsSeenInPrefillUnderAMask) {
  ProblemShape shape;
  shape.mask = MaskKind::kAdditive;
  shape.sequences = {{90, 40}, {70, 70}};
  expect_very_low_logits_seen(shape);
}

// The usual "minus infinity" of models that cannot have one: a row of nothing else is the mean of its keys.
TEST(Attend, KeysUnderTheLowestFiniteBiasAreSeenWhenThereIsNothingElse) {
  ProblemShape shape;
  shape.config.num_q_heads = 6;
  shape.mask = MaskKind::kAdditive;
  shape.sequences = {{90, 40}, {70, 70}, {68, 3}, {67, 1}};
  for (const StoredFormat& format : kStoredFormats) {
    format.set(shape.config);
    const Problem problem(shape);
    const std::span<const std::byte> mask = problem.batch().mask.bytes;
    for (std::size_t i = 0; i < mask.size(); i += sizeof(float)) {
      const float lowest = std::numeric_limits<float>::lowest();
      float entry = 0;
      std::memcpy(&entry, mask.data() + i, sizeof(float));
      if (std::isfinite(entry)) std::memcpy(const_cast<std::byte*>(mask.data()) + i, &lowest, sizeof(float));
    }
    on_every_target(problem, [&problem](const char* target, const Outputs& want, const Outputs& got) {
      const Arithmetic arithmetic = arithmetic_of(target, problem.config());
      const double bound = arithmetic.p + arithmetic.kv + 1e-5;
      for (std::size_t i = 0; i < want.out.size(); ++i) ASSERT_NEAR(got.out[i], want.out[i], bound) << i;
      for (std::size_t i = 0; i < want.lse.size(); ++i) {
        if (std::isinf(want.lse[i])) {
          ASSERT_EQ(got.lse[i], want.lse[i]) << i;  // a row that the mask hides everything from
        } else {
          ASSERT_LT(got.lse[i], -2e38) << i;
          ASSERT_TRUE(std::isfinite(got.lse[i])) << i;
        }
      }
    });
  }
}

// The same outputs and lse, bit for bit.
void expect_same(const Problem& a, const Problem& b, const char* target) {
  const auto of_a = a.run(target), of_b = b.run(target);
  ASSERT_TRUE(of_a.has_value() && of_b.has_value());
  EXPECT_TRUE(*of_a == *of_b) << target;
}

ProblemShape long_prefill() {
  ProblemShape shape;
  shape.config = {.num_q_heads = 6, .num_kv_heads = 2, .head_dim = 80, .v_head_dim = 72};
  shape.sequences = {{600, 300}, {50, 12}, {90, 20, 60}};
  shape.q_dtype = DType::f16;
  return shape;
}

TEST(Attend, F16AsBf16ChangesNothingElsewhere) {
  for (const DType format : kFormats) {
    ProblemShape shape = long_prefill();
    shape.config.kv_dtype = format;
    const Problem without(shape);
    shape.config.variant.f16_as_bf16 = true;
    const Problem with(shape);
    for (const std::string_view target : runnable_targets()) {
      if (!multiplies_bf16(target) || format != DType::f16) expect_same(with, without, target.data());
    }
  }
}

TEST(Attend, F16AsBf16ChangesNoDecode) {
  for (const std::uint32_t group : {1U, 4U, 8U, 16U}) {
    ProblemShape shape;
    shape.config = {.num_q_heads = group, .num_kv_heads = 1, .head_dim = 64, .kv_dtype = DType::f16};
    shape.sequences = {{2000, 1}, {100, 1}, {1, 1}, {70, static_cast<std::int32_t>(16 / group)}};
    const Problem without(shape);
    shape.config.variant.f16_as_bf16 = true;
    const Problem with(shape);
    for (const char* target : runnable_targets()) expect_same(with, without, target);
  }
}

// `half` and its queries, rounded to bf16 where they lie, over `pages` of the same shape.
void copy_rounded(const Problem& half, const Problem& pages) {
  const auto copy = [](const void* from, const void* to, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      format::store_element(const_cast<void*>(to), i, DType::bf16, format::load_element(from, i, DType::f16));
    }
  };
  const KvView view = half.view();
  copy(view.k, pages.view().k, static_cast<std::size_t>(view.num_pages * view.k_page_stride) / 2);
  copy(half.queries().data, pages.queries().data, half.queries().num_elements);
}

// Rounded once, to nearest even: subnormal f16 too, and the largest, which become 65536.
TEST(Attend, F16AsBf16IsAttentionOverBf16PagesOfTheRoundedNumbers) {
  for (const float scale : {1.0F, 1e-6F}) {
    for (const std::uint32_t page_size : {5U, 16U}) {
      ProblemShape shape = long_prefill();
      shape.config.page_size = page_size;
      shape.config.head_dim = page_size == 16 ? 64 : 80;  // bf16 keys stand in place, or are copied
      shape.v_scale = scale;
      shape.config.kv_dtype = DType::f16;
      shape.config.variant.f16_as_bf16 = true;
      const Problem half(shape);
      const auto* const v = static_cast<const std::byte*>(half.view().v);
      void* const row = const_cast<std::byte*>(v + half.batch().kv_indices[0] * half.view().v_page_stride);
      format::store_element(row, 0, DType::f16, 65504);
      format::store_element(row, 1, DType::f16, -65504);
      format::store_element(row, 2, DType::f16, std::numeric_limits<float>::infinity());
      shape.config.kv_dtype = shape.q_dtype = DType::bf16;
      const Problem rounded(shape);
      copy_rounded(half, rounded);
      for (const char* target : targets_of(shape.config)) expect_same(half, rounded, target);
    }
  }
}

}  // namespace
}  // namespace pagedkv::testing
