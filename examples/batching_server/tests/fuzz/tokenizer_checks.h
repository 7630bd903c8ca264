// What holds of every tokenizer that opens.
#pragma once

#include <string>
#include <string_view>
#include <tuple>

#include "fuzz/fuzz_input.h"
#include "tokenizer/tokenizer.h"

namespace serving::fuzzing {

/// Encodes a few texts and one of the fuzzer's, and decodes them.
inline void encode_and_decode(const Tokenizer& tokenizer, std::string_view given) {
  for (const std::string_view text :
       {std::string_view("Once upon a time, 3 h\xC3\xA9llos.\n"), std::string_view("a\xFF\xC3"), given}) {
    for (const SpecialText special : {SpecialText::kIsPlain, SpecialText::kIsParsed}) {
      const std::vector<Token> tokens = tokenizer.encode(text, special);
      pagedkv::fuzz::check(tokens.size() <= 64 * (text.size() + 64), "a text has no more tokens than bytes, about");
      for (const Token token : tokens) {
        pagedkv::fuzz::check(token >= 0 && static_cast<std::uint32_t>(token) < tokenizer.vocab_size(),
                             "a text encodes to tokens of the vocabulary");
      }
      std::ignore = tokenizer.decode(tokens);
    }
  }
  std::ignore = tokenizer.decode({-1, 0, 1, 2, INT32_MAX, INT32_MIN, static_cast<Token>(tokenizer.vocab_size())});
  std::ignore = tokenizer.encode_prompt("");
  std::ignore = tokenizer.stop_tokens();
}

}  // namespace serving::fuzzing
