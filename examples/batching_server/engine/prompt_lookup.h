// Prompt lookup: guesses the next tokens from the last place where the text read the same. No second model.
#pragma once

#include <pagedkv/types.h>

#include <cstdint>
#include <span>
#include <vector>

namespace serving {

/// Up to `max_tokens` tokens that followed the latest earlier occurrence of the longest suffix of `tokens` that has one
/// (of 3 tokens, else 2). Empty if there is none.
///
/// Cost:   O(tokens).
/// Source: prompt lookup decoding (Saxena 2023), LLMA (arXiv:2304.04487)
std::vector<pagedkv::Token> look_up_draft(std::span<const pagedkv::Token> tokens, std::uint32_t max_tokens);

}  // namespace serving
