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

// Rows under a mask see keys of their own, so nothing is shared.
TEST(AttendCascade, UnderMasksChangesNothing) {
  for (const MaskKind kind : {MaskKind::kBool, MaskKind::kAdditive, MaskKind::kBits}) {
    ProblemShape shape = tree();
    shape.mask = kind;
    for (const DType format : kFormats) {
      shape.config.kv_dtype = format;
      shape.config.cascade = true;
      const Problem with(shape);
      shape.config.cascade = false;
      const Problem without(shape);
      for (const char* target : runnable_targets()) EXPECT_TRUE(*with.run(target) == *without.run(target)) << target;
    }
  }
}

}  // namespace
}  // namespace pagedkv::testing
