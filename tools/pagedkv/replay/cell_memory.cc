// Searches, takes and frees cells.
#include "replay/cell_memory.h"

#include <algorithm>

namespace pagedkv::tool {
namespace {

/// Of a cell in llama.cpp: position and shift (4 bytes each) and a bit for each of 256 sequences.
constexpr std::uint64_t kCellMetadataBytes = 40;

}  // namespace

CellMemory::CellMemory(std::uint64_t capacity_tokens, std::uint32_t max_seqs, std::uint64_t slot_bytes)
    : cells_(capacity_tokens, -1), arena_(capacity_tokens, slot_bytes), held_(max_seqs, 0), promised_(max_seqs, 0) {}

bool CellMemory::open(SequenceKey key, const Demand& demand) {
  const std::uint64_t watermark = demand.alone ? 0 : cells_.size() / 100;
  if (num_held_ + promised_total_ + demand.prefill_tokens + watermark > cells_.size()) return false;
  promised_[key] = demand.prefill_tokens;
  promised_total_ += demand.prefill_tokens;
  return true;
}

bool CellMemory::grow(SequenceKey key, std::uint32_t num_tokens) {
  if (num_held_ + num_tokens > cells_.size()) return false;
  for (std::uint32_t left = num_tokens; left > 0; head_ = (head_ + 1) % cells_.size()) {
    if (cells_[head_] >= 0) continue;
    cells_[head_] = static_cast<std::int32_t>(key);
    arena_.touch(head_, 1);
    --left;
  }
  const std::uint64_t kept = std::min<std::uint64_t>(promised_[key], num_tokens);
  promised_[key] -= kept;
  promised_total_ -= kept;
  held_[key] += num_tokens;
  num_held_ += num_tokens;
  return true;
}

void CellMemory::close(SequenceKey key, bool) {
  std::uint64_t first_freed = cells_.size();
  for (std::uint64_t cell = 0; cell < cells_.size(); ++cell) {
    if (cells_[cell] != static_cast<std::int32_t>(key)) continue;
    cells_[cell] = -1;
    first_freed = std::min(first_freed, cell);
  }
  head_ = std::min(head_, first_freed);
  num_held_ -= held_[key];
  promised_total_ -= promised_[key];
  held_[key] = promised_[key] = 0;
}

MemoryUsage CellMemory::usage() const { return {num_held_, num_held_, 0, cells_.size() * kCellMetadataBytes}; }

std::vector<SlotRun> CellMemory::layout() const {
  std::vector<SlotRun> runs;
  for (std::uint64_t cell = 0; cell < cells_.size(); ++cell) {
    if (cells_[cell] < 0) continue;
    const auto key = static_cast<SequenceKey>(cells_[cell]);
    if (runs.empty() || runs.back().key != key || runs.back().begin + runs.back().size != cell) {
      runs.push_back({key, cell, 0, 0});
    }
    ++runs.back().size;
    ++runs.back().held;
  }
  return runs;
}

}  // namespace pagedkv::tool
