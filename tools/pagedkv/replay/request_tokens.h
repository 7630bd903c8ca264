// The tokens of a request: blocks that a trace knows by id only are expanded the same way everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pagedkv/types.h"
#include "replay/arrivals.h"

namespace pagedkv::tool {

/// Scatters 64 bits (the finaliser of splitmix64).
constexpr std::uint64_t scatter(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

/// Equal block ids give equal tokens; tokens that no block covers are the request's own, and those of no other.
class RequestTokens {
 public:
  RequestTokens() = default;
  explicit RequestTokens(const Request& request);

  /// Tokens begin .. begin + out.size() - 1 of prompt and output. Cost: O(runs + tokens).
  void expand(std::uint64_t begin, std::span<Token> out) const;

 private:
  std::vector<BlockRun> blocks_;
  std::uint64_t known_tokens_ = 0;
  std::uint32_t block_tokens_ = 1;
  std::uint64_t number_ = 0;
};

}  // namespace pagedkv::tool
