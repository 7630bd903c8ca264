// PagePool and SequenceStore for Python: storage alone, for kernels of one's own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "errors.h"
#include "objects.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagedkv::python {
namespace {

struct PyStore {
  SequenceStore store;
};

std::vector<PageId> ids_of(const std::vector<std::int32_t>& pages) {
  std::vector<PageId> ids;
  for (const std::int32_t page : pages) ids.push_back(PageId{page});
  return ids;
}

std::unique_ptr<PagePool> make_pool(std::uint64_t page_bytes, std::uint64_t capacity_pages,
                                    std::uint64_t max_capacity_pages, std::uint64_t watermark_pages, bool huge_pages) {
  return std::make_unique<PagePool>(
      unwrap(PagePool::create({.page_bytes = page_bytes,
                               .capacity_pages = capacity_pages,
                               .max_capacity_pages = max_capacity_pages,
                               .watermark_pages = watermark_pages,
                               .huge_pages = huge_pages ? HugePages::kTransparent : HugePages::kNever})));
}

std::vector<std::int32_t> allocate(PagePool& pool, std::uint64_t count) {
  // More than there can ever be are refused by the pool, and counted, as one too many: absurd counts need no memory.
  std::vector<PageId> ids(std::min(count, pool.max_capacity_pages() + 1));
  unwrap(unlocked([&] { return pool.allocate(ids); }));
  std::vector<std::int32_t> pages;
  for (const PageId id : ids) pages.push_back(to_index(id));
  return pages;
}

/// The bytes of a page in place; they keep the pool alive.
nb::object page_data(nb::object self, std::int32_t page) {
  PagePool& pool = nb::cast<PagePool&>(self);
  std::byte* const bytes = pool.page_data(PageId{page});
  if (bytes == nullptr) raise({Errc::kInvalidArgument, "a page id is out of range"});
  if (pool.ref_count(PageId{page}) == 0 && !pool.is_evictable(PageId{page})) {
    raise({Errc::kInvalidArgument, "nobody holds the page: it may have no memory yet"});
  }
  const std::size_t shape[] = {static_cast<std::size_t>(pool.page_bytes())};
  return nb::cast(nb::ndarray<nb::numpy, std::uint8_t, nb::device::cpu>(bytes, 1, shape, self));
}

void bind_pool(nb::module_& m) {
  nb::class_<PagePool>(m, "PagePool", "Fixed-size pages of one reserved address range, counted by reference.")
      .def(nb::new_(&make_pool), nb::kw_only(), "page_bytes"_a, "capacity_pages"_a, "max_capacity_pages"_a = 0,
           "watermark_pages"_a = 0, "huge_pages"_a = true, "Memory is committed on first use.")
      .def("allocate", &allocate, "num_pages"_a, "Takes pages, each with one reference, or none: OutOfPages.")
      .def(
          "retain",
          [](PagePool& pool, const std::vector<std::int32_t>& pages) {
            unwrap(unlocked([&] { return pool.retain(ids_of(pages)); }));
          },
          "pages"_a, "Adds a reference to each page.")
      .def(
          "release",
          [](PagePool& pool, const std::vector<std::int32_t>& pages) {
            unwrap(unlocked([&] { return pool.release(ids_of(pages)); }));
          },
          "pages"_a, "Drops a reference from each page; give tails first.")
      .def(
          "ref_count", [](PagePool& pool, std::int32_t page) { return pool.ref_count(PageId{page}); }, "page"_a,
          "0 if unreferenced or out of range.")
      .def(
          "is_evictable", [](PagePool& pool, std::int32_t page) { return pool.is_evictable(PageId{page}); }, "page"_a,
          "Whether the page holds a published prefix that nobody refers to.")
      .def("can_allocate", &PagePool::can_allocate, "num_pages"_a, "Whether so many could be had above the watermark.")
      .def("page_data", &page_data, "page"_a, nb::sig("def page_data(self, page: int) -> numpy.ndarray"),
           "The bytes of a page that somebody holds, in place, as a NumPy array.")
      .def(
          "set_capacity",
          [](PagePool& pool, std::uint64_t pages) { unwrap(unlocked([&] { return pool.set_capacity(pages); })); },
          "num_pages"_a, "Raises or lowers the capacity.")
      .def(
          "trim", [](PagePool& pool) { return unwrap(unlocked([&] { return pool.trim(); })); },
          "Gives the memory of free pages back to the system; returns the bytes given.")
      .def(
          "stats", [](PagePool& pool) { return stats_of(unlocked([&] { return pool.stats(); })); },
          nb::sig("def stats(self) -> dict[str, int]"), "Exact counts of this moment.")
      .def_prop_ro("available_pages", &PagePool::available_pages, "Free and evictable pages.")
      .def_prop_ro("page_bytes", &PagePool::page_bytes, "Bytes of one page.")
      .def_prop_ro("capacity_pages", &PagePool::capacity_pages, "Pages that may be in use now.")
      .def_prop_ro("max_capacity_pages", &PagePool::max_capacity_pages, "Ids are below this for ever.");
}

void make_store(PyStore* self, PagePool& pool, std::uint32_t page_size,
                const std::vector<std::pair<std::int32_t, std::uint32_t>>& groups) {
  std::vector<LayerGroup> layers;
  for (const auto& [window_left, sink_tokens] : groups) layers.push_back({window_left, sink_tokens});
  new (self) PyStore{unwrap(SequenceStore::create(pool, page_size, layers))};
}

}  // namespace

nb::dict stats_of(const PoolStats& stats) {
  nb::dict d;
  d["page_bytes"] = stats.page_bytes;
  d["capacity_pages"] = stats.capacity_pages;
  d["used_pages"] = stats.used_pages;
  d["evictable_pages"] = stats.evictable_pages;
  d["free_pages"] = stats.free_pages;
  d["shared_pages"] = stats.shared_pages;
  d["peak_used_pages"] = stats.peak_used_pages;
  d["committed_bytes"] = stats.committed_bytes;
  d["metadata_bytes"] = stats.metadata_bytes;
  d["allocations"] = stats.allocations;
  d["failed_allocations"] = stats.failed_allocations;
  d["evictions"] = stats.evictions;
  d["huge_pages"] = static_cast<int>(stats.huge_pages);
  return d;
}

void bind_storage(nb::module_& m) {
  bind_pool(m);
  nb::class_<PyStore>(m, "SequenceStore", "Opens sequences over a pool: page tables without attention.")
      .def("__init__", &make_store, "pool"_a, "page_size"_a,
           "groups"_a = std::vector<std::pair<std::int32_t, std::uint32_t>>(),
           "page_size is in tokens; groups are (window_left, sink_tokens), one page table each; none means one group "
           "that sees all keys.")
      .def(
          "open", [](PyStore& s) { return std::make_unique<PySequence>(unwrap(s.store.open())); },
          "A sequence that begins empty.")
      .def_prop_ro("open_sequences", [](PyStore& s) { return s.store.open_sequences(); }, "Sequences that are open.");
}

}  // namespace pagedkv::python
