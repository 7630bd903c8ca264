// Sizes, moves and frees contiguous buffers.
#include "replay/contiguous_memory.h"

#include <algorithm>
#include <bit>

namespace pagedkv::tool {
namespace {

std::unique_ptr<SlotSpace> create_space(const ContiguousOptions& options) {
  const std::uint64_t num_units = options.capacity_tokens / options.unit;
  if (options.sizing == Sizing::kBuddy) return std::make_unique<BuddySpace>(num_units);
  return std::make_unique<FirstFitSpace>(num_units);
}

}  // namespace

ContiguousMemory::ContiguousMemory(const ContiguousOptions& options)
    : options_(options),
      space_(create_space(options)),
      arena_(options.capacity_tokens, options.slot_bytes),
      buffers_(options.max_seqs) {}

/// Slots of a buffer that must hold `tokens` now.
std::uint64_t ContiguousMemory::size_for(std::uint64_t tokens, std::uint64_t total_tokens) const {
  std::uint64_t slots = options_.max_seq_len;
  switch (options_.sizing) {
    case Sizing::kMaxLen: break;
    case Sizing::kOracle: slots = std::max<std::uint64_t>(total_tokens, 1); break;
    case Sizing::kDoubling: slots = std::min(std::bit_ceil(std::max<std::uint64_t>(tokens, 1)), slots); break;
    case Sizing::kBuddy: slots = std::max<std::uint64_t>(tokens, 1); break;
  }
  return space_->rounded((slots + options_.unit - 1) / options_.unit) * options_.unit;
}

bool ContiguousMemory::can_ever_hold(std::uint64_t total_tokens) const {
  // A buddy of an empty space that is no power of two may be half as large as the space.
  const std::uint64_t num_units = options_.capacity_tokens / options_.unit;
  const std::uint64_t largest = options_.sizing == Sizing::kBuddy ? std::bit_floor(num_units) : num_units;
  return total_tokens <= options_.max_seq_len && size_for(total_tokens, total_tokens) <= largest * options_.unit;
}

bool ContiguousMemory::allocate(std::uint64_t size, Buffer& buffer) {
  last_asked_ = size / options_.unit;
  const auto begin = space_->allocate(last_asked_);
  if (!begin) return false;
  buffer.begin = *begin * options_.unit;
  buffer.size = size;
  reserved_slots_ += size;
  return true;
}

void ContiguousMemory::release(const Buffer& buffer) {
  space_->release(buffer.begin / options_.unit, buffer.size / options_.unit);
  reserved_slots_ -= buffer.size;
}

bool ContiguousMemory::open(SequenceKey key, const Demand& demand) {
  // With room for the token after the prefill, or else a sequence that came back because it could not double would
  // be as full as before.
  const std::uint64_t tokens = std::min(demand.prefill_tokens + 1, demand.total_tokens);
  Buffer buffer;
  if (!allocate(size_for(tokens, demand.total_tokens), buffer)) return false;
  buffers_[key] = buffer;
  return true;
}

bool ContiguousMemory::grow(SequenceKey key, std::uint32_t num_tokens) {
  Buffer& buffer = buffers_[key];
  if (buffer.held + num_tokens > buffer.size) {
    Buffer larger = buffer;
    if (!allocate(size_for(buffer.held + num_tokens, 0), larger)) return false;
    copy(buffer, larger);
    release(buffer);
    buffer = larger;
  }
  arena_.touch(buffer.begin + buffer.held, num_tokens);
  buffer.held += num_tokens;
  held_tokens_ += num_tokens;
  return true;
}

void ContiguousMemory::copy(const Buffer& from, const Buffer& to) {
  arena_.copy(from.begin, to.begin, from.held);
  totals_.copied_tokens += from.held;
}

void ContiguousMemory::close(SequenceKey key, bool) {
  release(buffers_[key]);
  held_tokens_ -= buffers_[key].held;
  buffers_[key] = {};
}

MemoryUsage ContiguousMemory::usage() const {
  return {reserved_slots_, held_tokens_, space_->unusable_for(last_asked_) * options_.unit,
          space_->metadata_bytes() + buffers_.size() * sizeof(Buffer)};
}

std::vector<SlotRun> ContiguousMemory::layout() const {
  std::vector<SlotRun> runs;
  for (SequenceKey key = 0; key < buffers_.size(); ++key) {
    const Buffer& buffer = buffers_[key];
    if (buffer.size > 0) runs.push_back({key, buffer.begin, buffer.size, buffer.held});
  }
  return runs;
}

}  // namespace pagedkv::tool
