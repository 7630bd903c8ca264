// KvCache, Sequence and Step for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <memory>
#include <string>

#include "arrays.h"
#include "errors.h"
#include "pagedkv/kv_cache.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagedkv::python {
namespace {

struct PySequence {
  Sequence sequence;
  std::atomic<bool> in_use{false};

  explicit PySequence(Sequence&& s) : sequence(std::move(s)) {}
};

struct PyCache {
  KvCache cache;
  ModelShape shape;
};

struct PyStep {
  Step step;
  ModelShape shape;
  std::vector<nb::object> sequences;  // kept alive while the step runs
  std::atomic<bool> in_use{false};

  PyStep(Step&& s, const ModelShape& m, std::vector<nb::object>&& held)
      : step(std::move(s)), shape(m), sequences(std::move(held)) {}
  [[nodiscard]] std::uint32_t v_head_dim() const { return shape.v_head_dim == 0 ? shape.head_dim : shape.v_head_dim; }
};

using Items = std::vector<nb::object>;

/// (sequence, num_new_tokens) or (sequence, num_new_tokens, tokens) as the library's items; `tokens` owns the ids.
std::vector<StepItem> items_of(const Items& items, std::vector<std::vector<Token>>& tokens,
                               std::vector<nb::object>& sequences) {
  std::vector<StepItem> result;
  tokens.reserve(items.size());
  for (const nb::object& item : items) {
    if (!nb::isinstance<nb::tuple>(item) || (nb::len(item) != 2 && nb::len(item) != 3)) {
      throw nb::type_error("items: expected (sequence, num_new_tokens) or (sequence, num_new_tokens, tokens)");
    }
    const nb::tuple parts = nb::cast<nb::tuple>(item);
    PySequence* sequence = nullptr;
    if (!nb::try_cast(parts[0], sequence) || sequence == nullptr) {
      throw nb::type_error("items: the first part of an item must be a Sequence");
    }
    std::int64_t count = 0;
    if (!nb::try_cast(parts[1], count)) throw nb::type_error("items: num_new_tokens must be an integer");
    if (count < 1 || count > std::numeric_limits<std::int32_t>::max()) {
      raise({Errc::kInvalidArgument, "num_new_tokens must be between 1 and 2^31 - 1"});
    }
    tokens.emplace_back();
    if (nb::len(item) == 3 && !parts[2].is_none()) {
      const Ints ids = ints_of(parts[2], "tokens");
      tokens.back().assign(ids.span.begin(), ids.span.end());
    }
    sequences.push_back(nb::borrow(parts[0]));
    result.push_back({.sequence = &sequence->sequence,
                      .num_new_tokens = static_cast<std::uint32_t>(count),
                      .tokens = tokens.back()});
  }
  return result;
}

/// An array for the output beside q, of the same library and element type.
nb::object new_output(nb::handle q, std::initializer_list<std::int64_t> shape) {
  nb::list extents;
  for (const std::int64_t extent : shape) extents.append(extent);
  return nb::module_::import_("pagedkv.arrays").attr("empty_beside")(q, nb::tuple(extents));
}

void bind_sequence_facts(nb::class_<PySequence>& sequence) {
  sequence.def_prop_ro(
              "num_tokens", [](PySequence& s) { return s.sequence.num_tokens(); }, "Tokens held.")
      .def_prop_ro(
          "cached_tokens", [](PySequence& s) { return s.sequence.cached_tokens(); },
          "Of those, found in the prefix cache when opened.")
      .def_prop_ro(
          "page_size", [](PySequence& s) { return s.sequence.page_size(); }, "Tokens a page.")
      .def_prop_ro("is_open", [](PySequence& s) { return s.sequence.is_open(); })
      .def_prop_ro(
          "pages",
          [](PySequence& s) {
            std::vector<std::int32_t> ids;
            for (const PageId id : s.sequence.pages()) ids.push_back(to_index(id));
            return ids;
          },
          "Page ids in token order; -1 behind a sliding window.")
      .def_prop_ro(
          "tokens",
          [](PySequence& s) {
            const auto tokens = s.sequence.tokens();
            return std::vector<Token>(tokens.begin(), tokens.end());
          },
          "Ids of the tokens, as far as they were given.");
}

void bind_sequence(nb::module_& m) {
  nb::class_<PySequence> sequence(m, "Sequence",
                                  "One growing token stream; dropping it releases its pages. One thread at a time.");
  bind_sequence_facts(sequence);
  sequence
      .def(
          "append",
          [](PySequence& s, std::uint32_t num_tokens) {
            const Exclusive one(s.in_use);
            unwrap(s.sequence.append(num_tokens));
          },
          "num_tokens"_a, "Makes room for more tokens, or changes nothing. For engines with kernels of their own.")
      .def(
          "truncate",
          [](PySequence& s, std::uint64_t num_tokens) {
            const Exclusive one(s.in_use);
            unwrap(s.sequence.truncate(num_tokens));
          },
          "num_tokens"_a, "Forgets all but the first num_tokens tokens.")
      .def(
          "fork",
          [](PySequence& s) {
            const Exclusive one(s.in_use);
            return std::make_unique<PySequence>(unwrap(s.sequence.fork()));
          },
          "A second sequence with the same tokens that shares all pages; whoever writes a shared page first copies it.")
      .def(
          "close",
          [](PySequence& s) {
            const Exclusive one(s.in_use);
            unwrap(s.sequence.close());
          },
          "Releases all pages. Closing twice is harmless.")
      .def(
          "pages_needed", [](PySequence& s, std::uint32_t n) { return s.sequence.pages_needed(n); }, "num_tokens"_a,
          "Pages that append(num_tokens) would take now.")
      .def("__enter__", [](nb::object self) { return self; })
      .def(
          "__exit__",
          [](PySequence& s, nb::handle, nb::handle, nb::handle) {
            const Exclusive one(s.in_use);
            unwrap(s.sequence.close());
          },
          "type"_a.none(), "value"_a.none(), "traceback"_a.none())
      .def("__len__", [](PySequence& s) { return s.sequence.num_tokens(); })
      .def("__repr__", [](PySequence& s) {
        return "<pagedkv.Sequence of " + std::to_string(s.sequence.num_tokens()) + " tokens in " +
               std::to_string(s.sequence.pages().size()) + " pages>";
      });
}

void step_write(PyStep& s, std::uint32_t layer, nb::handle k, nb::handle v) {
  const Exclusive one(s.in_use);
  const auto rows = static_cast<std::int64_t>(s.step.num_rows());
  const Array keys = dense(k, "k", Use::kRead, rows, {s.shape.num_kv_heads, s.shape.head_dim});
  const Array values = dense(v, "v", Use::kRead, rows, {s.shape.num_kv_heads, s.v_head_dim()});
  Result<void> result;
  {
    const nb::gil_scoped_release unlocked;
    result = s.step.write(layer, keys.in(), values.in());
  }
  unwrap(std::move(result));
}

nb::object step_attend(PyStep& s, std::uint32_t layer, nb::object q, nb::object out, nb::object lse) {
  const Exclusive one(s.in_use);
  const auto rows = static_cast<std::int64_t>(s.step.num_rows());
  const Array queries = dense(q, "q", Use::kRead, rows, {s.shape.num_q_heads, s.shape.head_dim});
  if (out.is_none()) out = new_output(q, {rows, s.shape.num_q_heads, s.v_head_dim()});
  const Array output = dense(out, "out", Use::kWrite, rows, {s.shape.num_q_heads, s.v_head_dim()});
  const Array lses = floats_or_none(lse, "lse", rows * s.shape.num_q_heads);
  Result<void> result;
  {
    const nb::gil_scoped_release unlocked;
    result = s.step.attend(layer, queries.in(), output.out(), lses.floats());
  }
  unwrap(std::move(result));
  return out;
}

void bind_step(nb::module_& m) {
  nb::class_<PyStep>(m, "Step",
                     "A transaction over a batch of sequences. As a context manager it rolls back unless committed.")
      .def("write", &step_write, "layer"_a, "k"_a.none(), "v"_a.none(),
           "Writes K and V of all new tokens of one layer: [num_rows, num_kv_heads, head_dim], any float type.")
      .def("attend", &step_attend, "layer"_a, "q"_a.none(), "out"_a = nb::none(), "lse"_a = nb::none(),
           "Attention of all new tokens over their sequences: q [num_rows, num_q_heads, head_dim]. Returns out, which "
           "is made beside q if it is not given; lse [num_rows, num_q_heads] float32 gets natural logarithms.")
      .def(
          "commit",
          [](PyStep& s, nb::object accepted) {
            const Exclusive one(s.in_use);
            if (accepted.is_none()) {
              unwrap(s.step.commit());
            } else {
              const Ints counts = ints_of(accepted, "accepted");
              std::vector<std::uint32_t> unsigned_counts;
              for (const std::int32_t count : counts.span) {
                if (count < 0) raise({Errc::kInvalidArgument, "accepted counts must not be negative"});
                unsigned_counts.push_back(static_cast<std::uint32_t>(count));
              }
              unwrap(s.step.commit(unsigned_counts));
            }
            s.sequences.clear();
          },
          "accepted"_a = nb::none(),
          "Keeps all new tokens, or the first accepted[i] of item i after speculation. The step is over.")
      .def(
          "rollback",
          [](PyStep& s) {
            const Exclusive one(s.in_use);
            s.step.rollback();
            s.sequences.clear();
          },
          "Leaves every sequence as it was. The step is over.")
      .def_prop_ro(
          "num_rows", [](PyStep& s) { return s.step.num_rows(); }, "New tokens of all items.")
      .def_prop_ro("num_items", [](PyStep& s) { return s.step.num_items(); })
      .def("__enter__", [](nb::object self) { return self; })
      .def(
          "__exit__",
          [](PyStep& s, nb::handle, nb::handle, nb::handle) {
            const Exclusive one(s.in_use);
            s.step.rollback();
            s.sequences.clear();
          },
          "type"_a.none(), "value"_a.none(), "traceback"_a.none());
}

/// One layer's K or V as an array over the pages themselves: [num_pages, num_kv_heads, page_size, dim].
nb::object layer_view(nb::object self, std::uint32_t layer, bool want_k) {
  PyCache& c = nb::cast<PyCache&>(self);
  const KvView view = unwrap(c.cache.view(layer));
  const auto element = static_cast<std::int64_t>(size_of(c.shape.dtype));
  const std::uint32_t v_dim = c.shape.v_head_dim == 0 ? c.shape.head_dim : c.shape.v_head_dim;
  const std::size_t shape[] = {static_cast<std::size_t>(view.num_pages), c.shape.num_kv_heads,
                               c.cache.options().page_size, want_k ? c.shape.head_dim : v_dim};
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

std::unique_ptr<PyCache> make_cache(std::uint32_t num_layers, std::uint32_t num_q_heads, std::uint32_t num_kv_heads,
                                    std::uint32_t head_dim, std::uint32_t v_head_dim, const std::string& dtype,
                                    std::uint32_t page_size, std::uint64_t capacity_bytes, std::uint64_t capacity_pages,
                                    std::uint64_t watermark_pages, bool huge_pages, float sm_scale, bool causal,
                                    std::int32_t window_left, std::uint32_t sink_tokens, float logits_soft_cap,
                                    nb::object sinks, nb::object alibi_slopes, const std::string& target) {
  nb::ndarray<nb::ro, nb::device::cpu> of_layers;
  const bool has_layers = nb::try_cast(sinks, of_layers) && of_layers.ndim() == 2;
  const Array sink_values =
      floats_or_none(sinks, "sinks", std::int64_t{num_q_heads} * (has_layers ? std::int64_t{num_layers} : 1));
  const Array slopes = floats_or_none(alibi_slopes, "alibi_slopes", num_q_heads);
  const ModelShape shape{.num_layers = num_layers,
                         .num_q_heads = num_q_heads,
                         .num_kv_heads = num_kv_heads,
                         .head_dim = head_dim,
                         .v_head_dim = v_head_dim,
                         .dtype = dtype_named(dtype)};
  KvCacheOptions options;
  options.shape = shape;
  options.page_size = page_size;
  options.capacity_bytes = capacity_bytes;
  options.capacity_pages = capacity_pages;
  options.watermark_pages = watermark_pages;
  options.huge_pages = huge_pages ? HugePages::kTransparent : HugePages::kNever;
  options.attention = {.sm_scale = sm_scale,
                       .causal = causal,
                       .window_left = window_left,
                       .sink_tokens = sink_tokens,
                       .logits_soft_cap = logits_soft_cap,
                       .sinks = sink_values.floats(),
                       .alibi_slopes = slopes.floats()};
  options.target = target;
  return std::make_unique<PyCache>(PyCache{unwrap(KvCache::create(options)), shape});
}

std::unique_ptr<PySequence> open_sequence(PyCache& c, nb::object tokens, const std::string& cache_salt,
                                          const std::string& extra_key) {
  const Ints ids = ints_of(tokens, "tokens");
  return std::make_unique<PySequence>(
      unwrap(c.cache.open(ids.span, {.cache_salt = cache_salt, .extra_key = extra_key})));
}

std::unique_ptr<PyStep> begin_step(PyCache& c, const Items& items) {
  std::vector<std::vector<Token>> tokens;
  std::vector<nb::object> sequences;
  const std::vector<StepItem> described = items_of(items, tokens, sequences);
  return std::make_unique<PyStep>(unwrap(c.cache.begin_step(described)), c.shape, std::move(sequences));
}

/// Counts by name.
nb::dict stats_of(PyCache& c) {
  const CacheStats s = c.cache.stats();
  nb::dict d;
  d["capacity_pages"] = s.pool.capacity_pages;
  d["used_pages"] = s.pool.used_pages;
  d["evictable_pages"] = s.pool.evictable_pages;
  d["free_pages"] = s.pool.free_pages;
  d["shared_pages"] = s.pool.shared_pages;
  d["peak_used_pages"] = s.pool.peak_used_pages;
  d["committed_bytes"] = s.pool.committed_bytes;
  d["metadata_bytes"] = s.pool.metadata_bytes;
  d["allocations"] = s.pool.allocations;
  d["failed_allocations"] = s.pool.failed_allocations;
  d["evictions"] = s.pool.evictions;
  d["huge_pages"] = s.pool.huge_pages;
  d["open_sequences"] = s.open_sequences;
  d["steps_begun"] = s.steps_begun;
  d["steps_committed"] = s.steps_committed;
  d["steps_rolled_back"] = s.steps_rolled_back;
  d["tokens_committed"] = s.tokens_committed;
  d["copied_pages"] = s.copied_pages;
  return d;
}

void bind_cache_facts(nb::class_<PyCache>& cache) {
  cache.def_prop_ro("page_bytes", [](PyCache& c) { return c.cache.page_bytes(); })
      .def_prop_ro(
          "page_size", [](PyCache& c) { return c.cache.options().page_size; }, "Tokens a page.")
      .def_prop_ro("num_layers", [](PyCache& c) { return c.shape.num_layers; })
      .def_prop_ro("num_q_heads", [](PyCache& c) { return c.shape.num_q_heads; })
      .def_prop_ro("num_kv_heads", [](PyCache& c) { return c.shape.num_kv_heads; })
      .def_prop_ro("head_dim", [](PyCache& c) { return c.shape.head_dim; })
      .def_prop_ro("dtype", [](PyCache& c) { return to_string(c.shape.dtype); }, "\"f32\", \"f16\" or \"bf16\".");
}

void bind_cache(nb::module_& m) {
  nb::class_<PyCache> cache(m, "KvCache", "One pool of pages, shared by many sequences. Thread-safe.");
  bind_cache_facts(cache);
  cache
      .def(nb::new_(&make_cache), nb::kw_only(), "num_layers"_a, "num_q_heads"_a, "num_kv_heads"_a, "head_dim"_a,
           "v_head_dim"_a = 0, "dtype"_a = "bf16", "page_size"_a = 16, "capacity_bytes"_a = 0, "capacity_pages"_a = 0,
           "watermark_pages"_a = 0, "huge_pages"_a = true, "sm_scale"_a = 0.0F, "causal"_a = true, "window_left"_a = -1,
           "sink_tokens"_a = 0, "logits_soft_cap"_a = 0.0F, "sinks"_a = nb::none(), "alibi_slopes"_a = nb::none(),
           "target"_a = "",
           "One of capacity_bytes and capacity_pages says how much; sm_scale 0 means 1 / sqrt(head_dim); v_head_dim 0 "
           "means head_dim; sinks is [num_q_heads] or, for each layer its own, [num_layers, num_q_heads]; sink_tokens "
           "are the first tokens that are seen beside a window; target names a kernel target, empty for the best.")
      .def("open", &open_sequence, "tokens"_a = nb::none(), "cache_salt"_a = "", "extra_key"_a = "",
           "Opens a sequence; with the prompt's token ids it already holds the longest cached prefix (num_tokens).")
      .def("begin_step", &begin_step, "items"_a,
           "Begins a step over (sequence, num_new_tokens[, tokens]) items: every page is reserved, or OutOfPages is "
           "raised and nothing changed.")
      .def_prop_ro(
          "pages_available", [](PyCache& c) { return c.cache.pages_available(); }, "Free and evictable pages.")
      .def(
          "pages_for_tokens", [](PyCache& c, std::uint64_t n) { return c.cache.pages_for_tokens(n); }, "num_tokens"_a)
      .def(
          "pages_needed",
          [](PyCache& c, const Items& items) {
            std::vector<std::vector<Token>> tokens;
            std::vector<nb::object> sequences;
            return unwrap(c.cache.pages_needed(items_of(items, tokens, sequences)));
          },
          "items"_a, "Pages that begin_step(items) would take, copies on write included.")
      .def(
          "can_admit", [](PyCache& c, std::uint64_t p, std::uint64_t n) { return c.cache.can_admit(p, n); },
          "prompt_tokens"_a, "max_new_tokens"_a = 0, "Whether a prompt and its answer fit now, above the watermark.")
      .def(
          "view_k", [](nb::object self, std::uint32_t layer) { return layer_view(self, layer, true); }, "layer"_a,
          "K of one layer over the pages themselves: [num_pages, num_kv_heads, page_size, head_dim], by DLPack.")
      .def(
          "view_v", [](nb::object self, std::uint32_t layer) { return layer_view(self, layer, false); }, "layer"_a,
          "V of one layer, likewise.")
      .def(
          "trim", [](PyCache& c) { return unwrap(c.cache.trim()); },
          "Gives the memory of free pages back to the system; returns the bytes given.")
      .def("stats", &stats_of, nb::sig("def stats(self) -> dict[str, int]"), "Exact counts of this moment.");
}

}  // namespace

void bind_kv_cache(nb::module_& m) {
  bind_sequence(m);
  bind_step(m);
  bind_cache(m);
}

}  // namespace pagedkv::python
