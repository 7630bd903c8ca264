// The usual algorithm: twice `width` candidates a step, so that stop tokens cannot empty the beam.
#include "engine/beam_search.h"

#include <algorithm>
#include <cmath>

namespace serving {

using pagedkv::Token;

BeamSearch::BeamSearch(BeamOptions options) : options_(std::move(options)), live_(1) {}

double BeamSearch::score(double logprob, std::size_t length) const {
  return logprob / std::pow(static_cast<double>(std::max<std::size_t>(length, 1)), options_.length_penalty);
}

std::vector<BeamSearch::Child> BeamSearch::advance(std::span<const std::span<const float>> rows) {
  struct Candidate {
    double logprob;
    Child child;
  };
  std::vector<Candidate> candidates;
  for (std::uint32_t beam = 0; beam < rows.size(); ++beam) {
    for (std::size_t token = 0; token < rows[beam].size(); ++token) {
      candidates.push_back({live_[beam].logprob + rows[beam][token], {beam, static_cast<Token>(token)}});
    }
  }
  const std::size_t kept = std::min<std::size_t>(candidates.size(), 2 * std::size_t{options_.width});
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(kept), candidates.end(),
                    [](const Candidate& a, const Candidate& b) {
                      if (a.logprob != b.logprob) return a.logprob > b.logprob;
                      return a.child.parent != b.child.parent ? a.child.parent < b.child.parent
                                                              : a.child.token < b.child.token;
                    });
  candidates.resize(kept);

  std::vector<Hypothesis> next;
  std::vector<Child> children;
  for (const Candidate& candidate : candidates) {
    if (children.size() == options_.width) break;
    const Hypothesis& parent = live_[candidate.child.parent];
    const bool stops = std::ranges::find(options_.stop_tokens, candidate.child.token) != options_.stop_tokens.end();
    if (stops) {
      Hypothesis done = parent;
      done.logprob = candidate.logprob;
      done.score = score(done.logprob, done.tokens.size() + 1);
      done.stopped = true;
      finished_.push_back(std::move(done));
      continue;
    }
    Hypothesis longer = parent;
    longer.tokens.push_back(candidate.child.token);
    longer.logprob = candidate.logprob;
    longer.score = score(longer.logprob, longer.tokens.size());
    next.push_back(std::move(longer));
    children.push_back(candidate.child);
  }
  live_ = std::move(next);
  const bool is_full = finished_.size() >= options_.width;
  if (live_.empty() || is_full || is_long()) return {};
  return children;
}

bool BeamSearch::is_long() const { return !live_.empty() && live_[0].tokens.size() >= options_.max_tokens; }

std::vector<Hypothesis> BeamSearch::results() const {
  std::vector<Hypothesis> all = finished_;
  // Live ones at the full length are answers too. Shorter ones, cut off by the search's end, only fill up.
  if (is_long() || finished_.size() < options_.width) all.insert(all.end(), live_.begin(), live_.end());
  std::ranges::stable_sort(all, [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; });
  if (all.size() > options_.width) all.resize(options_.width);
  return all;
}

}  // namespace serving
