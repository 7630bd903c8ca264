// Fuzzes bodies of /v1/completions and /v1/chat/completions: a call within all limits, or an ApiError.
#include <cmath>

#include "fuzz/fuzz_input.h"
#include "http/api_request.h"
#include "tests/test_files.h"

using namespace serving;

namespace {

const Tokenizer& tokenizer_of(std::size_t kind) {
  static const pagedkv::fuzz::ScratchFolder folder;
  static const auto bytes = byte_tokenizer();
  static const auto byte_level =
      open_hf_tokenizer(folder.write("llama3.json", testing::byte_level_tokenizer_json().dump()));
  static const auto pieces =
      open_hf_tokenizer(folder.write("llama2.json", testing::sentencepiece_tokenizer_json().dump()));
  return kind == 0 ? *bytes : kind == 1 ? *byte_level : *pieces;
}

void check_call(const ApiCall& call, const ApiLimits& limits) {
  using pagedkv::fuzz::check;
  check(!call.requests.empty() && call.requests.size() == call.echoed.size(), "a call has requests");
  std::size_t choices = 0;
  for (const Request& request : call.requests) {
    choices += request.num_choices;
    check(!request.prompt.empty(), "a prompt has tokens");
    check(request.max_tokens >= 1 && request.prompt.size() + request.max_tokens <= limits.max_positions,
          "prompt and output fit the model");
    for (const Token token : request.prompt) check(token >= 0, "a token is not negative");
    check(request.beam_width <= limits.max_beam_width, "beams are within the limit");
    check(request.beam_width == 0 || request.num_choices <= request.beam_width, "as many beams as choices");
    check(request.sampling.num_logprobs <= limits.max_logprobs, "logprobs are within the limit");
    check(std::isfinite(request.sampling.temperature) && std::isfinite(request.length_penalty), "numbers are finite");
  }
  check(choices <= limits.max_choices, "choices are within the limit");
}

}  // namespace

// The first byte says which endpoint and tokenizer, all others are the body.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  pagedkv::fuzz::Input input(data, size);
  const std::size_t choice = input.below(6);
  const ApiLimits limits{.model_name = "m", .max_positions = 256};
  try {
    check_call(read_call(std::string(input.rest()), choice % 2 == 1, limits, tokenizer_of(choice / 2)), limits);
  } catch (const ApiError& error) {
    pagedkv::fuzz::check(error.status >= 400 && error.status < 500, "a bad call is the caller's fault");
    // What the server sends: must not throw, whatever bytes the message quotes.
    pagedkv::fuzz::check(!error.to_json().dump().empty(), "a refusal can be sent");
  }
  return 0;
}
