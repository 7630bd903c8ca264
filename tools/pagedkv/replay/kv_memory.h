// The seam between the scheduler and the policies: where the keys and values of running sequences live.
#pragma once

#include <cstdint>
#include <vector>

#include "replay/arrivals.h"

namespace pagedkv::tool {

/// Names a running sequence to its memory: 0 .. max_seqs-1, reused after close.
using SequenceKey = std::uint32_t;

/// What the scheduler knows of a sequence that wants to begin.
struct Demand {
  const Request* request = nullptr;
  std::uint64_t prefill_tokens = 0;  ///< To be computed at once; more than the prompt after a preemption.
  std::uint64_t total_tokens = 0;    ///< Held at the end. Only an oracle knows: see the policy.
  bool alone = false;                ///< Nothing else runs: nothing is kept in reserve for others.
};

/// The state of a memory at one moment, in token slots.
struct MemoryUsage {
  std::uint64_t reserved_slots = 0;  ///< Set aside for sequences, whether they hold a token or not.
  std::uint64_t held_tokens = 0;     ///< Tokens held; a token that several sequences share counts once.
  std::uint64_t unusable_slots = 0;  ///< Free, but in holes too small for what was last asked for.
  std::uint64_t metadata_bytes = 0;  ///< Bookkeeping, as far as it is known.
};

/// A run of slots that belongs to one sequence, of which the first `held` hold a token.
struct SlotRun {
  SequenceKey key = 0;
  std::uint64_t begin = 0, size = 0, held = 0;
};

/// The pages of a memory with a prefix cache at one moment, and pages evicted so far.
struct PageCounts {
  std::uint64_t used = 0, evictable = 0, free = 0, evictions = 0;
};

/// What a memory did in all.
struct MemoryTotals {
  std::uint64_t copied_tokens = 0;       ///< Moved from one place to another; at most, where an allocator moves them.
  double attention_s = 0;                ///< Spent in attention.
  std::uint64_t attention_kv_bytes = 0;  ///< Read by it: visible K and V, once a step, layer and sequence.
  std::uint64_t output_checksum = 0;     ///< Over the last output rows of finished sequences, in any order.
};

/// One policy of allocation over a capacity in token slots, shared by all sequences.
class KvMemory {
 public:
  virtual ~KvMemory() = default;

  /// Whether a sequence of this length would fit if it had the memory for itself.
  [[nodiscard]] virtual bool can_ever_hold(std::uint64_t total_tokens) const = 0;
  /// Begins a sequence if there is room for what it is about to prefill.
  virtual bool open(SequenceKey key, const Demand& demand) = 0;
  /// Tokens that a sequence held as soon as it was opened, because a prefix cache had them.
  [[nodiscard]] virtual std::uint64_t cached_tokens(SequenceKey key) const {
    static_cast<void>(key);
    return 0;
  }
  /// Adds tokens to a sequence, or says that memory has run out and leaves the sequence as it was.
  virtual bool grow(SequenceKey key, std::uint32_t num_tokens) = 0;
  /// Whether grow() only plans, and reserve() takes the memory for a whole step.
  [[nodiscard]] virtual bool reserves_whole_steps() const { return false; }
  /// Takes the memory for the tokens that have been added since the last call, unless grow() has.
  virtual void reserve() {}
  /// Writes and attends the tokens that have been added since the last call, if the memory holds real ones.
  virtual void compute() {}
  /// Frees a sequence; `finished` if it has all its tokens, else it was preempted.
  virtual void close(SequenceKey key, bool finished) = 0;
  [[nodiscard]] virtual MemoryUsage usage() const = 0;
  [[nodiscard]] virtual MemoryTotals totals() const = 0;
  [[nodiscard]] virtual PageCounts page_counts() const { return {}; }
  /// Where everything lies, for the map of the report; empty if the memory has no address space of its own.
  [[nodiscard]] virtual std::vector<SlotRun> layout() const { return {}; }
};

}  // namespace pagedkv::tool
