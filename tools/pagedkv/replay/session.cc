// Counting and cutting of session streams.
#include "replay/session.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace pagedkv::tool {
namespace {

class LimitedSource final : public SessionSource {
 public:
  LimitedSource(std::unique_ptr<SessionSource> source, std::uint64_t max_requests)
      : source_(std::move(source)), left_(max_requests) {}

  bool next(Session& session) override {
    if (left_ == 0 || !source_->next(session)) return false;
    if (session.turns.size() > left_) session.turns.resize(left_);
    left_ -= session.turns.size();
    return true;
  }

 private:
  std::unique_ptr<SessionSource> source_;
  std::uint64_t left_;
};

}  // namespace

SourceSummary summarize(SessionSource& source) {
  SourceSummary sum;
  for (Session session; source.next(session);) {
    ++sum.sessions;
    for (const Turn& turn : session.turns) {
      ++sum.requests;
      sum.prompt_tokens += turn.prompt_tokens;
      sum.output_tokens += turn.output_tokens;
      sum.longest_tokens = std::max(sum.longest_tokens, turn.total_tokens());
    }
  }
  return sum;
}

IdealPrefixHits ideal_prefix_hits(SessionSource& source) {
  IdealPrefixHits ideal;
  std::unordered_map<std::uint64_t, std::uint32_t> seen;  // block id to tokens of it that have been there
  for (Session session; source.next(session);) {
    for (const Turn& turn : session.turns) {
      std::uint64_t at = 0, hit = 0;  // tokens
      bool unbroken = true;
      for (const BlockRun& run : turn.blocks) {
        for (std::uint64_t id = run.first; id < run.first + run.count; ++id) {
          const auto filled = static_cast<std::uint32_t>(std::min<std::uint64_t>(
              session.block_tokens, turn.known_tokens - std::min<std::uint64_t>(at, turn.known_tokens)));
          std::uint32_t& before = seen[id];
          if (unbroken) hit += std::min(before, filled);
          unbroken = unbroken && before >= session.block_tokens;
          before = std::max(before, filled);
          at += filled;
        }
      }
      hit = std::min<std::uint64_t>(hit, turn.prompt_tokens);
      ideal.prompt_tokens += turn.prompt_tokens;
      ideal.tokens += hit;
      ideal.last_tokens += hit == turn.prompt_tokens && hit > 0 ? 1 : 0;
    }
  }
  return ideal;
}

std::unique_ptr<SessionSource> limit_requests(std::unique_ptr<SessionSource> source, std::uint64_t max_requests) {
  if (max_requests == 0) return source;
  return std::make_unique<LimitedSource>(std::move(source), max_requests);
}

}  // namespace pagedkv::tool
