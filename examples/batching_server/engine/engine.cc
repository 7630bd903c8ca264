// Requests come, wait, and go; the thread that steps.
#include "engine/engine.h"

#include <algorithm>
#include <chrono>

namespace serving {
namespace {

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

EngineOptions completed(EngineOptions options, const pagedkv::KvCache& cache) {
  options.scheduler.page_size = cache.options().page_size;
  options.scheduler.window_left = cache.options().attention.window_left;
  options.scheduler.watermark_pages = cache.options().watermark_pages;
  if (!options.clock) options.clock = steady_seconds;
  return options;
}

}  // namespace

Engine::Engine(Decoder& decoder, pagedkv::KvCache& cache, EngineOptions options)
    : decoder_(decoder),
      cache_(cache),
      options_(completed(std::move(options), cache)),
      scheduler_(options_.scheduler),
      snapshot_(std::make_shared<PoolSnapshot>()) {
  publish_state();
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    is_draining_ = is_stopping_ = cancels_all_ = true;
  }
  work_.notify_all();
  if (thread_.joinable()) thread_.join();
  read_mailbox();
}

SubmitError Engine::submit(Request request, Listener listener, RequestId* id) {
  if (request.prompt.empty()) return SubmitError::kEmptyPrompt;
  const ModelConfig& model = decoder_.config();
  const auto is_known = [&](Token token) { return token >= 0 && static_cast<std::uint32_t>(token) < model.vocab_size; };
  if (!std::ranges::all_of(request.prompt, is_known)) return SubmitError::kBadToken;
  const std::uint64_t total = request.prompt.size() + std::uint64_t{request.max_tokens};
  // Each choice alone must fit the pool: others can give way. Beams advance together, so they must fit together.
  const std::uint64_t together = std::max<std::uint32_t>(request.beam_width, 1);
  const std::uint64_t capacity = cache_.stats().pool.capacity_pages;
  // What admission asks for, or a request that is taken here could wait there for ever.
  const std::uint64_t pages = scheduler_.pages_for(longest(request)) * together;
  if (total > model.max_positions || pages > capacity) return SubmitError::kTooLong;
  {
    const std::lock_guard lock(mutex_);
    if (is_draining_) return SubmitError::kDraining;
    if (open_requests_ >= options_.max_requests) return SubmitError::kBusy;
    ++open_requests_;
    if (id != nullptr) *id = next_id_;
    submitted_.push_back({next_id_++, std::move(request), std::move(listener)});
  }
  work_.notify_all();
  return SubmitError::kNone;
}

void Engine::cancel(RequestId id) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
  }
  work_.notify_all();
}

void Engine::start() {
  thread_ = std::thread([this] {
    while (true) {
      if (step()) continue;
      std::unique_lock lock(mutex_);
      work_.wait(lock,
                 [this] { return is_stopping_ || wants_snapshot_ || !submitted_.empty() || !cancelled_.empty(); });
      if (is_stopping_) return;
    }
  });
}

void Engine::drain(double seconds) {
  std::unique_lock lock(mutex_);
  is_draining_ = true;
  const bool all_ended =
      state_changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return open_requests_ == 0; });
  if (all_ended) return;
  cancels_all_ = true;
  work_.notify_all();
  state_changed_.wait(lock, [this] { return open_requests_ == 0; });
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = published_;
  stats.open_requests = open_requests_;
  return stats;
}

std::shared_ptr<const PoolSnapshot> Engine::snapshot(double seconds) {
  std::unique_lock lock(mutex_);
  wants_snapshot_ = true;
  work_.notify_all();
  state_changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return !wants_snapshot_; });
  return snapshot_;
}

