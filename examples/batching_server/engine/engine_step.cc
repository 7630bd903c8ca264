// One step of the engine: plan, make room, one pagedkv::Step through the model, then what its logits mean.
#include <tbb/parallel_for.h>

#include <algorithm>

#include "engine/engine.h"
#include "engine/prompt_lookup.h"

namespace serving {

using pagedkv::Errc;

namespace {
constexpr const char* kPoolTooSmall = "the pool is too small for this request";
}

bool Engine::step() {
  read_mailbox();
  while (!scheduler_.is_idle()) {
    const StepPlan plan = scheduler_.plan(options_.clock(), {.available_pages = cache_.pages_available(),
                                                             .capacity_pages = cache_.stats().pool.capacity_pages});
    apply(plan);
    Batch batch = gather(plan);
    if (batch.items.empty()) {
      // Nobody can move, and nobody is left to give way: cannot be, but must not wait for ever.
      if (plan.items.empty() && plan.preempted.empty() && !jobs_.empty()) {
        end_job(*jobs_.begin()->second, FinishReason::kFailed, kPoolTooSmall);
      }
      continue;
    }
    if (run(batch)) break;
    // The pool refused and every sequence is as it was. The plan counted shared pages as if they came free, say. One
    // lane more gives way, and the plan is made again from what the pool has then.
    ++counters_.refused_steps;
    if (const auto victim = scheduler_.preempt_one(options_.clock())) {
      preempt(*victim);
    } else {
      end_job(*batch.parts[0].lane->job, FinishReason::kFailed, kPoolTooSmall);
    }
  }
  const bool did_work = !jobs_.empty();
  // Jobs whose last lane has gone have ended.
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    Job& job = *(it++)->second;
    if (job.has_forked && job.lanes.empty()) forget(job.id);
  }
  publish_state();
  return did_work;
}

void Engine::preempt(LaneId id) {
  Lane& lane = *lanes_.at(id);
  lane.sequence = {};  // Its pages are free; those that hold a published prefix can still be found.
  lane.draft.clear();
  // A beam whose log-probabilities are known has nothing to compute again: its children will, when all are known.
  if (!lane.beam_row.empty()) scheduler_.remove(id);
}

// Opens the lane's sequence over whatever prefix of its tokens the cache has.
bool Engine::open_sequence(Lane& lane) {
  const std::span<const Token> known =
      options_.prefix_cache ? std::span<const Token>(lane.tokens) : std::span<const Token>();
  auto opened = cache_.open(known, {.cache_salt = lane.job->request.tenant});
  if (!opened) {
    end_job(*lane.job, FinishReason::kFailed, opened.error().what);
    return false;
  }
  lane.sequence = std::move(opened).value();
  lane.known_tokens = known.size();
  const std::uint64_t cached = lane.sequence.num_tokens();
  if (!lane.job->has_forked) lane.job->cached_tokens = cached;
  counters_.prompt_tokens += lane.tokens.size();
  counters_.cached_prompt_tokens += cached;
  scheduler_.found_cached(lane.id, cached);
  return true;
}

void Engine::apply(const StepPlan& plan) {
  for (LaneId id : plan.preempted) preempt(id);
  for (LaneId id : plan.admitted) {
    if (const auto it = lanes_.find(id); it != lanes_.end()) open_sequence(*it->second);
  }
}

