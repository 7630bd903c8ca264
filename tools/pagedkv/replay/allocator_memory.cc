// Buffers from malloc and realloc.
#include "replay/allocator_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "replay/arena.h"
#include "tool.h"

namespace pagedkv::tool {

AllocatorMemory::AllocatorMemory(std::unique_ptr<Allocator> allocator, std::uint64_t capacity_tokens,
                                 std::uint64_t max_seq_len, std::uint32_t max_seqs, std::uint64_t slot_bytes)
    : allocator_(std::move(allocator)),
      capacity_(capacity_tokens),
      max_seq_len_(max_seq_len),
      slot_bytes_(slot_bytes),
      buffers_(max_seqs) {}

AllocatorMemory::~AllocatorMemory() {
  for (const Buffer& buffer : buffers_) {
    if (buffer.memory != nullptr) allocator_->release(buffer.memory, buffer.size * slot_bytes_);
  }
}

std::uint64_t AllocatorMemory::size_for(std::uint64_t tokens) const {
  return std::min(std::bit_ceil(std::max<std::uint64_t>(tokens, 1)), max_seq_len_);
}

bool AllocatorMemory::can_ever_hold(std::uint64_t total_tokens) const {
  return total_tokens <= max_seq_len_ && size_for(total_tokens) <= capacity_;
}

bool AllocatorMemory::open(SequenceKey key, const Demand& demand) {
  const std::uint64_t size = size_for(std::min(demand.prefill_tokens + 1, demand.total_tokens));
  if (reserved_slots_ + size > capacity_) return false;
  auto* memory = static_cast<std::byte*>(allocator_->allocate(size * slot_bytes_));
  if (memory == nullptr) {
    if (demand.alone) throw BadInput(fmt::format("the allocator refused {} bytes", size * slot_bytes_));
    return false;
  }
  buffers_[key] = {memory, size, 0};
  reserved_slots_ += size;
  return true;
}

bool AllocatorMemory::grow(SequenceKey key, std::uint32_t num_tokens) {
  Buffer& buffer = buffers_[key];
  if (buffer.held + num_tokens > buffer.size) {
    const std::uint64_t size = size_for(buffer.held + num_tokens);
    if (reserved_slots_ - buffer.size + size > capacity_) return false;
    void* larger = allocator_->reallocate(buffer.memory, buffer.size * slot_bytes_, size * slot_bytes_);
    if (larger == nullptr) return false;
    // At most: for large blocks the allocator may have moved page tables instead of bytes, which does not show here.
    if (larger != buffer.memory) totals_.copied_tokens += buffer.held;
    buffer.memory = static_cast<std::byte*>(larger);
    reserved_slots_ += size - buffer.size;
    buffer.size = size;
  }
  touch_bytes(buffer.memory + buffer.held * slot_bytes_, buffer.memory + (buffer.held + num_tokens) * slot_bytes_);
  buffer.held += num_tokens;
  held_tokens_ += num_tokens;
  return true;
}

void AllocatorMemory::close(SequenceKey key, bool) {
  Buffer& buffer = buffers_[key];
  allocator_->release(buffer.memory, buffer.size * slot_bytes_);
  reserved_slots_ -= buffer.size;
  held_tokens_ -= buffer.held;
  buffer = {};
}

}  // namespace pagedkv::tool