void Engine::read_mailbox() {
  std::vector<Mail> submitted;
  std::vector<RequestId> cancelled;
  bool cancels_all = false;
  {
    const std::lock_guard lock(mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
    cancels_all = cancels_all_;
  }
  for (Mail& mail : submitted) begin(mail.id, std::move(mail.request), std::move(mail.listener));
  for (RequestId id : cancelled) {
    if (const auto it = jobs_.find(id); it != jobs_.end()) end_job(*it->second, FinishReason::kCancelled);
  }
  while (cancels_all && !jobs_.empty()) end_job(*jobs_.begin()->second, FinishReason::kCancelled);
}

void Engine::begin(RequestId id, Request request, Listener listener) {
  auto job = std::make_unique<Job>();
  job->id = id;
  job->request = std::move(request);
  job->listener = std::move(listener);
  if (job->request.beam_width > 0) {
    job->beams = std::make_unique<BeamSearch>(BeamOptions{.width = job->request.beam_width,
                                                          .max_tokens = job->request.max_tokens,
                                                          .length_penalty = job->request.length_penalty,
                                                          .stop_tokens = job->request.stop_tokens});
  }
  Job& owned = *jobs_.emplace(id, std::move(job)).first->second;
  Lane& first = add_lane(owned, 0);
  first.tokens = owned.request.prompt;
  const LaneSpec spec{.tenant = owned.request.tenant,
                      .priority = owned.request.priority,
                      .pending_tokens = first.tokens.size(),
                      .max_total_tokens = longest(owned.request)};
  first.id = owned.arrival = scheduler_.add(spec, options_.clock());
  lanes_[first.id] = &first;
}

// Tokens that a sequence of the request may come to hold; a server that reserves must assume the model's whole context.
std::uint64_t Engine::longest(const Request& request) const {
  return options_.scheduler.reserve_max_length ? std::uint64_t{decoder_.config().max_positions}
                                               : request.prompt.size() + request.max_tokens;
}

Engine::Lane& Engine::add_lane(Job& job, std::uint32_t choice) {
  auto lane = std::make_unique<Lane>();
  lane->job = &job;
  lane->choice = choice;
  return *job.lanes.emplace_back(std::move(lane));
}

void Engine::retire(Lane& lane) {
  scheduler_.remove(lane.id);
  lanes_.erase(lane.id);
  std::erase_if(lane.job->lanes, [&](const auto& owned) { return owned.get() == &lane; });  // Its pages go with it.
}

// Tells the listener; the job ends with its last lane, see `step`.
void Engine::end_choice(Job& job, std::uint32_t choice, FinishReason reason, const char* failure) {
  Event event;
  event.choice = choice;
  event.finish = reason;
  event.cached_tokens = job.cached_tokens;
  event.failure = failure;
  job.listener(event);
}

// Ends a job before its time: tells every choice that has not ended.
void Engine::end_job(Job& job, FinishReason reason, const char* failure) {
  std::vector<std::uint32_t> open_choices;
  if (job.beams || !job.has_forked) {
    for (std::uint32_t choice = 0; choice < job.request.num_choices; ++choice) open_choices.push_back(choice);
  } else {
    for (const auto& lane : job.lanes) open_choices.push_back(lane->choice);
  }
  while (!job.lanes.empty()) retire(*job.lanes.back());
  for (std::uint32_t choice : open_choices) end_choice(job, choice, reason, failure);
  forget(job.id);
}

void Engine::forget(RequestId id) {
  jobs_.erase(id);
  {
    const std::lock_guard lock(mutex_);
    --open_requests_;
  }
  state_changed_.notify_all();
}

void Engine::publish_state() {
  counters_.scheduler = scheduler_.stats();
  counters_.cache = cache_.stats();
  const std::lock_guard lock(mutex_);
  published_ = counters_;
  if (!wants_snapshot_) return;
  auto snapshot = std::make_shared<PoolSnapshot>();
  snapshot->stats = counters_;
  for (const auto& [id, lane] : lanes_) {
    if (!lane->sequence.is_open()) continue;
    const auto pages = lane->sequence.pages();
    snapshot->holders.push_back({.request = lane->job->id,
                                 .choice = lane->choice,
                                 .num_tokens = lane->sequence.num_tokens(),
                                 .cached_tokens = lane->sequence.cached_tokens(),
                                 .generated_tokens = lane->tokens.size() - lane->job->request.prompt.size(),
                                 .pages = {pages.begin(), pages.end()}});
  }
  for (std::int32_t page = 0; static_cast<std::uint64_t>(page) < counters_.cache.pool.capacity_pages; ++page) {
    if (cache_.pool().is_evictable(pagedkv::PageId{page})) snapshot->evictable.push_back(pagedkv::PageId{page});
  }
  snapshot_ = std::move(snapshot);
  wants_snapshot_ = false;
  state_changed_.notify_all();
}

}  // namespace serving