// The tokens, positions and wanted logits of a planned step.
Engine::Batch Engine::gather(const StepPlan& plan) {
  Batch batch;
  for (const StepPlan::Item& item : plan.items) {
    const auto it = lanes_.find(item.lane);
    if (it == lanes_.end()) continue;  // Its job failed just now.
    Lane& lane = *it->second;
    const std::uint64_t computed = lane.sequence.num_tokens();
    const std::uint64_t pending = lane.tokens.size() - computed;
    std::vector<Token> fed;
    std::uint32_t num_logits = 0;
    if (pending == 1 && item.num_tokens > 1) {  // The last token, and guesses after it.
      fed.push_back(lane.tokens.back());
      const std::size_t guesses = std::min<std::size_t>(lane.draft.size(), item.num_tokens - 1);
      fed.insert(fed.end(), lane.draft.begin(), lane.draft.begin() + static_cast<std::ptrdiff_t>(guesses));
      num_logits = static_cast<std::uint32_t>(fed.size());
    } else {
      const auto count = std::min<std::uint64_t>(item.num_tokens, pending);
      const auto first = lane.tokens.begin() + static_cast<std::ptrdiff_t>(computed);
      fed.assign(first, first + static_cast<std::ptrdiff_t>(count));
      num_logits = count == pending ? 1 : 0;  // A chunk in the middle of a prompt needs none.
    }
    const auto first_logit = static_cast<std::uint32_t>(batch.logit_rows.size());
    for (std::size_t i = 0; i < fed.size(); ++i) {
      if (i + num_logits >= fed.size()) batch.logit_rows.push_back(static_cast<std::uint32_t>(batch.tokens.size()));
      batch.tokens.push_back(fed[i]);
      batch.positions.push_back(static_cast<std::uint32_t>(computed + i));
    }
    batch.parts.push_back({&lane, static_cast<std::uint32_t>(fed.size()), num_logits, first_logit});
    batch.fed.push_back(std::move(fed));
  }
  for (std::size_t i = 0; i < batch.parts.size(); ++i) {
    const Part& part = batch.parts[i];
    // The cache knows the tokens that `open` was given, and is told those generated since: so answers can be shared
    // too.
    const bool tell = options_.prefix_cache && part.lane->sequence.num_tokens() >= part.lane->known_tokens;
    batch.items.push_back({.sequence = &part.lane->sequence,
                           .num_new_tokens = part.num_tokens,
                           .tokens = tell ? std::span<const Token>(batch.fed[i]) : std::span<const Token>()});
  }
  return batch;
}

// Runs the step. False if the pool has too few pages; nothing has changed then.
bool Engine::run(Batch& batch) {
  auto begun = cache_.begin_step(batch.items);
  if (!begun) {
    if (begun.error() == Errc::kOutOfPages) return false;
    fail(batch, begun.error().what);
    return true;
  }
  pagedkv::Step step = std::move(begun).value();
  if (auto done = decoder_.forward(step, batch.tokens, batch.positions, batch.logit_rows, logits_); !done) {
    step.rollback();
    fail(batch, done.error().what);
    return true;
  }
  sample(batch);
  if (auto committed = step.commit(batch.accepted); !committed) {
    fail(batch, committed.error().what);
    return true;
  }
  ++counters_.steps;
  take_logits(batch);
  return true;
}

void Engine::fail(const Batch& batch, const char* what) {
  std::vector<RequestId> ids;
  ids.reserve(batch.parts.size());
  for (const Part& part : batch.parts) ids.push_back(part.lane->job->id);
  for (RequestId id : ids) {
    if (const auto it = jobs_.find(id); it != jobs_.end()) end_job(*it->second, FinishReason::kFailed, what);
  }
}

std::span<const float> Engine::logits_row(std::uint32_t row) const {
  const std::size_t vocab = decoder_.config().vocab_size;
  return std::span(logits_).subspan(row * vocab, vocab);
}

// Samples the tokens that follow, and so finds out how much of each draft was right.
void Engine::sample(Batch& batch) const {
  batch.sampled.resize(batch.parts.size());
  batch.accepted.resize(batch.parts.size());
  tbb::parallel_for(std::size_t{0}, batch.parts.size(), [&](std::size_t i) {
    const Part& part = batch.parts[i];
    const Lane& lane = *part.lane;
    batch.accepted[i] = part.num_tokens;
    if (part.num_logits == 0 || lane.job->beams || !lane.job->has_forked) return;
    // The token after each fed one is sampled as if there were no draft; the draft only decides how far this goes.
    const Request& request = lane.job->request;
    std::vector<Token> generated(lane.tokens.begin() + static_cast<std::ptrdiff_t>(request.prompt.size()),
                                 lane.tokens.end());
    for (std::uint32_t row = 0; row < part.num_logits; ++row) {
      batch.sampled[i].push_back(
          sample_token(logits_row(part.first_logit + row), request.sampling, generated, lane.choice));
      const Token token = batch.sampled[i].back().chosen.token;
      generated.push_back(token);
      const bool was_guessed = row + 1 < part.num_logits && batch.fed[i][row + 1] == token;
      if (!was_guessed) break;
    }
    batch.accepted[i] = part.num_tokens - part.num_logits + static_cast<std::uint32_t>(batch.sampled[i].size());
  });
}

