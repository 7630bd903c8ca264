// The engine over a seeded model: whatever happens to a sequence on its way, its tokens are the same.
#include "engine/engine.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <thread>

#include "tests/engine_fixture.h"
#include "tests/test_files.h"

namespace serving {
namespace {

using testing::Harness;
using testing::HarnessOptions;
using ::testing::SizeIs;

class EngineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    ModelConfig config = testing::tiny_config();
    config.max_positions = 4096;
    decoder_ = std::make_unique<Decoder>(*random_weights(config, 5), WeightType::kF32);
  }
  static void TearDownTestSuite() { decoder_.reset(); }

  static std::vector<Token> random_prompt(std::size_t length, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<Token> id(0, 299);
    std::vector<Token> prompt(length);
    for (Token& token : prompt) token = id(random);
    return prompt;
  }
  static Request greedy(std::vector<Token> prompt, std::uint32_t max_tokens = 24) {
    return {.prompt = std::move(prompt), .max_tokens = max_tokens, .sampling = {.temperature = 0}};
  }
  static Request sampled(std::vector<Token> prompt, std::uint64_t seed, std::uint32_t max_tokens = 24) {
    return {.prompt = std::move(prompt), .max_tokens = max_tokens, .sampling = {.temperature = 0.8F, .seed = seed}};
  }
  static std::vector<Token> alone(const Request& request, const HarnessOptions& options = {}) {
    return Harness(*decoder_, options).generate(request);
  }
  // Prompts of many lengths, greedy and random ones.
  static std::vector<Request> mixed_requests() {
    std::vector<Request> requests;
    for (unsigned i = 0; i < 12; ++i) {
      auto prompt = random_prompt(1 + (i * 37) % 150, i);
      requests.push_back(i % 2 == 0 ? greedy(std::move(prompt)) : sampled(std::move(prompt), i));
    }
    return requests;
  }
  static void expect_as_alone(const HarnessOptions& options) {
    Harness harness(*decoder_, options);
    std::vector<std::shared_ptr<Harness::Heard>> heard;
    for (const Request& request : mixed_requests()) heard.push_back(harness.submit(request));
    harness.run_until_idle();
    for (std::size_t i = 0; i < heard.size(); ++i) {
      EXPECT_EQ(heard[i]->tokens[0], alone(mixed_requests()[i])) << "request " << i;
      EXPECT_EQ(heard[i]->finish[0], FinishReason::kLength);
    }
    harness.expect_no_page_held();
  }

  static std::unique_ptr<Decoder> decoder_;
};
std::unique_ptr<Decoder> EngineTest::decoder_;

TEST_F(EngineTest, TokensAreTheSameInAnyBatch) { expect_as_alone({}); }

TEST_F(EngineTest, TokensAreTheSameHoweverPromptsAreCut) {
  for (std::uint32_t chunk : {1U, 7U, 64U}) {
    expect_as_alone({.engine = {.scheduler = {.token_budget = 100, .prefill_chunk = chunk}}});
  }
}

TEST_F(EngineTest, TokensAreTheSameWithAnyPageSize) {
  for (std::uint32_t page_size : {1U, 3U, 16U, 256U})
    expect_as_alone({.page_size = page_size, .pages = 4096 / page_size + 12});
}

TEST_F(EngineTest, TokensAreTheSameAfterPreemption) {
  // 12 requests need about 170 pages of 8 tokens; there are 30.
  const HarnessOptions tight{.pages = 30};
  expect_as_alone(tight);
  Harness harness(*decoder_, tight);
  for (const Request& request : mixed_requests()) harness.submit(request);
  harness.run_until_idle();
  EXPECT_GT(harness.engine().stats().scheduler.preemptions, 0U);
}

TEST_F(EngineTest, TokensAreTheSameWithAndWithoutPrefixCache) {
  const auto prompt = random_prompt(100, 1);
  HarnessOptions without;
  without.engine.prefix_cache = false;
  const auto expected = alone(greedy(prompt), without);
  Harness harness(*decoder_, {});
  EXPECT_EQ(harness.generate(greedy(prompt)), expected);
  const auto again = harness.submit(greedy(prompt));
  harness.run_until_idle();
  EXPECT_EQ(again->tokens[0], expected);
  EXPECT_GE(again->cached_tokens, 96U);  // All whole pages of 8 that leave a token to compute.
  EXPECT_EQ(Harness(*decoder_, without).submit(greedy(prompt))->cached_tokens, 0U);
}

