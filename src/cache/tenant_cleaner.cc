// Zeroes pages that change tenants.
#include "cache/tenant_cleaner.h"

#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "prefix/namespaces.h"

namespace pagedkv::cache {

namespace {
constexpr std::uint64_t kNobody = std::numeric_limits<std::uint64_t>::max();
}

Result<std::unique_ptr<TenantCleaner>> TenantCleaner::create(std::shared_ptr<PagePool::Impl> pool) noexcept {
  auto owners = memory::PageArray<std::uint64_t>::create(pool->os(), pool->reserved_pages());
  if (!owners) return owners.error();
  std::unique_ptr<TenantCleaner> cleaner(new (std::nothrow) TenantCleaner(std::move(pool)));
  if (cleaner == nullptr) return Error{Errc::kOutOfMemory, "no memory for the owners of pages"};
  cleaner->owners_ = std::move(*owners);
  return cleaner;
}

void TenantCleaner::clean(PageId page, const Sequence::Control& taker) noexcept {
  // The namespace of the first page table stands for all of them, so that pages may change tables.
  const prefix::Namespace* const name_space = taker.tables.front().chain.name_space.get();
  const std::uint64_t mine = name_space != nullptr ? name_space->id : kNobody;
  std::uint64_t& owner = owners_[to_index(page)];
  if (owner != mine || mine == kNobody) std::memset(pool_->page_data(page), 0, pool_->page_bytes());
  owner = mine;
}

}  // namespace pagedkv::cache
