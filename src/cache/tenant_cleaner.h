// Zeroes pages that change tenants, if KvCacheOptions::zero_pages_between_tenants asks for it.
//
// Layer: cache.
#pragma once

#include <cstdint>
#include <memory>

#include "memory/page_array.h"
#include "pool/pool_impl.h"
#include "sequence/control.h"

namespace pagedkv::cache {

/// Remembers for each page the namespace of the sequence that got it last. A page that was just taken belongs to the
/// taker's thread alone, so no lock is needed.
class TenantCleaner final : public sequence::PageCleaner {
 public:
  /// Errors: kOsError, kOutOfMemory
  static Result<std::unique_ptr<TenantCleaner>> create(std::shared_ptr<PagePool::Impl> pool) noexcept;
  void clean(PageId page, const Sequence::Control& taker) noexcept override;

 private:
  explicit TenantCleaner(std::shared_ptr<PagePool::Impl> pool) noexcept : pool_(std::move(pool)) {}

  const std::shared_ptr<PagePool::Impl> pool_;
  memory::PageArray<std::uint64_t> owners_;  // [reserved_pages] id of a namespace; 0 and kNobody: of none
};

}  // namespace pagedkv::cache
