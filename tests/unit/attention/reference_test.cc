// Tests of the oracle against sums done by hand.
#include "pagedkv/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace pagedkv {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One head of one dim, three keys in one page: K = 1, 2, 3 and V = 10, 20, 40.
struct OneHead {
  std::vector<float> k = {1, 2, 3}, v = {10, 20, 40}, q = {1};
  std::vector<std::int32_t> qo_indptr = {0, 1}, kv_indptr = {0, 1}, kv_indices = {0}, last = {3};
  AttentionConfig config = {.num_q_heads = 1,
                            .num_kv_heads = 1,
                            .head_dim = 1,
                            .page_size = 3,
                            .kv_dtype = DType::f32,
                            .variant = {.sm_scale = 1}};
  AttentionBatch batch = {
      .qo_indptr = qo_indptr, .kv_indptr = kv_indptr, .kv_indices = kv_indices, .kv_last_page_len = last};
  double out = 0, lse = 0;
  std::vector<double> scores = std::vector<double>(3);

  Result<void> run(ScoreStage stage = ScoreStage::kProbabilities) {
    const KvView view = {k.data(), v.data(), 12, 12, 4, 12, 12, 4, 1};
    return reference_attention(config, batch, view, q, {&out, 1}, {&lse, 1}, {stage, scores});
  }
};

TEST(Reference, IsASoftmaxOfScoresOverValues) {
  OneHead problem;
  ASSERT_TRUE(problem.run().has_value());
  const double e1 = std::exp(1.0), e2 = std::exp(2.0), e3 = std::exp(3.0);
  EXPECT_NEAR(problem.out, (10 * e1 + 20 * e2 + 40 * e3) / (e1 + e2 + e3), 1e-12);
  EXPECT_NEAR(problem.lse, std::log(e1 + e2 + e3), 1e-12);
  EXPECT_NEAR(problem.scores[0], e1 / (e1 + e2 + e3), 1e-12);
}

TEST(Reference, SinkJoinsTheDenominatorAlone) {
  OneHead problem;
  const std::vector<float> sinks = {3};
  problem.config.variant.sinks = sinks;
  ASSERT_TRUE(problem.run().has_value());
  const double e1 = std::exp(1.0), e2 = std::exp(2.0), e3 = std::exp(3.0);
  EXPECT_NEAR(problem.out, (10 * e1 + 20 * e2 + 40 * e3) / (e1 + e2 + 2 * e3), 1e-12);
  EXPECT_NEAR(problem.lse, std::log(e1 + e2 + 2 * e3), 1e-12);
}

TEST(Reference, WindowAndCausalityHideKeys) {
  OneHead problem;
  const std::vector<std::int32_t> start = {1};
  problem.batch.q_start = start;
  problem.config.variant.window_left = 0;
  ASSERT_TRUE(problem.run(ScoreStage::kLogits).has_value());
  EXPECT_EQ(problem.out, 20);
  EXPECT_EQ(problem.lse, 2);
  EXPECT_EQ(problem.scores, (std::vector<double>{-kInfinity, 2, -kInfinity}));
}

TEST(Reference, SinkTokensAreSeenBesideTheWindowButNotBeforeTheirTime) {
  OneHead problem;
  problem.config.variant.window_left = 0;
  problem.config.variant.sink_tokens = 1;
  ASSERT_TRUE(problem.run(ScoreStage::kLogits).has_value());
  EXPECT_EQ(problem.scores, (std::vector<double>{1, -kInfinity, 3}));
  const double e1 = std::exp(1.0), e3 = std::exp(3.0);
  EXPECT_NEAR(problem.out, (10 * e1 + 40 * e3) / (e1 + e3), 1e-12);
  const std::vector<std::int32_t> start = {0};
  problem.batch.q_start = start;
  problem.config.variant.sink_tokens = 2;
  ASSERT_TRUE(problem.run(ScoreStage::kLogits).has_value());
  EXPECT_EQ(problem.scores, (std::vector<double>{1, -kInfinity, -kInfinity})) << "causality holds for sinks too";
}

TEST(Reference, ScoresOfEachStageBuildOnTheLast) {
  OneHead problem;
  problem.config.variant.logits_soft_cap = 2;
  const std::vector<float> slopes = {0.5F};
  problem.config.variant.alibi_slopes = slopes;
  ASSERT_TRUE(problem.run(ScoreStage::kScaled).has_value());
  EXPECT_EQ(problem.scores, (std::vector<double>{1, 2, 3}));
  ASSERT_TRUE(problem.run(ScoreStage::kCapped).has_value());
  EXPECT_NEAR(problem.scores[0], 2 * std::tanh(0.5), 1e-12);
  ASSERT_TRUE(problem.run(ScoreStage::kLogits).has_value());
  EXPECT_NEAR(problem.scores[0], 2 * std::tanh(0.5) + 0.5 * (0 - 2), 1e-12);
}

TEST(Reference, WithoutKeysIsZeroAndMinusInfinity) {
  OneHead problem;
  const std::vector<std::int32_t> none = {0, 0}, no_last = {0}, start = {0};
  problem.batch.kv_indptr = none;
  problem.batch.kv_indices = {};
  problem.batch.kv_last_page_len = no_last;
  problem.batch.q_start = start;
  problem.scores.clear();
  ASSERT_TRUE(problem.run().has_value());
  EXPECT_EQ(problem.out, 0);
  EXPECT_EQ(problem.lse, -kInfinity);
}

TEST(Reference, RefusesQueriesAndResultsOfTheWrongSize) {
  OneHead problem;
  const std::vector<float> queries(2);
  std::vector<double> results(2);
  const KvView view = {problem.k.data(), problem.v.data(), 12, 12, 4, 12, 12, 4, 1};
  const auto run = [&](std::size_t num_queries, std::size_t num_outputs, std::size_t num_lse) {
    return reference_attention(problem.config, problem.batch, view, std::span(queries).first(num_queries),
                               std::span(results).first(num_outputs), std::span(results).first(num_lse), {});
  };
  EXPECT_TRUE(run(1, 1, 0));
  EXPECT_EQ(run(2, 1, 0).error(), Errc::kInvalidArgument);
  EXPECT_EQ(run(1, 2, 0).error(), Errc::kInvalidArgument);
  EXPECT_EQ(run(1, 1, 2).error(), Errc::kInvalidArgument);
  const ConstTensor null(nullptr, 1, DType::f32);
  EXPECT_EQ(reference_attention(problem.config, problem.batch, view, null, std::span(results).first(1), {}, {}).error(),
            Errc::kInvalidArgument);
}

TEST(Reference, RefusesScoresOfTheWrongSize) {
  OneHead problem;
  EXPECT_EQ(num_reference_scores(problem.config, problem.batch), 3U);
  problem.scores.resize(2);
  EXPECT_EQ(problem.run().error(), Errc::kInvalidArgument);
}

}  // namespace
}  // namespace pagedkv