// After the commit: prompts go on or fork, tokens go out, beams advance.
void Engine::take_logits(Batch& batch) {
  std::vector<Job*> beam_jobs;
  for (std::size_t i = 0; i < batch.parts.size(); ++i) {
    const Part& part = batch.parts[i];
    Lane& lane = *part.lane;
    Job& job = *lane.job;
    const std::uint64_t computed = lane.sequence.num_tokens();
    if (part.num_logits == 0) {
      scheduler_.advanced(lane.id, computed, lane.tokens.size() - computed, false);
    } else if (job.beams) {
      const auto row = logits_row(part.first_logit);
      lane.beam_row.assign(row.begin(), row.end());
      log_softmax(lane.beam_row);
      scheduler_.advanced(lane.id, computed, 0, true);
      if (std::ranges::find(beam_jobs, &job) == beam_jobs.end()) beam_jobs.push_back(&job);
    } else if (!job.has_forked) {
      scheduler_.advanced(lane.id, computed, 0, true);
      begin_choices(job, logits_row(part.first_logit));
    } else {
      counters_.drafted_tokens += part.num_logits - 1;
      counters_.accepted_draft_tokens += batch.sampled[i].size() - 1;
      bool goes_on = true;
      for (const Sampled& token : batch.sampled[i]) goes_on = goes_on && emit_token(lane, token);
      if (goes_on) continue_lane(lane);
    }
  }
  for (Job* job : beam_jobs) advance_beams(*job);
}

// The prompt has been computed: every choice gets a sequence that shares its pages, and a first token of its own.
void Engine::begin_choices(Job& job, std::span<const float> logits) {
  job.has_forked = true;
  const std::uint32_t count = job.request.num_choices;
  for (std::uint32_t choice = 1; choice < count; ++choice) {
    Lane& lane = add_lane(job, choice);
    Lane& first = *job.lanes.front();
    lane.tokens = first.tokens;
    lane.known_tokens = first.known_tokens;
    LaneSpec spec{.tenant = job.request.tenant,
                  .priority = job.request.priority,
                  .pending_tokens = 0,
                  .max_total_tokens = longest(job.request),
                  .computed_tokens = first.sequence.num_tokens(),
                  .heir_of = job.arrival};
    if (auto forked = first.sequence.fork()) {
      lane.sequence = std::move(forked).value();
    } else {  // No memory for bookkeeping: compute the prompt again when there is.
      spec.computed_tokens.reset();
      spec.pending_tokens = lane.tokens.size();
    }
    lane.id = scheduler_.add(spec, options_.clock());
    lanes_[lane.id] = &lane;
  }
  std::vector<Lane*> begun;
  begun.reserve(job.lanes.size());
  for (const auto& lane : job.lanes) begun.push_back(lane.get());
  for (Lane* lane : begun) {
    if (!lane->sequence.is_open()) continue;
    if (emit_token(*lane, sample_token(logits, job.request.sampling, {}, lane->choice))) continue_lane(*lane);
  }
}

// Appends a sampled token and tells the listener. False if the choice has ended, and the lane with it.
bool Engine::emit_token(Lane& lane, const Sampled& sampled) {
  Job& job = *lane.job;
  const Request& request = job.request;
  const auto end = [&](FinishReason reason) {
    const std::uint32_t choice = lane.choice;
    retire(lane);
    end_choice(job, choice, reason);
    return false;
  };
  const Token token = sampled.chosen.token;
  if (std::ranges::find(request.stop_tokens, token) != request.stop_tokens.end()) return end(FinishReason::kStop);
  lane.tokens.push_back(token);
  ++counters_.generated_tokens;
  Event event;
  event.choice = lane.choice;
  event.token = token;
  event.logprob = sampled.chosen;
  event.most_likely = sampled.most_likely;
  event.cached_tokens = job.cached_tokens;
  if (!job.listener(event)) return end(FinishReason::kStop);
  return lane.tokens.size() - request.prompt.size() < request.max_tokens || end(FinishReason::kLength);
}

// The lane's next step: its last token, and guesses at what follows.
void Engine::continue_lane(Lane& lane) {
  const Request& request = lane.job->request;
  lane.draft.clear();
  const std::uint64_t left = request.prompt.size() + request.max_tokens - lane.tokens.size();
  if (request.draft_tokens > 0 && left > 1) {
    lane.draft =
        look_up_draft(lane.tokens, static_cast<std::uint32_t>(std::min<std::uint64_t>(request.draft_tokens, left - 1)));
  }
  scheduler_.advanced(lane.id, lane.sequence.num_tokens(), 1 + lane.draft.size(), true);
}

}  // namespace serving
