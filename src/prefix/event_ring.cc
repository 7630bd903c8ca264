// Recording and polling of cache events.
#include "prefix/event_ring.h"

#include <algorithm>
#include <array>
#include <mutex>

namespace pagedkv::prefix {

void EventRing::allocate(std::uint64_t capacity, std::uint32_t page_size) {
  records_.resize(capacity);
  tokens_.resize(capacity * page_size);
  page_size_ = page_size;
}

void EventRing::push(CacheEventKind kind, PageId page, std::uint64_t hash, std::uint64_t parent_hash,
                     const Token* tokens) noexcept {
  if (!is_on()) return;
  const std::scoped_lock guard(lock_);
  const std::uint64_t slot = next_write_++ % records_.size();
  if (next_write_ - next_read_ > records_.size()) {
    ++next_read_;
    ++num_lost_;
  }
  records_[slot] = {
      .hash = hash, .parent_hash = parent_hash, .page = page, .kind = kind, .has_tokens = tokens != nullptr};
  if (tokens != nullptr) {
    std::copy_n(tokens, page_size_, tokens_.begin() + static_cast<std::ptrdiff_t>(slot * page_size_));
  }
}

std::uint64_t EventRing::poll(CacheEventCallback callback, void* user) noexcept {
  if (!is_on() || callback == nullptr) return 0;
  std::array<Token, 256> tokens;  // the largest page_size
  std::uint64_t end = 0;          // later events are left to the next call: they may come faster than they are taken
  for (std::uint64_t num_polled = 0;; ++num_polled) {
    CacheEvent event;
    {
      const std::scoped_lock guard(lock_);
      if (num_polled == 0) end = next_write_;
      if (next_read_ >= end) return num_polled;
      event.sequence_number = next_read_;
      const std::uint64_t slot = next_read_++ % records_.size();
      const Record& record = records_[slot];
      event.kind = record.kind;
      event.page = record.page;
      event.hash = record.hash;
      event.parent_hash = record.parent_hash;
      if (record.has_tokens) {
        std::copy_n(tokens_.begin() + static_cast<std::ptrdiff_t>(slot * page_size_), page_size_, tokens.begin());
        event.tokens = {tokens.data(), page_size_};
      }
    }
    callback(user, event);
  }
}

std::uint64_t EventRing::num_lost() noexcept {
  const std::scoped_lock guard(lock_);
  return num_lost_;
}

std::uint64_t EventRing::num_bytes() const noexcept {
  return records_.size() * sizeof(Record) + tokens_.size() * sizeof(Token);
}

}  // namespace pagedkv::prefix
