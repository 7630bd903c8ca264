// KvCache for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <utility>

#include "arguments.h"
#include "arrays.h"
#include "errors.h"
#include "objects.h"
#include "policy.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagedkv::python {
namespace {

// What open and pin take besides tokens.
struct OpenArguments {
  OpenOptions options;

  OpenArguments(const std::string& cache_salt, const std::string& extra_key,
                const std::vector<RetentionRange>& retention)
      : options{.cache_salt = cache_salt, .extra_key = extra_key, .retention = retention} {}
};

/// One layer's K or V as an array over the pages themselves: [num_pages, num_kv_heads, page_size, dim].
nb::object layer_view(nb::object self, std::uint32_t layer, bool want_k) {
  PyCache& c = nb::cast<PyCache&>(self);
  const KvView view = unwrap(c.cache.view(layer));
  const auto element = static_cast<std::int64_t>(size_of(c.shape.dtype));
  const std::size_t shape[] = {static_cast<std::size_t>(view.num_pages), c.shape.num_kv_heads,
                               c.cache.options().page_size, want_k ? c.shape.head_dim : c.shape.v_head_dim};
  const std::int64_t strides[] = {(want_k ? view.k_page_stride : view.v_page_stride) / element,
                                  (want_k ? view.k_head_stride : view.v_head_stride) / element,
                                  (want_k ? view.k_token_stride : view.v_token_stride) / element, 1};
  nb::dlpack::dtype type = nb::dtype<float>();
  if (c.shape.dtype != DType::f32) {
    type = {static_cast<std::uint8_t>(c.shape.dtype == DType::f16 ? nb::dlpack::dtype_code::Float
                                                                  : nb::dlpack::dtype_code::Bfloat),
            16, 1};
  }
  void* data = const_cast<void*>(want_k ? view.k : view.v);
  return nb::cast(nb::ndarray<>(data, 4, shape, self, strides, type, nb::device::cpu::value, 0));
}

void make_cache(PyCache* self, const nb::kwargs& given) {
  Arguments arguments(given);
  KvCacheOptions options;
  ModelShape& shape = options.shape;
  shape.num_layers = arguments.take<std::uint32_t>("num_layers");
  shape.num_q_heads = arguments.take<std::uint32_t>("num_q_heads");
  shape.num_kv_heads = arguments.take<std::uint32_t>("num_kv_heads");
  shape.head_dim = arguments.take<std::uint32_t>("head_dim");
  shape.v_head_dim = arguments.take("v_head_dim", shape.v_head_dim);
  shape.dtype = dtype_named(arguments.take<std::string>("dtype", "bf16"));
  options.page_size = arguments.take("page_size", options.page_size);
  options.capacity_bytes = arguments.take("capacity_bytes", options.capacity_bytes);
  options.capacity_pages = arguments.take("capacity_pages", options.capacity_pages);
  options.max_capacity_pages = arguments.take("max_capacity_pages", options.max_capacity_pages);
  options.watermark_pages = arguments.take("watermark_pages", options.watermark_pages);
  options.huge_pages = arguments.take("huge_pages", true) ? HugePages::kTransparent : HugePages::kNever;
  options.prefix_cache = arguments.take("prefix_cache", options.prefix_cache);
  options.zero_pages_between_tenants = arguments.take("zero_pages_between_tenants", options.zero_pages_between_tenants);
  options.prefix.event_capacity = arguments.take("event_capacity", options.prefix.event_capacity);
  const nb::object policy = arguments.take_any("eviction_policy");
  if (!policy.is_none()) options.prefix.policy = policy_of(policy);
  const VariantArguments attention(arguments, shape.num_q_heads, shape.num_layers);
  options.attention = attention.variant;
  using Group = std::tuple<std::vector<std::uint32_t>, std::int32_t, std::uint32_t>;
  const auto layer_groups = arguments.take("layer_groups", std::vector<Group>());
  std::vector<KvLayerGroup> groups;
  for (const auto& [layers, window_left, sink_tokens] : layer_groups)
    groups.push_back({layers, window_left, sink_tokens});
  options.layer_groups = groups;
  options.layers_per_page = arguments.take("layers_per_page", options.layers_per_page);
  options.cascade = arguments.take("cascade", options.cascade);
  const auto target = arguments.take<std::string>("target", "");
  options.target = target;
  arguments.finish();
  KvCache cache = unwrap(unlocked([&] { return KvCache::create(options); }));
  if (shape.v_head_dim == 0) shape.v_head_dim = shape.head_dim;
  new (self) PyCache(std::move(cache), shape);
}

constexpr const char* kMakeCacheSignature =
    "def __init__(self, *, num_layers: int, num_q_heads: int, num_kv_heads: int, head_dim: int, v_head_dim: int = 0, "
    "dtype: str = 'bf16', page_size: int = 16, capacity_bytes: int = 0, capacity_pages: int = 0, "
    "max_capacity_pages: int = 0, watermark_pages: int = 0, huge_pages: bool = True, prefix_cache: bool = True, "
    "eviction_policy: object = 'lru', event_capacity: int = 0, sm_scale: float = 0.0, causal: bool = True, "
    "window_left: int = -1, sink_tokens: int = 0, logits_soft_cap: float = 0.0, sinks: object = None, alibi_slopes: "
    "object = None, f16_as_bf16: bool = False, "
    "layer_groups: collections.abc.Sequence[tuple[collections.abc.Sequence[int], int, int]] = (), "
    "layers_per_page: int = 0, zero_pages_between_tenants: bool = False, cascade: bool = False, target: str = '') -> "
    "None";

std::unique_ptr<PySequence> open_sequence(PyCache& c, nb::handle tokens, const std::string& cache_salt,
                                          const std::string& extra_key, const std::vector<RetentionRange>& retention) {
  const Ints ids = ints_of(tokens, "tokens");
  const OpenArguments open(cache_salt, extra_key, retention);
  return std::make_unique<PySequence>(unwrap(unlocked([&] { return c.cache.open(ids.span, open.options); })));
}

std::uint64_t pin(PyCache& c, nb::handle tokens, const std::string& cache_salt, const std::string& extra_key) {
  const Ints ids = ints_of(tokens, "tokens");
  const OpenArguments open(cache_salt, extra_key, {});
  return static_cast<std::uint64_t>(unwrap(unlocked([&] { return c.cache.pin(ids.span, open.options); })));
}

/// Counts by name.
nb::dict cache_stats(PyCache& c) {
  const CacheStats s = unlocked([&] { return c.cache.stats(); });
  nb::dict d = stats_of(s.pool);
  d["open_sequences"] = s.open_sequences;
  d["steps_begun"] = s.steps_begun;
  d["steps_committed"] = s.steps_committed;
  d["steps_rolled_back"] = s.steps_rolled_back;
  d["tokens_committed"] = s.tokens_committed;
  d["copied_pages"] = s.copied_pages;
  d["prefix_lookups"] = s.prefix.lookups;
  d["prefix_lookup_tokens"] = s.prefix.lookup_tokens;
  d["prefix_hit_tokens"] = s.prefix.hit_tokens;
  d["published_pages"] = s.prefix.published_pages;
  d["merged_pages"] = s.prefix.merged_pages;
  d["pinned_pages"] = s.prefix.pinned_pages;
  d["namespaces"] = s.prefix.namespaces;
  d["lost_events"] = s.prefix.lost_events;
  d["prefix_metadata_bytes"] = s.prefix.metadata_bytes;
  d["bytes_per_token"] = s.bytes_per_token;
  d["padding_bytes_per_token"] = s.padding_bytes_per_token;
  return d;
}

void bind_shape(nb::class_<PyCache>& cache) {
  cache.def_prop_ro(
           "page_bytes", [](PyCache& c) { return c.cache.page_bytes(); }, "Bytes of one page.")
      .def_prop_ro(
          "page_size", [](PyCache& c) { return c.cache.options().page_size; }, "Tokens a page.")
      .def_prop_ro(
          "capacity_pages", [](PyCache& c) { return c.cache.pool().capacity_pages(); }, "Pages that may be in use now.")
      .def_prop_ro(
          "max_capacity_pages", [](PyCache& c) { return c.cache.pool().max_capacity_pages(); },
          "What set_capacity may raise it to.")
      .def_prop_ro(
          "num_layers", [](PyCache& c) { return c.shape.num_layers; }, "Layers of the model.")
      .def_prop_ro(
          "num_q_heads", [](PyCache& c) { return c.shape.num_q_heads; }, "Query heads.")
      .def_prop_ro(
          "num_kv_heads", [](PyCache& c) { return c.shape.num_kv_heads; }, "Heads of K and V.")
      .def_prop_ro(
          "head_dim", [](PyCache& c) { return c.shape.head_dim; }, "Elements of a row of K.")
      .def_prop_ro(
          "v_head_dim", [](PyCache& c) { return c.shape.v_head_dim; }, "Elements of a row of V.")
      .def_prop_ro(
          "dtype", [](PyCache& c) { return to_string(c.shape.dtype); }, "\"f32\", \"f16\" or \"bf16\".")
      .def(
          "view_k", [](nb::object self, std::uint32_t layer) { return layer_view(self, layer, true); }, "layer"_a,
          "K of one layer over the pages themselves: [num_pages, num_kv_heads, page_size, head_dim], by DLPack. "
          "Write pages that you hold only: one that no sequence ever held reads as zeros, and to write it ends the "
          "process.")
      .def(
          "view_v", [](nb::object self, std::uint32_t layer) { return layer_view(self, layer, false); }, "layer"_a,
          "V of one layer, likewise.")
      .def(
          "page_table_of", [](PyCache& c, std::uint32_t layer) { return unwrap(c.cache.page_table_of(layer)); },
          "layer"_a, "Which group's page table, as Sequence.pages_of takes it, is of this layer.");
}

void bind_questions(nb::class_<PyCache>& cache) {
  cache
      .def_prop_ro(
          "pages_available", [](PyCache& c) { return unlocked([&] { return c.cache.pages_available(); }); },
          "Free and evictable pages.")
      .def(
          "pages_for_tokens",
          [](PyCache& c, std::uint64_t n, std::uint64_t step) { return c.cache.pages_for_tokens(n, step); },
          "num_tokens"_a, "step_tokens"_a = 0,
          "Pages that a sequence holds at most, if no step adds more than step_tokens (0 = all at once).")
      .def(
          "pages_needed",
          [](PyCache& c, nb::handle list) {
            const StepItems items = items_of(list);
            return unwrap(all_alone(items.sequences, [&] { return c.cache.pages_needed(items.items); }));
          },
          "items"_a, nb::sig("def pages_needed(self, items: collections.abc.Sequence[tuple]) -> int"),
          "Pages that begin_step(items) would take, copies on write included.")
      .def(
          "can_admit",
          [](PyCache& c, std::uint64_t prompt, std::uint64_t answer, std::uint64_t step) {
            return unlocked([&] { return c.cache.can_admit(prompt, answer, step); });
          },
          "prompt_tokens"_a, "max_new_tokens"_a = 0, "step_tokens"_a = 0,
          "Whether a prompt and its answer fit now, above the watermark.")
      .def("stats", &cache_stats, nb::sig("def stats(self) -> dict[str, int | float]"), "Exact counts of this moment.");
}

}  // namespace

