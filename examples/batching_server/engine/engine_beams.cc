// Beam search over forked sequences: children share their parent's pages and copy only the last one.
#include "engine/engine.h"

namespace serving {

// Once all live beams have log-probabilities, chooses their children and gives each a sequence.
void Engine::advance_beams(Job& job) {
  std::vector<std::span<const float>> rows;
  for (const auto& lane : job.lanes) {
    if (lane->beam_row.empty()) return;  // Gave way, and is not computed again yet: the others wait.
    rows.emplace_back(lane->beam_row);
  }
  job.has_forked = true;
  const std::vector<BeamSearch::Child> children = job.beams->advance(rows);
  if (children.empty()) return finish_beams(job);

  // Fork before anything is dropped: a parent may have several children, or none.
  std::vector<pagedkv::Sequence> sequences;
  std::vector<std::vector<Token>> tokens;
  for (const BeamSearch::Child& child : children) {
    Lane& parent = *job.lanes[child.parent];
    tokens.push_back(parent.tokens);
    tokens.back().push_back(child.token);
    auto forked = parent.sequence.fork();  // A preempted parent's is closed: the child waits as well.
    sequences.push_back(std::move(forked).value_or(pagedkv::Sequence()));
  }
  const std::uint64_t known = job.lanes.front()->known_tokens;
  while (!job.lanes.empty()) retire(*job.lanes.back());
  for (std::size_t i = 0; i < children.size(); ++i) {
    Lane& lane = add_lane(job, static_cast<std::uint32_t>(i));
    lane.tokens = std::move(tokens[i]);
    lane.sequence = std::move(sequences[i]);
    lane.known_tokens = known;
    LaneSpec spec{.tenant = job.request.tenant,
                  .priority = job.request.priority,
                  .pending_tokens = lane.tokens.size(),
                  .max_total_tokens = longest(job.request),
                  .heir_of = job.arrival};
    if (lane.sequence.is_open()) {
      spec.computed_tokens = lane.sequence.num_tokens();
      spec.pending_tokens = 1;
    }
    lane.id = scheduler_.add(spec, options_.clock());
    lanes_[lane.id] = &lane;
  }
}

// Tells the best hypotheses, token by token, best first.
void Engine::finish_beams(Job& job) {
  while (!job.lanes.empty()) retire(*job.lanes.back());
  const std::vector<Hypothesis> results = job.beams->results();
  for (std::uint32_t choice = 0; choice < job.request.num_choices; ++choice) {
    const Hypothesis* best = choice < results.size() ? &results[choice] : nullptr;
    bool wants_more = true;
    for (std::size_t i = 0; best != nullptr && wants_more && i < best->tokens.size(); ++i) {
      Event event;
      event.choice = choice;
      event.token = best->tokens[i];
      event.cached_tokens = job.cached_tokens;
      ++counters_.generated_tokens;
      wants_more = job.listener(event);
    }
    const bool stopped = !wants_more || (best != nullptr && best->stopped);
    end_choice(job, choice, stopped ? FinishReason::kStop : FinishReason::kLength);
  }
}

}  // namespace serving
