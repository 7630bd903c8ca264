// Collects pages to release and gives them to the pool in batches, without allocating memory.
#pragma once

#include <array>
#include <cstddef>

#include "core/check.h"
#include "pagedkv/types.h"
#include "pool/pool_impl.h"

namespace pagedkv::sequence {

/// Releases what was added at the latest when it goes out of scope. Add tails first.
class PageReleaser {
 public:
  explicit PageReleaser(PagePool::Impl& pool) noexcept : pool_(pool) {}
  PageReleaser(const PageReleaser&) = delete;
  PageReleaser& operator=(const PageReleaser&) = delete;
  ~PageReleaser() { flush(); }

  void add(PageId page) noexcept {
    if (page == kNullPage) return;
    if (count_ == pages_.size()) flush();
    pages_[count_++] = page;
  }

 private:
  void flush() noexcept {
    if (count_ == 0) return;
    // Sequences hold a reference to every page of theirs, so that this can only fail if others gave it away.
    [[maybe_unused]] const Result<void> done = pool_.release({pages_.data(), count_});
    PAGEDKV_ASSERT(done.has_value());
    count_ = 0;
  }

  PagePool::Impl& pool_;
  std::array<PageId, 256> pages_;
  std::size_t count_ = 0;
};

}  // namespace pagedkv::sequence
