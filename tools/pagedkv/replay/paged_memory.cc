// Opens, grows and closes sequences of the library.
#include "replay/paged_memory.h"

#include <algorithm>

#include "replay/arena.h"
#include "tool.h"

namespace pagedkv::tool {
namespace {

constexpr std::uint64_t kSmallestPageBytes = 64;

PagePool create_pool(std::uint64_t capacity_tokens, std::uint32_t page_size, std::uint64_t slot_bytes) {
  const std::uint64_t capacity_pages = capacity_tokens / page_size;
  return value_or_bad_input(PagePool::create({.page_bytes = std::max(kSmallestPageBytes, slot_bytes * page_size),
                                              .capacity_pages = capacity_pages,
                                              .watermark_pages = watermark_pages(capacity_pages),
                                              .huge_pages = HugePages::kNever}),
                            "cannot create the page pool");
}

}  // namespace

void PagePromises::promise(SequenceKey key, std::uint64_t pages) {
  promised_[key] += pages;
  total_ += pages;
}

void PagePromises::keep(SequenceKey key, std::uint64_t pages_taken) {
  const std::uint64_t kept = std::min(promised_[key], pages_taken);
  promised_[key] -= kept;
  total_ -= kept;
}

PagedMemory::PagedMemory(std::uint64_t capacity_tokens, std::uint32_t page_size, std::uint32_t max_seqs,
                         std::uint64_t slot_bytes)
    : page_size_(page_size),
      slot_bytes_(slot_bytes),
      pool_(create_pool(capacity_tokens, page_size, slot_bytes)),
      store_(value_or_bad_input(SequenceStore::create(pool_, page_size), "cannot create the sequences")),
      promises_(max_seqs),
      sequences_(max_seqs) {}

bool PagedMemory::can_ever_hold(std::uint64_t total_tokens) const {
  return (total_tokens + page_size_ - 1) / page_size_ <= pool_.capacity_pages();
}

bool PagedMemory::open(SequenceKey key, const Demand& demand) {
  const std::uint64_t pages = (demand.prefill_tokens + page_size_ - 1) / page_size_;
  const std::uint64_t wanted = pages + promises_.total();
  if (demand.alone ? wanted > pool_.available_pages() : !pool_.can_allocate(wanted)) return false;
  sequences_[key] = value_or_bad_input(store_.open(), "cannot open a sequence");
  promises_.promise(key, pages);
  return true;
}

bool PagedMemory::grow(SequenceKey key, std::uint32_t num_tokens) {
  Sequence& sequence = sequences_[key];
  const std::size_t pages_before = sequence.pages().size();
  if (const Result<void> grown = sequence.append(num_tokens); !grown) {
    if (grown.error() == Errc::kOutOfPages) return false;
    value_or_bad_input(Result<void>(grown.error()), "cannot grow a sequence");
  }
  promises_.keep(key, sequence.pages().size() - pages_before);
  table_entries_ += sequence.pages().size() - pages_before;
  held_tokens_ += num_tokens;
  if (slot_bytes_ != 0) touch(sequence, num_tokens);
  return true;
}

/// Makes the slots of the last tokens resident.
void PagedMemory::touch(const Sequence& sequence, std::uint64_t num_tokens) {
  const std::uint64_t end = sequence.num_tokens();
  for (std::uint64_t at = end - num_tokens; at < end;) {
    const std::uint64_t page_end = std::min(end, (at / page_size_ + 1) * page_size_);
    std::byte* page = pool_.page_data(sequence.pages()[at / page_size_]);
    touch_bytes(page + at % page_size_ * slot_bytes_, page + ((page_end - 1) % page_size_ + 1) * slot_bytes_);
    at = page_end;
  }
}

void PagedMemory::close(SequenceKey key, bool) {
  promises_.drop(key);
  held_tokens_ -= sequences_[key].num_tokens();
  table_entries_ -= sequences_[key].pages().size();
  value_or_bad_input(sequences_[key].close(), "cannot close a sequence");
}

MemoryUsage PagedMemory::usage() const {
  const PoolStats stats = pool_.stats();
  return {stats.used_pages * page_size_, held_tokens_, 0, stats.metadata_bytes + table_entries_ * sizeof(PageId)};
}

std::vector<SlotRun> layout_of(const std::vector<Sequence>& sequences, std::uint32_t page_size) {
  std::vector<SlotRun> runs;
  for (SequenceKey key = 0; key < sequences.size(); ++key) {
    std::uint64_t left = sequences[key].num_tokens();
    for (const PageId page : sequences[key].pages()) {
      const std::uint64_t held = std::min<std::uint64_t>(left, page_size);
      runs.push_back({key, static_cast<std::uint64_t>(to_index(page)) * page_size, page_size, held});
      left -= held;
    }
  }
  return runs;
}

}  // namespace pagedkv::tool