void bind_cache(nb::module_& m) {
  nb::class_<PyCache> cache(m, "KvCache", "One pool of pages, shared by many sequences. Thread-safe.");
  bind_shape(cache);
  bind_questions(cache);
  bind_prefixes(cache);
  cache
      .def("__init__", &make_cache, nb::sig(kMakeCacheSignature),
           "One of capacity_bytes and capacity_pages says how much. sm_scale 0 means 1 / sqrt(head_dim), v_head_dim 0 "
           "head_dim, max_capacity_pages 0 the capacity; eviction_policy is \"lru\", \"arc\", \"s3fifo\" or an "
           "EvictionPolicy; layer_groups are (layers, window_left, sink_tokens) of layers that see the same keys; "
           "sinks is [num_q_heads] or, for each layer its own, [num_layers, num_q_heads]; sink_tokens are the first "
           "tokens that "
           "are seen beside a window; target names a kernel target, empty for the best.")
      .def("open", &open_sequence, "tokens"_a = nb::none(), "cache_salt"_a = "", "extra_key"_a = "",
           "retention"_a = std::vector<RetentionRange>(),
           "Opens a sequence; with the prompt's token ids it already holds the longest cached prefix (num_tokens). "
           "cache_salt is the namespace of a tenant, extra_key whatever else changes K and V, retention says how long "
           "its pages stay cached.")
      .def("begin_step", &begin_step, "items"_a,
           nb::sig("def begin_step(self, items: collections.abc.Sequence[tuple]) -> Step"),
           "Begins a step over (sequence, num_new_tokens[, tokens]) items: every page is reserved, or OutOfPages is "
           "raised and nothing changed.")
      .def(
          "trim", [](PyCache& c) { return unwrap(unlocked([&] { return c.cache.trim(); })); },
          "Gives the memory of free pages back to the system; returns the bytes given.")
      .def(
          "set_capacity",
          [](PyCache& c, std::uint64_t pages) { unwrap(unlocked([&] { return c.cache.set_capacity(pages); })); },
          "num_pages"_a, "Raises or lowers the capacity while others allocate; lowering evicts cached pages.")
      .def("pin", &pin, "tokens"_a, "cache_salt"_a = "", "extra_key"_a = "",
           "Keeps the cached prefix of the tokens (full pages) from eviction; returns what unpin takes.")
      .def(
          "unpin", [](PyCache& c, std::uint64_t id) { unwrap(unlocked([&] { return c.cache.unpin(PinId{id}); })); },
          "pin"_a, "Ends a pin; NotFound if there is none.");
}

}  // namespace pagedkv::python
