// Counting and cutting of session streams.
#include "replay/session.h"

#include <algorithm>
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

std::unique_ptr<SessionSource> limit_requests(std::unique_ptr<SessionSource> source, std::uint64_t max_requests) {
  if (max_requests == 0) return source;
  return std::make_unique<LimitedSource>(std::move(source), max_requests);
}

}  // namespace pagedkv::tool
