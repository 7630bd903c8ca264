// What a caller asks of the engine, and what it hears back.
#pragma once

#include <pagedkv/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/sampler.h"

namespace serving {

struct Request {
  std::vector<Token> prompt = {};  ///< At least one token.
  std::uint32_t max_tokens = 16;   ///< Of output, a choice.
  SamplingParams sampling = {};
  std::uint32_t num_choices = 1;  ///< Samples of one prompt; they share its pages.
  std::uint32_t beam_width = 0;   ///< 0 = no beam search; else the best `num_choices` of that many beams.
  double length_penalty = 1;
  std::uint32_t draft_tokens = 0;       ///< Guessed by prompt lookup and checked in one step; 0 = none.
  std::vector<Token> stop_tokens = {};  ///< Any of them ends a choice and is not part of it.
  std::string tenant = {};              ///< Salt of the prefix cache, and whom fairness is between.
  int priority = 0;                     ///< Higher first.
};

enum class FinishReason : std::uint8_t {
  kNone,
  kStop,    ///< A stop token, or the listener asked for it.
  kLength,  ///< max_tokens, or the model's context.
  kCancelled,
  kFailed,  ///< See Event::failure.
};

/// One token of one choice, or the end of a choice.
struct Event {
  std::uint32_t choice = 0;
  FinishReason finish = FinishReason::kNone;  ///< If set, this is the choice's last event and has no token.
  Token token = 0;
  TokenLogprob logprob = {};
  std::vector<TokenLogprob> most_likely = {};
  std::uint64_t cached_tokens = 0;  ///< Of the prompt, found in the prefix cache.
  const char* failure = "";
};

/// Hears every event of a request, on the engine's thread; must be quick and not throw. Returning false from a token
/// ends its choice with kStop.
using Listener = std::function<bool(const Event&)>;

using RequestId = std::uint64_t;

}  // namespace serving
