// The C functions of PagePool and SequenceStore.
#include <algorithm>
#include <vector>

#include "capi/convert.h"
#include "capi/handles.h"

using namespace pagedkv;
using namespace pagedkv::capi;

namespace {

/// Page ids as the C++ interface takes them. Throws std::bad_alloc.
std::vector<PageId> ids_of(std::span<const std::int32_t> pages) {
  std::vector<PageId> ids(pages.size());
  std::transform(pages.begin(), pages.end(), ids.begin(), [](std::int32_t page) { return PageId{page}; });
  return ids;
}

}  // namespace

// Pools ---------------------------------------------------------------------------------------------------------------

pagedkv_status pagedkv_pool_create(const pagedkv_pool_options* options, pagedkv_pool* pool) {
  if (pool == nullptr) return report(kNullArgument);
  const Result<pagedkv_pool_options> known = read_sized(options);
  if (!known) return report(known.error());
  const PagePoolOptions wanted{.page_bytes = known->page_bytes,
                               .capacity_pages = known->capacity_pages,
                               .max_capacity_pages = known->max_capacity_pages,
                               .watermark_pages = known->watermark_pages,
                               .huge_pages = known->no_huge_pages != 0 ? HugePages::kNever : HugePages::kTransparent};
  return report(give<PoolTable>(pool, [&] { return PagePool::create(wanted); }));
}

pagedkv_status pagedkv_pool_close(pagedkv_pool pool) { return capi::close<PoolTable>(pool); }

pagedkv_status pagedkv_pool_allocate(pagedkv_pool pool, int32_t* pages, size_t num_pages) {
  return with<PoolTable>(pool, [&](PagePool& object) -> Result<void> {
    const Result<std::span<std::int32_t>> out = span_of(pages, num_pages);
    if (!out) return out.error();
    // More than there can ever be are refused by the pool, and counted, as one too many: absurd counts need no memory.
    std::vector<PageId> ids(std::min<std::uint64_t>(num_pages, object.max_capacity_pages() + 1));
    if (Result<void> done = object.allocate(ids); !done) return done;
    std::transform(ids.begin(), ids.end(), out->begin(), [](PageId id) { return to_index(id); });
    return {};
  });
}

pagedkv_status pagedkv_pool_retain(pagedkv_pool pool, const int32_t* pages, size_t num_pages) {
  return with<PoolTable>(pool, [&](PagePool& object) -> Result<void> {
    const Result<std::span<const std::int32_t>> given = span_of(pages, num_pages);
    return given ? object.retain(ids_of(*given)) : given.error();
  });
}

pagedkv_status pagedkv_pool_release(pagedkv_pool pool, const int32_t* pages, size_t num_pages) {
  return with<PoolTable>(pool, [&](PagePool& object) -> Result<void> {
    const Result<std::span<const std::int32_t>> given = span_of(pages, num_pages);
    return given ? object.release(ids_of(*given)) : given.error();
  });
}

pagedkv_status pagedkv_pool_ref_count(pagedkv_pool pool, int32_t page, uint32_t* references) {
  return ask<PoolTable>(pool, references, [&](PagePool& object) { return object.ref_count(PageId{page}); });
}
pagedkv_status pagedkv_pool_is_evictable(pagedkv_pool pool, int32_t page, int32_t* evictable) {
  return ask<PoolTable>(pool, evictable, [&](PagePool& object) { return object.is_evictable(PageId{page}); });
}
pagedkv_status pagedkv_pool_available(pagedkv_pool pool, uint64_t* pages) {
  return ask<PoolTable>(pool, pages, [](PagePool& object) { return object.available_pages(); });
}
pagedkv_status pagedkv_pool_can_allocate(pagedkv_pool pool, uint64_t num_pages, int32_t* fits) {
  return ask<PoolTable>(pool, fits, [&](PagePool& object) { return object.can_allocate(num_pages); });
}

pagedkv_status pagedkv_pool_memory(pagedkv_pool pool, void** base, uint64_t* page_bytes, uint64_t* max_pages) {
  return with<PoolTable>(pool, [&](PagePool& object) -> Result<void> {
    if (base != nullptr) *base = object.base();
    if (page_bytes != nullptr) *page_bytes = object.page_bytes();
    if (max_pages != nullptr) *max_pages = object.max_capacity_pages();
    return {};
  });
}

pagedkv_status pagedkv_pool_page_data(pagedkv_pool pool, int32_t page, void** data) {
  if (data == nullptr) return report(kNullArgument);
  return with<PoolTable>(pool, [&](PagePool& object) -> Result<void> {
    std::byte* const bytes = object.page_data(PageId{page});
    if (bytes == nullptr) return Error{Errc::kInvalidArgument, "a page id is out of range"};
    *data = bytes;
    return {};
  });
}

pagedkv_status pagedkv_pool_get_stats(pagedkv_pool pool, pagedkv_pool_stats* stats) {
  return with<PoolTable>(pool, [&](PagePool& object) { return write_sized(stats_of(object.stats()), stats); });
}

pagedkv_status pagedkv_pool_trim(pagedkv_pool pool, uint64_t* given_bytes) {
  return with<PoolTable>(pool, [&](PagePool& object) -> Result<void> {
    const Result<std::uint64_t> given = object.trim();
    if (!given) return given.error();
    if (given_bytes != nullptr) *given_bytes = *given;
    return {};
  });
}

pagedkv_status pagedkv_pool_set_capacity(pagedkv_pool pool, uint64_t num_pages) {
  return with<PoolTable>(pool, [&](PagePool& object) { return object.set_capacity(num_pages); });
}

// Stores --------------------------------------------------------------------------------------------------------------

pagedkv_status pagedkv_store_create(pagedkv_pool pool, uint32_t page_size, const pagedkv_store_group* groups,
                                    size_t num_groups, pagedkv_store* store) {
  if (store == nullptr) return report(kNullArgument);
  return with<PoolTable>(pool, [&](PagePool& object) -> Result<void> {
    const Result<std::span<const pagedkv_store_group>> given = span_of(groups, num_groups);
    if (!given) return given.error();
    if (num_groups > kMaxLayerGroups) return Error{Errc::kInvalidArgument, "more than 64 layer groups"};
    std::vector<LayerGroup> layers;
    for (const pagedkv_store_group& group : *given) {
      layers.push_back({.window_left = window_left_of(group.window), .sink_tokens = group.sink_tokens});
    }
    return give<StoreTable>(store, [&] { return SequenceStore::create(object, page_size, layers); });
  });
}

pagedkv_status pagedkv_store_close(pagedkv_store store) { return capi::close<StoreTable>(store); }

pagedkv_status pagedkv_store_open(pagedkv_store store, pagedkv_sequence* sequence) {
  if (sequence == nullptr) return report(kNullArgument);
  return with<StoreTable>(
      store, [&](SequenceStore& object) { return give<SequenceTable>(sequence, [&] { return object.open(); }); });
}

pagedkv_status pagedkv_store_open_sequences(pagedkv_store store, uint64_t* num_sequences) {
  return ask<StoreTable>(store, num_sequences, [](SequenceStore& object) { return object.open_sequences(); });
}