TEST_F(EngineTest, TenantsDoNotShareTheirPrefixes) {
  Harness harness(*decoder_, {});
  Request request = greedy(random_prompt(64, 2));
  request.tenant = "a";
  static_cast<void>(harness.generate(request));
  request.tenant = "b";
  const auto other = harness.submit(request);
  harness.run_until_idle();
  EXPECT_EQ(other->cached_tokens, 0U);
  request.tenant = "a";
  const auto same = harness.submit(request);
  harness.run_until_idle();
  EXPECT_GT(same->cached_tokens, 0U);
}

TEST_F(EngineTest, ChoicesShareThePromptAndAreTheirOwnSamples) {
  Harness harness(*decoder_, {});
  Request request = sampled(random_prompt(80, 3), 9);
  request.num_choices = 5;
  const auto heard = harness.submit(request);
  std::uint64_t most_pages = 0, most_shared = 0;
  while (harness.engine().step()) {
    most_pages = std::max(most_pages, harness.cache().stats().pool.used_pages);
    most_shared = std::max(most_shared, harness.cache().stats().pool.shared_pages);
  }
  ASSERT_THAT(heard->tokens, SizeIs(5));
  EXPECT_EQ(heard->tokens[0], alone(sampled(random_prompt(80, 3), 9)));  // The first is what one choice alone gives.
  EXPECT_NE(heard->tokens[1], heard->tokens[2]);
  EXPECT_GE(most_shared, 10U);         // 80 tokens in pages of 8.
  EXPECT_LE(most_pages, 10U + 5 * 3);  // And 24 tokens of each choice's own.
  harness.expect_no_page_held();
}

TEST_F(EngineTest, DraftsChangeNothingButTheNumberOfSteps) {
  // A prompt that repeats itself invites guesses; a random model often repeats itself too.
  std::vector<Token> prompt;
  for (int i = 0; i < 6; ++i) {
    for (Token token : {5, 17, 99, 250, 31}) prompt.push_back(token);
  }
  for (float temperature : {0.0F, 0.3F}) {
    Request plain{.prompt = prompt, .max_tokens = 120, .sampling = {.temperature = temperature, .seed = 3}};
    Request drafted = plain;
    drafted.draft_tokens = 6;
    Harness harness(*decoder_, {});
    EXPECT_EQ(harness.generate(drafted), alone(plain));
    const EngineStats stats = harness.engine().stats();
    EXPECT_GT(stats.drafted_tokens, 0U);
    if (temperature == 0) {
      EXPECT_GT(stats.accepted_draft_tokens, 0U);
      EXPECT_LT(stats.steps, 110U);  // 120 tokens in fewer steps.
    }
    harness.expect_no_page_held();
  }
}

// Beam search without a cache of any kind: every hypothesis is computed from its first token on.
std::vector<std::vector<Token>> naive_beams(Decoder& decoder, const std::vector<Token>& prompt, std::uint32_t width,
                                            std::uint32_t max_tokens) {
  BeamSearch search({.width = width, .max_tokens = max_tokens});
  std::vector<std::vector<Token>> texts = {prompt};
  while (true) {
    std::vector<std::vector<float>> rows;
    for (const auto& text : texts) {
      Harness fresh(decoder, {});
      auto sequence = fresh.cache().open().value();
      auto step = fresh.cache().begin_step({{&sequence, static_cast<std::uint32_t>(text.size())}}).value();
      std::vector<std::uint32_t> positions(text.size());
      std::iota(positions.begin(), positions.end(), 0U);
      const std::uint32_t last = static_cast<std::uint32_t>(text.size() - 1);
      std::vector<float> logits;
      EXPECT_TRUE(decoder.forward(step, text, positions, {&last, 1}, logits).has_value());
      logits.resize(decoder.config().vocab_size);
      log_softmax(logits);
      rows.push_back(logits);
    }
    const std::vector<std::span<const float>> spans(rows.begin(), rows.end());
    const auto children = search.advance(spans);
    if (children.empty()) break;
    std::vector<std::vector<Token>> next;
    for (const auto& child : children) {
      next.push_back(texts[child.parent]);
      next.back().push_back(child.token);
    }
    texts = std::move(next);
  }
  std::vector<std::vector<Token>> outputs;
  for (const Hypothesis& hypothesis : search.results()) outputs.push_back(hypothesis.tokens);
  return outputs;
}

TEST_F(EngineTest, BeamsAreThoseOfASearchWithoutCacheEvenWhenPreempted) {
  const auto prompt = random_prompt(30, 4);
  Request request = greedy(prompt, 12);
  request.beam_width = 4;
  request.num_choices = 3;
  const auto expected = naive_beams(*decoder_, prompt, 4, 12);
  for (std::uint64_t pages : {512U, 26U}) {
    Harness harness(*decoder_, {.pages = pages});
    const auto heard = harness.submit(request);
    for (unsigned i = 0; i < 4; ++i) harness.submit(greedy(random_prompt(60, i), 40));  // Rivals for the pages.
    harness.run_until_idle();
    for (std::uint32_t choice = 0; choice < 3; ++choice) EXPECT_EQ(heard->tokens[choice], expected[choice]);
    const bool was_preempted = harness.engine().stats().scheduler.preemptions > 0;
    EXPECT_EQ(was_preempted, pages == 26);
    harness.expect_no_page_held();
  }
}

