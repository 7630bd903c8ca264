// Grows chains of chunks.
#include "replay/chained_memory.h"

#include <algorithm>

namespace pagedkv::tool {

ChainedMemory::ChainedMemory(std::uint64_t capacity_tokens, std::uint32_t max_seqs, std::uint64_t slot_bytes)
    : capacity_(capacity_tokens), space_(capacity_tokens), arena_(capacity_tokens, slot_bytes), chains_(max_seqs) {}

bool ChainedMemory::extend(Chain& chain, std::uint64_t size) {
  last_asked_ = size;
  const auto begin = space_.allocate(size);
  if (!begin) return false;
  chain.chunks.push_back({*begin, size});
  chain.size += size;
  reserved_slots_ += size;
  ++num_chunks_;
  return true;
}

/// The first chunk holds the prefill and the token after it.
bool ChainedMemory::open(SequenceKey key, const Demand& demand) {
  const std::uint64_t tokens = std::min(demand.prefill_tokens + 1, demand.total_tokens);
  return extend(chains_[key], std::max<std::uint64_t>(tokens, 1));
}

bool ChainedMemory::grow(SequenceKey key, std::uint32_t num_tokens) {
  Chain& chain = chains_[key];
  const std::uint64_t held = chain.held + num_tokens;
  // As much again as it has; if that cannot be had, as much as it must have.
  if (held > chain.size && !extend(chain, std::max(chain.size, held - chain.size)) &&
      !extend(chain, held - chain.size)) {
    return false;
  }
  std::uint64_t chunk_begin = 0;  // in the sequence
  for (const Chunk& chunk : chain.chunks) {
    const std::uint64_t from = std::max(chain.held, chunk_begin), to = std::min(held, chunk_begin + chunk.size);
    if (from < to) arena_.touch(chunk.begin + from - chunk_begin, to - from);
    chunk_begin += chunk.size;
  }
  chain.held = held;
  held_tokens_ += num_tokens;
  return true;
}

void ChainedMemory::close(SequenceKey key, bool) {
  Chain& chain = chains_[key];
  for (const Chunk& chunk : chain.chunks) space_.release(chunk.begin, chunk.size);
  num_chunks_ -= chain.chunks.size();
  reserved_slots_ -= chain.size;
  held_tokens_ -= chain.held;
  chain = {};
}

MemoryUsage ChainedMemory::usage() const {
  return {reserved_slots_, held_tokens_, space_.unusable_for(last_asked_),
          space_.metadata_bytes() + num_chunks_ * sizeof(Chunk) + chains_.size() * sizeof(Chain)};
}

std::vector<SlotRun> ChainedMemory::layout() const {
  std::vector<SlotRun> runs;
  for (SequenceKey key = 0; key < chains_.size(); ++key) {
    std::uint64_t before = 0;
    for (const Chunk& chunk : chains_[key].chunks) {
      const std::uint64_t held = chains_[key].held > before ? chains_[key].held - before : 0;
      runs.push_back({key, chunk.begin, chunk.size, std::min(held, chunk.size)});
      before += chunk.size;
    }
  }
  return runs;
}

}  // namespace pagedkv::tool
