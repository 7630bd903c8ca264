// Opening sequences: control blocks from one pool of nodes.
#include "sequence/sequence_store.h"

#include <mutex>
#include <new>
#include <utility>

#include "pool/pool_impl.h"

namespace pagedkv {

Result<Sequence::Control*> SequenceStore::Impl::make_control(const std::shared_ptr<Impl>& store) noexcept {
  void* node = nullptr;
  {
    const std::scoped_lock guard(store->nodes_lock_);
    node = store->nodes_.malloc();
  }
  if (node == nullptr) return Error{Errc::kOutOfMemory, "no memory for a sequence"};
  auto* const control = ::new (node) Sequence::Control(store);
  store->open_sequences.fetch_add(1, std::memory_order_relaxed);
  try {
    control->tables.resize(store->groups.size());
  } catch (const std::bad_alloc&) {
    free_control(control);
    return Error{Errc::kOutOfMemory, "no memory for a page table"};
  }
  return control;
}

void SequenceStore::Impl::free_control(Sequence::Control* control) noexcept {
  const std::shared_ptr<Impl> store = std::move(control->store);
  store->open_sequences.fetch_sub(1, std::memory_order_relaxed);
  control->~Control();
  const std::scoped_lock guard(store->nodes_lock_);
  store->nodes_.free(control);
}

Result<SequenceStore> SequenceStore::create(PagePool& pool, std::uint32_t page_size,
                                            std::span<const LayerGroup> groups) noexcept {
  if (pool.impl() == nullptr) return Error{Errc::kClosed, "the pool was moved from"};
  if (page_size < 1 || page_size > 256) return Error{Errc::kInvalidArgument, "page_size is not in 1..256"};
  if (groups.size() > kMaxLayerGroups) return Error{Errc::kInvalidArgument, "more than 64 layer groups"};
  for (const LayerGroup& group : groups) {
    if (group.window_left < -1) return Error{Errc::kInvalidArgument, "window_left is below -1"};
  }
  try {
    std::vector<LayerGroup> copy(groups.begin(), groups.end());
    if (copy.empty()) copy.resize(1);
    return SequenceStore(std::make_shared<Impl>(pool.impl(), page_size, std::move(copy)));
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for the sequence store"};
  }
}

Result<Sequence> SequenceStore::open() noexcept {
  if (!impl_) return Error{Errc::kClosed, "the sequence store was moved from"};
  return sequence::open(impl_);
}

std::uint64_t SequenceStore::open_sequences() const noexcept {
  return impl_ ? impl_->open_sequences.load(std::memory_order_relaxed) : 0;
}

SequenceStore::SequenceStore(std::shared_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
SequenceStore::SequenceStore(SequenceStore&&) noexcept = default;
SequenceStore& SequenceStore::operator=(SequenceStore&&) noexcept = default;
SequenceStore::~SequenceStore() = default;

}  // namespace pagedkv