TEST_F(EngineTest, ManyBeamSearchesEndWithTheirAnswersHoweverSmallThePool) {
  const auto request = [](unsigned seed) {
    Request beams = greedy(random_prompt(6 + 5 * seed, seed), 30);
    beams.beam_width = 4;
    beams.num_choices = 2;
    return beams;
  };
  std::vector<std::map<std::uint32_t, std::vector<Token>>> expected;
  for (unsigned i = 0; i < 4; ++i) {
    Harness roomy(*decoder_, {});
    const auto heard = roomy.submit(request(i));
    roomy.run_until_idle();
    expected.push_back(heard->tokens);
  }
  // The largest takes 4 x 7 pages of 8 tokens: with 28, beams hold the pages that their own group waits for.
  for (std::uint64_t pages = 28; pages < 44; ++pages) {
    for (bool prefix_cache : {true, false}) {
      Harness harness(*decoder_, {.pages = pages, .engine = {.prefix_cache = prefix_cache}});
      std::array<std::shared_ptr<Harness::Heard>, 4> heard;
      for (unsigned i = 0; i < 4; ++i) heard[i] = harness.submit(request(i));
      harness.run_until_idle();
      for (unsigned i = 0; i < 4; ++i) EXPECT_EQ(heard[i]->tokens, expected[i]) << "request " << i << ", " << pages;
      EXPECT_GT(harness.engine().stats().scheduler.preemptions, 0U);
      harness.expect_no_page_held();
    }
  }
}

TEST_F(EngineTest, CancelledRequestFreesItsPagesBeforeTheNextStep) {
  Harness harness(*decoder_, {});
  RequestId id = 0;
  Request request = sampled(random_prompt(100, 5), 1, 1000);
  request.num_choices = 3;
  const auto heard = harness.submit(request, &id);
  const auto other = harness.submit(greedy(random_prompt(20, 6), 4));
  for (int i = 0; i < 10; ++i) harness.engine().step();
  EXPECT_GT(harness.cache().stats().pool.used_pages, 12U);
  harness.engine().cancel(id);
  harness.engine().step();
  EXPECT_EQ(harness.cache().stats().pool.used_pages, 0U);
  for (std::uint32_t choice = 0; choice < 3; ++choice) EXPECT_EQ(heard->finish[choice], FinishReason::kCancelled);
  EXPECT_EQ(other->finish[0], FinishReason::kLength);
  EXPECT_FALSE(harness.engine().step());
}

TEST_F(EngineTest, CancellingWhatWaitsOrIsUnknownIsHarmless) {
  Harness harness(*decoder_, {});
  RequestId id = 0;
  const auto heard = harness.submit(greedy(random_prompt(10, 1)), &id);
  harness.engine().cancel(id);
  harness.engine().cancel(id);
  harness.engine().cancel(12345);
  harness.run_until_idle();
  EXPECT_EQ(heard->finish[0], FinishReason::kCancelled);
  harness.expect_no_page_held();
}

TEST_F(EngineTest, ListenerEndsItsChoiceAndNoOther) {
  Harness harness(*decoder_, {});
  Request request = sampled(random_prompt(10, 1), 1, 50);
  request.num_choices = 2;
  std::map<std::uint32_t, int> heard;
  std::map<std::uint32_t, FinishReason> finish;
  ASSERT_EQ(harness.engine().submit(request,
                                    [&](const Event& event) {
                                      if (event.finish != FinishReason::kNone) {
                                        finish[event.choice] = event.finish;
                                        return true;
                                      }
                                      return ++heard[event.choice] < 5 || event.choice == 1;
                                    }),
            SubmitError::kNone);
  harness.run_until_idle();
  EXPECT_EQ(heard[0], 5);
  EXPECT_EQ(finish[0], FinishReason::kStop);
  EXPECT_EQ(heard[1], 50);
  EXPECT_EQ(finish[1], FinishReason::kLength);
}

TEST_F(EngineTest, StopTokensEndAChoiceAndAreNotPartOfIt) {
  const auto prompt = random_prompt(20, 7);
  const auto expected = alone(greedy(prompt, 20));
  Request request = greedy(prompt, 20);
  request.stop_tokens = {expected[8]};
  const auto stop = std::ranges::find(expected, expected[8]) - expected.begin();
  Harness harness(*decoder_, {});
  const auto heard = harness.submit(request);
  harness.run_until_idle();
  EXPECT_EQ(heard->tokens[0], std::vector<Token>(expected.begin(), expected.begin() + stop));
  EXPECT_EQ(heard->finish[0], FinishReason::kStop);
}

