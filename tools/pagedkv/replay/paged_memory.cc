// Opens, grows and closes sequences of the library.
#include "replay/paged_memory.h"

#include <algorithm>

#include "tool.h"

namespace pagedkv::tool {
namespace {

constexpr std::uint64_t kSmallestPageBytes = 64;

PagePool create_pool(std::uint64_t capacity_tokens, std::uint32_t page_size) {
  const std::uint64_t capacity_pages = capacity_tokens / page_size;
  return value_or_bad_input(PagePool::create({.page_bytes = kSmallestPageBytes,
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

PagedMemory::PagedMemory(std::uint64_t capacity_tokens, std::uint32_t page_size, std::uint32_t max_seqs)
    : page_size_(page_size),
      pool_(create_pool(capacity_tokens, page_size)),
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
  held_tokens_ += num_tokens;
  return true;
}

void PagedMemory::close(SequenceKey key, bool) {
  promises_.drop(key);
  held_tokens_ -= sequences_[key].num_tokens();
  value_or_bad_input(sequences_[key].close(), "cannot close a sequence");
}

MemoryUsage PagedMemory::usage() const { return {pool_.stats().used_pages * page_size_, held_tokens_}; }

}  // namespace pagedkv::tool
