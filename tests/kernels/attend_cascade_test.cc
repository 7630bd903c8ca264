// Cascade, where sequences read their common leading parts once, with every variant: on every target and in every
// format against the f64 oracle.
#include <gtest/gtest.h>

#include <string>

#include "kernels/expect_oracle.h"
#include "kernels/variations.h"

namespace pagedkv::testing {
namespace {

/// A layer over a tree of prefixes: all but the last sequence share 1024 tokens, the first three 2048, two of them
/// 3072; some bring several rows.
ProblemShape tree() {
  ProblemShape shape;
  shape.config.cascade = true;
  shape.sequences = {{3300, 1}, {3200, 3}, {2300, 1}, {1500, 1}, {1100, 16}, {2100, 2}, {70, 1}};
  shape.shared_runs = {{0, 5, 1024}, {0, 2, 2048}, {0, 1, 3072}};
  return shape;
}

/// Bytes that a plan for the layer reads.
std::uint64_t bytes_read(const Problem& problem, bool cascade) {
  AttentionConfig config = problem.config();
  config.cascade = cascade;
  return AttentionPlan::create(config, problem.batch()).value().kv_bytes(problem.view());
}

/// As the oracle on all targets and in all formats, from fewer bytes, and the same bits on any number of threads.
void expect_shared(const ProblemShape& base) {
  for (const StoredFormat& format : kStoredFormats) {
    ProblemShape shape = base;
    format.set(shape.config);
    if (targets_of(shape.config).empty()) continue;
    const Problem problem(shape);
    EXPECT_LT(bytes_read(problem, true), bytes_read(problem, false));
    on_every_target(problem, [&](const char* target, const Outputs& want, const Outputs& got) {
      EXPECT_EQ(problem.difference(got, want, arithmetic_of(target, problem.config())), "");
      for (const int threads : {1, 7}) EXPECT_TRUE(*problem.run(target, threads) == got) << threads;
    });
  }
}

TEST(AttendCascade, AgreesWithOracle) { expect_shared(tree()); }

class AttendCascadeWith : public ::testing::TestWithParam<Variation> {};

TEST_P(AttendCascadeWith, AgreesWithOracle) {
  ProblemShape shape = tree();
  GetParam().set(shape);
  expect_shared(shape);
}

INSTANTIATE_TEST_SUITE_P(Variations, AttendCascadeWith, ::testing::ValuesIn(kVariations),
                         [](const auto& variation) { return std::string(variation.param.name); });

TEST(AttendCascade, AgreesWithOracleWithoutCausality) {
  ProblemShape shape = tree();
  shape.config.variant.causal = false;
  shape.sequences[5] = {2100, 2, 0};  // rows before all their keys
  expect_shared(shape);
}

// The first two sequences begin to see in the second part, in the first, the second one at key 0; then all see all.
TEST(AttendCascade, AgreesWithOracleOverWindows) {
  for (const std::int32_t window : {1500, 2400, 3250, 5000}) {
    for (const std::uint32_t sink_tokens : {0U, 4U, 700U}) {
      SCOPED_TRACE(::testing::Message() << "window " << window << ", " << sink_tokens << " sink tokens");
      ProblemShape shape = tree();
      shape.config.variant.window_left = window;
      shape.config.variant.sink_tokens = sink_tokens;
      shape.sinks = sink_tokens < 700;
      expect_shared(shape);
    }
  }
}

TEST(AttendCascade, AgreesWithOracleOverHeadDims) {
  for (const auto& [k, v] : {std::pair{64U, 16U}, {33U, 55U}}) {
    SCOPED_TRACE(::testing::Message() << k << "/" << v);
    ProblemShape shape = tree();
    shape.config.head_dim = k;
    shape.config.v_head_dim = v;
    expect_shared(shape);
  }
}

TEST(AttendCascade, AgreesWithOracleWithAllVariantsAtOnce) {
  for (const bool causal : {true, false}) {
    ProblemShape shape = tree();
    shape.config.v_head_dim = 40;
    shape.config.variant = {
        .sm_scale = 0.3F, .causal = causal, .window_left = 2400, .sink_tokens = 5, .logits_soft_cap = 20};
    shape.sinks = shape.alibi = true;
    shape.q_dtype = DType::bf16;
    expect_shared(shape);
  }
}

// Every row has a mask of its own, also over parts that it shares, which begins wherever its sequence's entries lie.
TEST(AttendCascade, AgreesWithOracleUnderMasks) {
  for (const MaskKind kind : {MaskKind::kBool, MaskKind::kAdditive, MaskKind::kBits}) {
    for (const bool per_head : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "mask kind " << static_cast<int>(kind) << (per_head ? ", per head" : ""));
      ProblemShape shape = tree();
      shape.mask = kind;
      shape.mask_per_head = per_head;
      shape.mask_row_padding = per_head ? 3 : 0;
      shape.mask_spans = {{0, 0, 1, 0, 1024},              // all of a part that six sequences share
                          {1, 1, 2, 1024, 2048},           // of one that three share, from one of three rows
                          {2, 0, 1, 0, 2300},              // everything
                          {3, 0, 1, 0, 1500, true},        // nothing
                          {4, 7, 16, 16, 1024},            // nearly all of a part, from some rows
                          {5, 0, 2, 0, 1024},              // all that it shares
                          {1, 0, 1, 3 * 64, 1024, true}};  // blocks without a hidden key
      expect_shared(shape);
    }
  }
}

// A tree of drafts over a prompt that all sequences share: rows of one group, a mask for the drafts alone.
TEST(AttendCascade, AgreesWithOracleUnderMasksOfDraftsAlone) {
  for (const MaskKind kind : {MaskKind::kBool, MaskKind::kAdditive, MaskKind::kBits}) {
    ProblemShape shape;
    shape.config.num_q_heads = 8;
    shape.config.cascade = true;
    shape.mask = kind;
    for (std::size_t i = 0; i < 6; ++i) {
      const auto length = static_cast<std::int32_t>(2080 + 5 * i);
      shape.sequences.push_back({length, 7});
      shape.mask_spans.push_back({i, 0, 7, 0, length - 7, true});
    }
    shape.shared_runs = {{0, 5, 2048}};
    expect_shared(shape);
  }
}

// More columns than one task takes: the listed rows of a part are several slices.
TEST(AttendCascade, AgreesWithOracleUnderMasksOverSlicesOfRows) {
  ProblemShape shape = tree();
  shape.config.num_q_heads = 32;
  shape.config.num_kv_heads = 1;
  shape.mask = MaskKind::kBits;
  shape.mask_per_head = true;
  expect_shared(shape);
}

TEST(AttendCascade, AgreesWithOracleUnderMasksWithAllVariantsAtOnce) {
  ProblemShape shape = tree();
  shape.mask = MaskKind::kBits;
  shape.config.v_head_dim = 40;
  shape.config.variant = {
      .sm_scale = 0.3F, .causal = true, .window_left = 2400, .sink_tokens = 5, .logits_soft_cap = 20};
  shape.sinks = shape.alibi = true;
  expect_shared(shape);
}

}  // namespace
}  // namespace pagedkv::testing
