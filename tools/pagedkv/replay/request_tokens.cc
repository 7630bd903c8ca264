// Expands block ids into tokens.
#include "replay/request_tokens.h"

#include <algorithm>

namespace pagedkv::tool {
namespace {

constexpr std::uint64_t kOwnTokens = 0x9E3779B97F4A7C15;  // keeps a request's own tokens apart from those of blocks

Token token_of(std::uint64_t stream, std::uint64_t offset) {
  return static_cast<Token>(scatter(scatter(stream) + offset) & 0x7FFF'FFFF);
}

}  // namespace

RequestTokens::RequestTokens(const Request& request)
    : blocks_(request.turn.blocks),
      known_tokens_(request.turn.known_tokens),
      block_tokens_(request.block_tokens),
      number_(request.number) {}

void RequestTokens::expand(std::uint64_t begin, std::span<Token> out) const {
  const std::uint64_t end = begin + out.size();
  std::uint64_t at = begin;
  std::uint64_t run_begin = 0;  // in tokens
  for (const BlockRun& run : blocks_) {
    const std::uint64_t run_end = std::min(run_begin + std::uint64_t{run.count} * block_tokens_, known_tokens_);
    for (; at < std::min(run_end, end); ++at) {
      const std::uint64_t offset = at - run_begin;
      out[at - begin] = token_of(run.first + offset / block_tokens_, offset % block_tokens_);
    }
    run_begin = run_end;
    if (at >= end) return;
  }
  for (; at < end; ++at) out[at - begin] = token_of(kOwnTokens ^ number_, at);
}

}  // namespace pagedkv::tool
