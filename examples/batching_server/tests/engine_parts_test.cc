// The engine's parts without a model: sampling, drafts, beams.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "engine/beam_search.h"
#include "engine/prompt_lookup.h"
#include "engine/sampler.h"

namespace serving {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  const std::vector<float> logits = {0, 3, 1, 3};
  EXPECT_EQ(sample_token(logits, {.temperature = 0}, {}, 0).chosen.token, 1);
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {std::log(0.5F), std::log(0.3F), std::log(0.2F)};
  std::vector<int> counts(3);
  std::vector<Token> generated;
  const int draws = 20'000;
  for (int i = 0; i < draws; ++i) {
    generated.assign(static_cast<std::size_t>(i % 100), 0);  // The position is the number of generated tokens.
    const SamplingParams params{.temperature = 1, .seed = static_cast<std::uint64_t>(i / 100)};
    ++counts[static_cast<std::size_t>(sample_token(logits, params, generated, 0).chosen.token)];
  }
  const double probability[] = {0.5, 0.3, 0.2};
  for (std::size_t i = 0; i < 3; ++i) {  // Five standard deviations of a binomial count.
    const double p = probability[i];
    EXPECT_NEAR(counts[i], draws * p, 5 * std::sqrt(draws * p * (1 - p)));
  }
}

TEST(Sampler, DependsOnSeedSampleAndPositionAlone) {
  std::vector<float> logits(50);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7);
  const auto draw = [&](std::uint64_t seed, std::uint32_t sample, std::size_t position) {
    return sample_token(logits, {.seed = seed}, std::vector<Token>(position), sample).chosen.token;
  };
  int differences = 0;
  for (std::size_t position = 0; position < 40; ++position) {
    EXPECT_EQ(draw(1, 0, position), draw(1, 0, position));
    differences += draw(1, 0, position) != draw(2, 0, position);
    differences += draw(1, 0, position) != draw(1, 1, position);
  }
  EXPECT_GT(differences, 40);
}

TEST(Sampler, TopKAndTopPCutTheTail) {
  const std::vector<float> logits = {std::log(0.6F), std::log(0.3F), std::log(0.1F)};
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    EXPECT_EQ(sample_token(logits, {.top_k = 1, .seed = seed}, {}, 0).chosen.token, 0);
    EXPECT_EQ(sample_token(logits, {.top_p = 0.5F, .seed = seed}, {}, 0).chosen.token, 0);
    EXPECT_NE(sample_token(logits, {.top_p = 0.8F, .seed = seed}, {}, 0).chosen.token, 2);
  }
}

TEST(Sampler, PenaltiesAndBiasMoveTheChoice) {
  const std::vector<float> logits = {1.0F, 0.9F, 0};
  const std::vector<Token> generated = {0, 0};
  EXPECT_EQ(sample_token(logits, {.temperature = 0, .frequency_penalty = 0.1F}, generated, 0).chosen.token, 1);
  EXPECT_EQ(sample_token(logits, {.temperature = 0, .presence_penalty = 0.2F}, generated, 0).chosen.token, 1);
  EXPECT_EQ(
      sample_token(logits, {.temperature = 0, .logit_bias = {{2, 5.0F}, {-1, 9.0F}, {99, 9.0F}}}, {}, 0).chosen.token,
      2);
}

TEST(Sampler, ReportsLogProbabilities) {
  const std::vector<float> logits = {std::log(1.0F), std::log(3.0F)};
  const Sampled sampled = sample_token(logits, {.temperature = 0, .wants_logprob = true, .num_logprobs = 5}, {}, 0);
  EXPECT_NEAR(sampled.chosen.logprob, std::log(0.75), 1e-6);
  ASSERT_EQ(sampled.most_likely.size(), 2U);
  EXPECT_NEAR(sampled.most_likely[1].logprob, std::log(0.25), 1e-6);
}

TEST(PromptLookup, ContinuesTheLatestOccurrenceOfTheLongestSuffix) {
  EXPECT_THAT(look_up_draft(std::vector<Token>{1, 2, 3, 4, 5, 9, 1, 2, 3}, 2), ElementsAre(4, 5));
  EXPECT_THAT(look_up_draft(std::vector<Token>{7, 2, 3, 8, 6, 2, 3, 9, 0, 2, 3}, 1), ElementsAre(9));
  EXPECT_THAT(look_up_draft(std::vector<Token>{5, 5, 5, 5}, 3), ElementsAre(5));
  EXPECT_THAT(look_up_draft(std::vector<Token>{1, 2, 3, 4}, 3), IsEmpty());
  EXPECT_THAT(look_up_draft(std::vector<Token>{}, 3), IsEmpty());
}

// A model of three tokens, 2 of which stops: after token t the probabilities are row t.
std::vector<float> logs(std::initializer_list<float> probabilities) {
  std::vector<float> row;
  for (float p : probabilities) row.push_back(std::log(p));
  return row;
}

TEST(BeamSearch, FindsTheBetterSequenceThatGreedyMisses) {
  // Greedy takes 0 (0.6), after which everything is even; 1 (0.4) leads to a sure thing.
  BeamSearch search({.width = 2, .max_tokens = 2, .stop_tokens = {}});
  const auto start = logs({0.6F, 0.4F}), after_0 = logs({0.5F, 0.5F}), after_1 = logs({0.01F, 0.99F});
  const std::vector<std::span<const float>> first = {start};
  const auto children = search.advance(first);
  ASSERT_EQ(children.size(), 2U);
  EXPECT_EQ(children[0].token, 0);
  const std::vector<std::span<const float>> second = {after_0, after_1};
  EXPECT_THAT(search.advance(second), IsEmpty());  // Two tokens are the most.
  const auto results = search.results();
  EXPECT_THAT(results[0].tokens, ElementsAre(1, 1));
  EXPECT_NEAR(results[0].logprob, std::log(0.4 * 0.99), 1e-6);
}

TEST(BeamSearch, StopTokensEndHypothesesWithoutEmptyingTheBeam) {
  BeamSearch search({.width = 2, .max_tokens = 9, .stop_tokens = {2}});
  const auto row = logs({0.3F, 0.2F, 0.5F});
  const std::vector<std::span<const float>> one = {row};
  EXPECT_EQ(search.advance(one).size(), 2U);  // Stopping is likeliest, and two others live on.
  const std::vector<std::span<const float>> two = {row, row};
  EXPECT_THAT(search.advance(two), IsEmpty());  // Two have stopped.
  const auto results = search.results();
  ASSERT_EQ(results.size(), 2U);
  EXPECT_TRUE(results[0].stopped);
  EXPECT_THAT(results[0].tokens, IsEmpty());
  EXPECT_NEAR(results[0].score, std::log(0.5), 1e-6);
}

TEST(BeamSearch, AnswersAreNeverThoseThatTheEndOfTheSearchCutOff) {
  BeamSearch search({.width = 2, .max_tokens = 9, .stop_tokens = {2}});
  const auto start = logs({0.95F, 0.01F, 0.04F}), then = logs({0.55F, 0.01F, 0.44F});
  const std::vector<std::span<const float>> first = {start}, second = {then, then};
  EXPECT_EQ(search.advance(first).size(), 2U);
  EXPECT_THAT(search.advance(second), IsEmpty());  // Two have stopped; "0 0" lives, is likelier, and is not complete.
  const auto results = search.results();
  ASSERT_EQ(results.size(), 2U);
  EXPECT_TRUE(results[0].stopped);
  EXPECT_THAT(results[0].tokens, ElementsAre(0));
}

}  // namespace
}  // namespace serving
