// From logits to a token: greedy or random, and always the same for the same seed, sample and position.
#pragma once

#include <pagedkv/types.h>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace serving {

using pagedkv::Token;

struct SamplingParams {
  float temperature = 1;                              ///< 0 = greedy.
  float top_p = 1;                                    ///< Of the most likely tokens that make up this share.
  std::uint32_t top_k = 0;                            ///< Of that many most likely tokens; 0 = all.
  float presence_penalty = 0, frequency_penalty = 0;  ///< As OpenAI defines them, over the generated tokens.
  std::vector<std::pair<Token, float>> logit_bias = {};
  std::uint64_t seed = 0;
  bool wants_logprob = false;      ///< Report the chosen token's logarithm of probability.
  std::uint32_t num_logprobs = 0;  ///< And that many of the most likely tokens'.
};

struct TokenLogprob {
  Token token = 0;
  float logprob = 0;  ///< Natural logarithm, before temperature and truncation; 0 if nobody asked.
};

struct Sampled {
  TokenLogprob chosen;
  std::vector<TokenLogprob> most_likely;  ///< [num_logprobs], best first.
};

/// Chooses the token after `generated`, as sample number `sample_index` of its request.
///
/// The random number depends on the seed, the sample and the position alone. So a sequence that was preempted and
/// computed again, or whose tokens were guessed and checked, goes on exactly as it would have.
Sampled sample_token(std::span<const float> logits, const SamplingParams& params, std::span<const Token> generated,
                     std::uint32_t sample_index);

/// Index of the largest logit, the first of equals.
Token argmax(std::span<const float> logits) noexcept;

/// log(softmax(logits)), in place.
void log_softmax(std::span<float> logits) noexcept;

}  // namespace serving
