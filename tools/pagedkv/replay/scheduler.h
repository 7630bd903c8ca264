// A batching server in virtual time: admission, chunked prefill, decoding and preemption over one KvMemory.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "replay/arrivals.h"
#include "replay/kv_memory.h"

namespace pagedkv::tool {

struct SchedulerOptions {
  std::uint32_t max_seqs = 256;             ///< Sequences running at once.
  std::uint32_t max_batched_tokens = 2048;  ///< Tokens computed in a step.
  /// A step takes step_s + token_s * tokens of virtual time.
  double step_s = 10e-3;
  double token_s = 10e-6;
};

/// Sums over steps, from which the report is made.
struct ReplayCounts {
  std::uint64_t requests = 0, completed = 0;
  std::uint64_t rejected = 0;  ///< Longer than the memory could ever hold.
  std::uint64_t steps = 0;
  std::uint64_t preemptions = 0;
  std::uint64_t computed_tokens = 0;                   ///< Prefilled and decoded, recomputation included.
  std::uint64_t prompt_tokens = 0, output_tokens = 0;  ///< Of completed requests.
  std::uint64_t recomputed_tokens = 0;                 ///< Had been computed before a preemption.
  std::uint64_t cached_tokens = 0;  ///< Of prompts, found in a prefix cache instead of being computed.
  std::uint64_t peak_sequences = 0, peak_tokens = 0;
  std::uint64_t sequence_steps = 0;                 ///< Sum over steps of running sequences.
  double reserved_slot_steps = 0, token_steps = 0;  ///< Sums over steps of MemoryUsage.
  double virtual_s = 0;
};

/// Called after each step in which something ran.
using StepObserver = std::function<void(const ReplayCounts&, const MemoryUsage&)>;

/// Serves all requests: first come, first served; decoding before prefill before admission within a step.
///
/// Throws std::logic_error if the counts do not add up at the end, which would be a fault of the replay or the memory.
class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, Arrivals& arrivals, KvMemory& memory);

  ReplayCounts run(const StepObserver& observer = {});

 private:
  struct Running {
    Request request;
    SequenceKey key = 0;
    std::uint64_t held = 0;             ///< Tokens in memory.
    std::uint64_t prefill_target = 0;   ///< Below it, tokens are prefilled in chunks.
    std::uint64_t computed_before = 0;  ///< Tokens held when it was preempted.

    [[nodiscard]] bool decoding() const { return held >= prefill_target; }
    [[nodiscard]] bool finished() const { return held == request.turn.total_tokens(); }
  };

  bool step();  ///< Whether anything ran.
  void grow_running(std::uint64_t& budget);
  bool grow(std::size_t index, std::uint32_t num_tokens);
  void admit(std::uint64_t& budget);
  bool open(const Request& request, std::uint64_t prefill_tokens);
  void begin(Running sequence, std::uint64_t& budget);
  void reject_next();
  void preempt_youngest();
  void record();
  void retire_finished();
  void check_totals() const;

  SchedulerOptions options_;
  Arrivals& arrivals_;
  KvMemory& memory_;
  std::vector<Running> running_;   ///< Oldest first.
  std::deque<Running> preempted_;  ///< Oldest first; they come before new arrivals.
  std::vector<SequenceKey> free_keys_;
  std::uint64_t step_tokens_ = 0;
  ReplayCounts counts_;
  MemoryUsage usage_;
};

}  // namespace pagedkv::tool
