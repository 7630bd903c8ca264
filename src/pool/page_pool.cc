// The public face of the pool.
#include "pagedkv/page_pool.h"

#include <utility>

#include "pool/pool_impl.h"

namespace pagedkv {

namespace {
constexpr Error kMovedFrom{Errc::kClosed, "the pool was moved from"};
}  // namespace

Result<PagePool> PagePool::create(const PagePoolOptions& options) noexcept {
  auto impl = Impl::create(options, memory::system_memory());
  if (!impl) return impl.error();
  return PagePool(std::move(*impl));
}

Result<void> PagePool::allocate(std::span<PageId> ids) noexcept { return impl_ ? impl_->allocate(ids) : kMovedFrom; }

Result<PageId> PagePool::allocate() noexcept {
  PageId id = kNullPage;
  Result<void> done = allocate(std::span<PageId>(&id, 1));
  if (!done) return done.error();
  return id;
}

Result<void> PagePool::retain(std::span<const PageId> ids) noexcept { return impl_ ? impl_->retain(ids) : kMovedFrom; }
Result<void> PagePool::release(std::span<const PageId> ids) noexcept {
  return impl_ ? impl_->release(ids) : kMovedFrom;
}
Result<std::uint64_t> PagePool::trim() noexcept {
  if (!impl_) return kMovedFrom;
  return impl_->trim();
}
Result<void> PagePool::set_capacity(std::uint64_t num_pages) noexcept {
  return impl_ ? impl_->set_capacity(num_pages) : kMovedFrom;
}

std::uint32_t PagePool::ref_count(PageId id) const noexcept { return impl_ ? impl_->ref_count(id) : 0; }
bool PagePool::is_evictable(PageId id) const noexcept {
  return impl_ && impl_->is_valid(id) && impl_->is_evictable(id);
}
bool PagePool::can_allocate(std::uint64_t count) const noexcept { return impl_ && impl_->can_allocate(count); }
std::uint64_t PagePool::available_pages() const noexcept { return impl_ ? impl_->available_pages() : 0; }
PoolStats PagePool::stats() const noexcept { return impl_ ? impl_->stats() : PoolStats{}; }
std::byte* PagePool::base() const noexcept { return impl_ ? impl_->base() : nullptr; }
std::byte* PagePool::page_data(PageId id) const noexcept {
  return impl_ && impl_->is_valid(id) ? impl_->page_data(id) : nullptr;
}
std::uint64_t PagePool::page_bytes() const noexcept { return impl_ ? impl_->page_bytes() : 0; }
std::uint64_t PagePool::capacity_pages() const noexcept { return impl_ ? impl_->capacity_pages() : 0; }
std::uint64_t PagePool::max_capacity_pages() const noexcept { return impl_ ? impl_->reserved_pages() : 0; }

PagePool::PagePool(std::shared_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
PagePool::PagePool(PagePool&&) noexcept = default;
PagePool& PagePool::operator=(PagePool&&) noexcept = default;
PagePool::~PagePool() = default;

}  // namespace pagedkv
