// A completion call as OpenAI's API spells it, checked and tokenized.
#pragma once

#include <string>
#include <vector>

#include "engine/request.h"
#include "http/api_error.h"
#include "tokenizer/tokenizer.h"

namespace serving {

/// What calls are checked against.
struct ApiLimits {
  std::string model_name;
  std::uint32_t max_positions = 0;  ///< Tokens of prompt and output.
  std::uint32_t max_choices = 128;  ///< Prompts times choices of one call.
  std::uint32_t max_beam_width = 16;
  std::uint32_t max_logprobs = 20;
  std::uint32_t default_max_tokens = 16;
  std::uint64_t pool_pages = 0;  ///< A default output stays within them; 0: they bound nothing (behind a window, say).
  std::uint32_t page_size = 16;  ///< Tokens.
};

struct ApiCall {
  bool is_chat = false;
  std::vector<Request> requests;    ///< One a prompt.
  std::vector<std::string> echoed;  ///< [requests] what the text begins with; empty unless `echo`.
  std::vector<std::string> stop;    ///< Texts that end a choice and are not part of it.
  bool stream = false, include_usage = false;
};

/// Reads a body of /v1/completions or /v1/chat/completions. Throws ApiError: not JSON, bad UTF-8, an unknown model, a
/// member of the wrong type or out of range, a prompt that is too long, something that this server cannot do.
///
/// Beyond OpenAI's members it takes, as vLLM does: `top_k`, `use_beam_search` with `best_of` and `length_penalty` (not
/// with `stream` or `logprobs`), `priority` (higher first), `cache_salt`, `ignore_eos`, and `draft_tokens` (prompt
/// lookup).
ApiCall read_call(const std::string& body, bool is_chat, const ApiLimits& limits, const Tokenizer& tokenizer);

}  // namespace serving
