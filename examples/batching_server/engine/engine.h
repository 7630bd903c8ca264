// Engine: requests in, tokens out. It joins a Decoder, a pagedkv::KvCache and a Scheduler, one step after another.
#pragma once

#include <pagedkv/kv_cache.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/beam_search.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "model/decoder.h"

namespace serving {

struct EngineOptions {
  SchedulerOptions scheduler = {};     ///< page_size and window_left come from the cache.
  bool prefix_cache = true;            ///< Let requests of one tenant share the pages of equal beginnings.
  std::uint32_t max_requests = 4096;   ///< Waiting and running together; beyond it, `submit` refuses.
  std::function<double()> clock = {};  ///< Seconds; the steady clock if empty.
};

/// Why a request was not taken.
enum class SubmitError : std::uint8_t {
  kNone,
  kEmptyPrompt,
  kTooLong,   ///< Prompt and output do not fit the model's context or the whole pool.
  kBadToken,  ///< A prompt token outside the vocabulary.
  kBusy,      ///< max_requests reached; later it may work.
  kDraining,  ///< The engine takes no more requests.
};

struct EngineStats {
  SchedulerStats scheduler = {};
  pagedkv::CacheStats cache = {};
  std::uint64_t open_requests = 0;
  std::uint64_t steps = 0, refused_steps = 0;
  std::uint64_t prompt_tokens = 0, cached_prompt_tokens = 0;  ///< Of admitted sequences, recomputed ones included.
  std::uint64_t generated_tokens = 0;
  std::uint64_t drafted_tokens = 0, accepted_draft_tokens = 0;
};

/// Who holds which pages, for the page that shows the pool.
struct PoolSnapshot {
  struct Holder {
    RequestId request = 0;
    std::uint32_t choice = 0;
    std::uint64_t num_tokens = 0, cached_tokens = 0, generated_tokens = 0;
    std::vector<pagedkv::PageId> pages;  ///< In token order; kNullPage behind a window.
  };
  std::vector<Holder> holders;
  std::vector<pagedkv::PageId> evictable;  ///< Nobody's, but their prefix can still be found.
  EngineStats stats;
};

/// Threads: `submit`, `cancel`, `stats`, `snapshot` from any; `step` from one, or `start` makes that thread.
class Engine {
 public:
  /// The decoder and the cache are borrowed. The cache must have been made for the decoder's shape.
  Engine(Decoder& decoder, pagedkv::KvCache& cache, EngineOptions options);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();  ///< Cancels what is left.

  /// Takes a request, or says why not. Its listener hears at least one event for each choice.
  SubmitError submit(Request request, Listener listener, RequestId* id = nullptr);
  /// Ends a request before its next step; its pages are free then. Unknown ids are ignored.
  void cancel(RequestId id);

  /// One iteration: mailbox, plan, step. False if there was nothing to do.
  bool step();
  void start();
  /// Refuses new requests, and waits until all others have ended or the seconds are over; then cancels the rest.
  void drain(double seconds);

  [[nodiscard]] EngineStats stats() const;
  /// The state after the next step, within `seconds`; the latest there is if the engine takes longer.
  [[nodiscard]] std::shared_ptr<const PoolSnapshot> snapshot(double seconds);

 private:
  struct Job;
  // One sequence of a request: a sample, or a beam.
  struct Lane {
    LaneId id = 0;
    Job* job = nullptr;
    std::uint32_t choice = 0;
    pagedkv::Sequence sequence;      // Closed while the lane waits.
    std::vector<Token> tokens;       // Prompt and output.
    std::uint64_t known_tokens = 0;  // Of those, given to KvCache::open.
    std::vector<Token> draft;        // Guesses for the tokens after `tokens`.
    std::vector<float> beam_row;     // Log-probabilities [vocab] after the last token; empty until computed.
  };
  struct Job {
    RequestId id = 0;
    Request request;
    Listener listener;
    std::vector<std::unique_ptr<Lane>> lanes;
    LaneId arrival = 0;       // The first lane: samples and beams rank as old as that.
    bool has_forked = false;  // The prompt has been computed and its samples or beams have begun.
    std::uint64_t cached_tokens = 0;
    std::unique_ptr<BeamSearch> beams;
  };
  // A lane's part of the step in hand.
  struct Part {
    Lane* lane;
    std::uint32_t num_tokens;  // New tokens fed: the next of the prompt, or one and a draft.
    std::uint32_t num_logits;  // Rows of logits: one for each token that could be the last.
    std::uint32_t first_logit;
  };
  struct Batch {
    std::vector<Part> parts;
    std::vector<std::vector<Token>> fed;  // [parts] ids of the new tokens.
    std::vector<pagedkv::StepItem> items;
    std::vector<Token> tokens;             // [rows]
    std::vector<std::uint32_t> positions;  // [rows]
    std::vector<std::uint32_t> logit_rows;
    std::vector<std::vector<Sampled>> sampled;  // [parts] tokens that follow; none for prompts and beams.
    std::vector<std::uint32_t> accepted;        // [parts] fed tokens that turned out right.
  };

  // engine.cc: requests come and go.
  void read_mailbox();
  void begin(RequestId id, Request request, Listener listener);
  [[nodiscard]] std::uint64_t longest(const Request& request) const;
  Lane& add_lane(Job& job, std::uint32_t choice);
  void retire(Lane& lane);
  void end_choice(Job& job, std::uint32_t choice, FinishReason reason, const char* failure = "");
  void end_job(Job& job, FinishReason reason, const char* failure = "");
  void forget(RequestId id);
  void publish_state();

  // engine_step.cc: one step.
  void apply(const StepPlan& plan);
  void preempt(LaneId lane);
  bool open_sequence(Lane& lane);
  Batch gather(const StepPlan& plan);
  bool run(Batch& batch);
  void fail(const Batch& batch, const char* what);
  void sample(Batch& batch) const;
  void take_logits(Batch& batch);
  void begin_choices(Job& job, std::span<const float> logits);
  bool emit_token(Lane& lane, const Sampled& sampled);
  void continue_lane(Lane& lane);
  void advance_beams(Job& job);
  void finish_beams(Job& job);
  [[nodiscard]] std::span<const float> logits_row(std::uint32_t row) const;

  Decoder& decoder_;
  pagedkv::KvCache& cache_;
  EngineOptions options_;
  Scheduler scheduler_;
  std::map<RequestId, std::unique_ptr<Job>> jobs_;
  std::map<LaneId, Lane*> lanes_;
  std::vector<float> logits_;  // [padded rows][vocab] of the step in hand.
  EngineStats counters_;

  mutable std::mutex mutex_;  // Guards what follows.
  std::condition_variable work_, state_changed_;
  struct Mail {
    RequestId id;
    Request request;
    Listener listener;
  };
  std::vector<Mail> submitted_;
  std::vector<RequestId> cancelled_;
  RequestId next_id_ = 1;
  std::uint64_t open_requests_ = 0;
  bool is_draining_ = false, is_stopping_ = false, cancels_all_ = false, wants_snapshot_ = false;
  EngineStats published_;
  std::shared_ptr<const PoolSnapshot> snapshot_;
  std::thread thread_;
};

}  // namespace serving
