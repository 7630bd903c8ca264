// Sizes, moves and frees contiguous buffers.
#include "replay/contiguous_memory.h"

#include <algorithm>
#include <bit>

namespace pagedkv::tool {

ContiguousMemory::ContiguousMemory(Sizing sizing, std::uint64_t capacity_tokens, std::uint64_t max_seq_len,
                                   std::uint32_t unit, std::uint32_t max_seqs)
    : sizing_(sizing),
      max_seq_len_(max_seq_len),
      capacity_(capacity_tokens / unit * unit),
      unit_(unit),
      space_(capacity_tokens / unit),
      buffers_(max_seqs) {}

/// Slots of a buffer that must hold `tokens` now.
std::uint64_t ContiguousMemory::size_for(std::uint64_t tokens, std::uint64_t total_tokens) const {
  std::uint64_t slots = max_seq_len_;
  if (sizing_ == Sizing::kOracle) slots = std::max<std::uint64_t>(total_tokens, 1);
  if (sizing_ == Sizing::kDoubling) slots = std::min(std::bit_ceil(std::max<std::uint64_t>(tokens, 1)), max_seq_len_);
  return (slots + unit_ - 1) / unit_ * unit_;
}

bool ContiguousMemory::can_ever_hold(std::uint64_t total_tokens) const {
  return total_tokens <= max_seq_len_ && size_for(total_tokens, total_tokens) <= capacity_;
}

bool ContiguousMemory::open(SequenceKey key, const Demand& demand) {
  // With room for the token after the prefill, or else a sequence that came back because it could not double would
  // be as full as before.
  const std::uint64_t tokens = std::min(demand.prefill_tokens + 1, demand.total_tokens);
  const std::uint64_t size = size_for(tokens, demand.total_tokens);
  const auto begin = space_.allocate(size / unit_);
  if (!begin) return false;
  buffers_[key] = {*begin * unit_, size, 0};
  usage_.reserved_slots += size;
  return true;
}

bool ContiguousMemory::grow(SequenceKey key, std::uint32_t num_tokens) {
  Buffer& buffer = buffers_[key];
  if (buffer.held + num_tokens > buffer.size) {
    Buffer larger = buffer;
    larger.size = size_for(buffer.held + num_tokens, 0);
    const auto begin = space_.allocate(larger.size / unit_);
    if (!begin) return false;
    larger.begin = *begin * unit_;
    copy(buffer, larger);
    space_.release(buffer.begin / unit_, buffer.size / unit_);
    usage_.reserved_slots += larger.size - buffer.size;
    buffer = larger;
  }
  buffer.held += num_tokens;
  usage_.held_tokens += num_tokens;
  return true;
}

void ContiguousMemory::close(SequenceKey key, bool) {
  Buffer& buffer = buffers_[key];
  space_.release(buffer.begin / unit_, buffer.size / unit_);
  usage_.reserved_slots -= buffer.size;
  usage_.held_tokens -= buffer.held;
  buffer = {};
}

}  // namespace pagedkv::tool
