// A backward search for the suffix.
#include "engine/prompt_lookup.h"

#include <algorithm>

namespace serving {

using pagedkv::Token;

std::vector<Token> look_up_draft(std::span<const Token> tokens, std::uint32_t max_tokens) {
  for (std::size_t length : {std::size_t{3}, std::size_t{2}}) {
    if (tokens.size() <= length) continue;
    const auto suffix = tokens.last(length);
    for (std::size_t begin = tokens.size() - length; begin-- > 0;) {
      if (!std::ranges::equal(tokens.subspan(begin, length), suffix)) continue;
      const auto after = tokens.subspan(begin + length);
      const auto guess = after.first(std::min<std::size_t>(after.size(), max_tokens));
      return {guess.begin(), guess.end()};
    }
  }
  return {};
}

}  // namespace serving