TEST_F(EngineTest, LongPromptBeyondTheWindowNeedsOnlyTheWindowsPages) {
  HarnessOptions options{.pages = 24, .window_left = 63};
  options.engine.scheduler.prefill_chunk = 64;
  options.engine.prefix_cache = false;
  HarnessOptions roomy = options;
  roomy.pages = 400;
  const Request request = greedy(random_prompt(2000, 8), 40);
  const auto expected = alone(request, roomy);
  ASSERT_THAT(expected, SizeIs(40));
  Harness harness(*decoder_, options);  // 24 pages of 8 hold 192 tokens.
  EXPECT_EQ(harness.generate(request), expected);
  EXPECT_LE(harness.cache().stats().pool.peak_used_pages, 24U);
  harness.expect_no_page_held();
}

TEST_F(EngineTest, RefusesWhatCanNeverWork) {
  Harness harness(*decoder_, {.pages = 20, .engine = {.max_requests = 2}});
  const auto submit = [&](Request request) {
    return harness.engine().submit(std::move(request), [](const Event&) { return true; });
  };
  EXPECT_EQ(submit(greedy({})), SubmitError::kEmptyPrompt);
  EXPECT_EQ(submit(greedy({-1})), SubmitError::kBadToken);
  EXPECT_EQ(submit(greedy({300})), SubmitError::kBadToken);
  EXPECT_EQ(submit(greedy(random_prompt(161, 1), 1)), SubmitError::kTooLong);    // 20 pages of 8.
  EXPECT_EQ(submit(greedy(random_prompt(10, 1), 5000)), SubmitError::kTooLong);  // The context is 4,096.
  Request beams = greedy(random_prompt(40, 1), 8);
  beams.beam_width = 4;
  EXPECT_EQ(submit(beams), SubmitError::kTooLong);  // 6 pages a beam.
  EXPECT_EQ(submit(greedy({1})), SubmitError::kNone);
  EXPECT_EQ(submit(greedy({1})), SubmitError::kNone);
  EXPECT_EQ(submit(greedy({1})), SubmitError::kBusy);
  harness.run_until_idle();
  EXPECT_EQ(submit(greedy({1})), SubmitError::kNone);
  harness.run_until_idle();
  harness.expect_no_page_held();
}

TEST_F(EngineTest, ReservingRefusesWhatItCouldNeverAdmit) {
  HarnessOptions options{.pages = 64};  // 512 tokens; the context that every sequence reserves is 4,096.
  options.engine.scheduler.reserve_max_length = true;
  Harness harness(*decoder_, options);
  EXPECT_EQ(harness.engine().submit(greedy({1}, 3), [](const Event&) { return true; }), SubmitError::kTooLong);
  options.pages = 512;
  EXPECT_THAT(alone(greedy({1}, 3), options), SizeIs(3));
}

TEST_F(EngineTest, ThreadServesRequestsFromAnyThreadAndDrains) {
  Harness harness(*decoder_, {.pages = 60});
  harness.engine().start();
  std::vector<std::thread> clients;
  clients.reserve(4);
  std::atomic<int> finished = 0;
  for (unsigned client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      for (unsigned i = 0; i < 10; ++i) {
        RequestId id = 0;
        const auto refused = harness.engine().submit(
            sampled(random_prompt(10 + 7 * i, client * 100 + i), i),
            [&](const Event& event) {
              finished += event.finish != FinishReason::kNone;
              return true;
            },
            &id);
        EXPECT_EQ(refused, SubmitError::kNone);
        if (i % 3 == 2) harness.engine().cancel(id);
        EXPECT_NE(harness.engine().snapshot(10), nullptr);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  harness.engine().drain(60);
  EXPECT_EQ(finished, 40);
  EXPECT_EQ(harness.engine().submit(greedy({1}), [](const Event&) { return true; }), SubmitError::kDraining);
  harness.expect_no_page_held();
}

TEST_F(EngineTest, DrainCancelsWhatDoesNotEndInTime) {
  Harness harness(*decoder_, {});
  harness.engine().start();
  std::atomic<bool> was_cancelled = false;
  ASSERT_EQ(harness.engine().submit(greedy(random_prompt(10, 1), 4000),
                                    [&](const Event& event) {
                                      was_cancelled = was_cancelled || event.finish == FinishReason::kCancelled;
                                      return true;
                                    }),
            SubmitError::kNone);
  harness.engine().drain(0);
  EXPECT_TRUE(was_cancelled);
  harness.expect_no_page_held();
}

}  // namespace
}  // namespace serving
