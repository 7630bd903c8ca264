// The steps of the server.
#include "replay/scheduler.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace pagedkv::tool {

Scheduler::Scheduler(const SchedulerOptions& options, Arrivals& arrivals, KvMemory& memory)
    : options_(options), arrivals_(arrivals), memory_(memory) {
  // Every running sequence decodes a token a step, so a batch of tokens limits the sequences as well.
  options_.max_seqs = std::min(options_.max_seqs, options_.max_batched_tokens);
  for (SequenceKey key = options_.max_seqs; key > 0; --key) free_keys_.push_back(key - 1);
}

ReplayCounts Scheduler::run(const StepObserver& observer) {
  while (!running_.empty() || !preempted_.empty() || !arrivals_.drained()) {
    if (running_.empty() && preempted_.empty()) {
      counts_.virtual_s = std::max(counts_.virtual_s, arrivals_.next_arrival_s());
    }
    if (step() && observer) observer(counts_, usage_);
  }
  check_totals();
  return counts_;
}

bool Scheduler::step() {
  step_tokens_ = 0;
  const auto decoding = std::count_if(running_.begin(), running_.end(), [](const Running& r) { return r.decoding(); });
  std::uint64_t budget = options_.max_batched_tokens - static_cast<std::uint64_t>(decoding);
  grow_running(budget);
  admit(budget);
  if (running_.empty()) {
    if (!preempted_.empty()) throw std::logic_error("a preempted sequence does not fit into empty memory");
    if (arrivals_.peek(counts_.virtual_s) != nullptr)
      throw std::logic_error("empty memory refused a request that fits");
    return false;  // everything that had arrived was rejected
  }
  memory_.reserve();
  memory_.compute();
  counts_.virtual_s += options_.step_s + options_.token_s * static_cast<double>(step_tokens_);
  record();
  retire_finished();
  return true;
}

/// One token for every decoding sequence, a chunk for those that prefill, oldest first. Victims of preemption are
/// younger than the sequence that needs room, so nobody who has grown in this step is preempted in it.
void Scheduler::grow_running(std::uint64_t& budget) {
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Running& sequence = running_[i];
    std::uint64_t num_tokens = 1;
    if (!sequence.decoding()) {
      num_tokens = std::min(budget, sequence.prefill_target - sequence.held);
      if (num_tokens == 0) continue;
      budget -= num_tokens;
    }
    grow(i, static_cast<std::uint32_t>(num_tokens));
  }
}

/// Makes room by preempting from the young end, at last the sequence itself.
bool Scheduler::grow(std::size_t index, std::uint32_t num_tokens) {
  while (!memory_.grow(running_[index].key, num_tokens)) {
    preempt_youngest();
    if (index == running_.size()) return false;
  }
  Running& sequence = running_[index];
  sequence.held += num_tokens;
  step_tokens_ += num_tokens;
  if (sequence.held - num_tokens < sequence.computed_before) {
    counts_.recomputed_tokens +=
        std::min<std::uint64_t>(num_tokens, sequence.computed_before + num_tokens - sequence.held);
  }
  return true;
}

void Scheduler::preempt_youngest() {
  Running victim = std::move(running_.back());
  if (running_.size() == 1 && victim.held == victim.computed_before) {
    throw std::logic_error("a sequence that has the memory for itself cannot grow");
  }
  running_.pop_back();
  memory_.close(victim.key, /*finished=*/false);
  free_keys_.push_back(victim.key);
  victim.computed_before = std::max(victim.computed_before, victim.held);
  victim.prefill_target = std::max(victim.prefill_target, victim.held);
  victim.held = 0;
  preempted_.push_front(std::move(victim));
  ++counts_.preemptions;
}

void Scheduler::admit(std::uint64_t& budget) {
  while (budget > 0 && !free_keys_.empty()) {
    if (!preempted_.empty()) {
      if (!open(preempted_.front().request, preempted_.front().prefill_target)) return;
      Running sequence = std::move(preempted_.front());
      preempted_.pop_front();
      begin(std::move(sequence), budget);
      continue;
    }
    const Request* next = arrivals_.peek(counts_.virtual_s);
    if (next == nullptr) return;
    if (!memory_.can_ever_hold(next->turn.total_tokens())) {
      reject_next();
      continue;
    }
    if (!open(*next, next->turn.prompt_tokens)) return;
    Running sequence;
    sequence.request = arrivals_.take();
    sequence.prefill_target = sequence.request.turn.prompt_tokens;
    ++counts_.requests;
    begin(std::move(sequence), budget);
  }
}

bool Scheduler::open(const Request& request, std::uint64_t prefill_tokens) {
  return memory_.open(free_keys_.back(), {&request, prefill_tokens, request.turn.total_tokens(), running_.empty()});
}

/// Prefills the first chunk of a sequence that has just been opened.
void Scheduler::begin(Running sequence, std::uint64_t& budget) {
  sequence.key = free_keys_.back();
  free_keys_.pop_back();
  sequence.held = memory_.cached_tokens(sequence.key);
  if (sequence.held > sequence.computed_before) counts_.cached_tokens += sequence.held - sequence.computed_before;
  const std::uint64_t num_tokens = std::min(budget, sequence.prefill_target - sequence.held);
  budget -= num_tokens;
  running_.push_back(std::move(sequence));
  if (num_tokens > 0 && !grow(running_.size() - 1, static_cast<std::uint32_t>(num_tokens))) {
    throw std::logic_error("a sequence was admitted for which there is no room");
  }
}

void Scheduler::reject_next() {
  const Request rejected = arrivals_.take();
  ++counts_.requests;
  ++counts_.rejected;
  arrivals_.finished(rejected.session, counts_.virtual_s);
}

void Scheduler::record() {
  usage_ = memory_.usage();
  ++counts_.steps;
  counts_.computed_tokens += step_tokens_;
  counts_.sequence_steps += running_.size();
  counts_.reserved_slot_steps += static_cast<double>(usage_.reserved_slots);
  counts_.token_steps += static_cast<double>(usage_.held_tokens);
  counts_.peak_sequences = std::max<std::uint64_t>(counts_.peak_sequences, running_.size());
  counts_.peak_tokens = std::max(counts_.peak_tokens, usage_.held_tokens);
}

void Scheduler::retire_finished() {
  std::erase_if(running_, [this](const Running& sequence) {
    if (!sequence.finished()) return false;
    memory_.close(sequence.key, /*finished=*/true);
    free_keys_.push_back(sequence.key);
    ++counts_.completed;
    counts_.prompt_tokens += sequence.request.turn.prompt_tokens;
    counts_.output_tokens += sequence.request.turn.output_tokens;
    arrivals_.finished(sequence.request.session, counts_.virtual_s);
    return true;
  });
}

void Scheduler::check_totals() const {
  const MemoryUsage left = memory_.usage();
  if (left.reserved_slots != 0 || left.held_tokens != 0) throw std::logic_error("memory was leaked");
  if (counts_.completed + counts_.rejected != counts_.requests) throw std::logic_error("requests were lost");
  if (counts_.computed_tokens + counts_.cached_tokens !=
      counts_.prompt_tokens + counts_.output_tokens + counts_.recomputed_tokens) {
    throw std::logic_error("computed tokens do not add up");
  }
}

}  // namespace pagedkv::tool
