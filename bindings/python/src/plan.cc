// AttentionPlan, write_kv and merge_states for Python: attention over any engine's pages, read in place.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <new>
#include <string>

#include "arguments.h"
#include "arrays.h"
#include "batch.h"
#include "errors.h"
#include "pagedkv/attention.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagedkv::python {
namespace {

struct PyPlan {
  AttentionConfig config;  ///< Without what it would borrow; v_head_dim filled in.
  AttentionPlan plan;
  nb::object mask_owner;
  std::atomic<bool> in_use{false};

  PyPlan(const AttentionConfig& c, AttentionPlan&& p, nb::object mask)
      : config(c), plan(std::move(p)), mask_owner(std::move(mask)) {}
};

/// Byte strides of a [pages, heads, tokens, dim] ("HND") or [pages, tokens, heads, dim] ("NHD") array.
struct PageStrides {
  std::int64_t page, head, token;
};

PageStrides page_strides(const Array& array, const char* name, const AttentionConfig& config, std::uint32_t dim,
                         bool hnd) {
  const auto fail = [&](const char* what) { throw nb::value_error((std::string(name) + ": " + what).c_str()); };
  if (array.shape.size() != 4) fail("expected 4 axes: [pages, heads, tokens, dim] or [pages, tokens, heads, dim]");
  const std::size_t head = hnd ? 1 : 2, token = hnd ? 2 : 1;
  if (array.shape[head] != config.num_kv_heads) fail("the number of heads differs from num_kv_heads");
  if (array.shape[token] != config.page_size) fail("the number of tokens differs from page_size");
  if (array.shape[3] != dim) fail("the last axis differs from the head dimension");
  if (dim > 1 && array.strides[3] != 1) fail("elements of a row must be contiguous");
  if (array.dtype != config.kv_dtype) fail("the element type differs from the plan's dtype");
  const auto element = static_cast<std::int64_t>(size_of(array.dtype));
  return {array.strides[0] * element, array.strides[head] * element, array.strides[token] * element};
}

bool is_hnd(const std::string& layout) {
  if (layout != "HND" && layout != "NHD") throw nb::value_error("layout must be \"HND\" or \"NHD\"");
  return layout == "HND";
}

/// K and V pages of one layer; the arrays stay with the caller. To be written to only if the arrays may be.
KvWriteView view_of(const Array& k, const Array& v, const AttentionConfig& c, bool hnd) {
  const PageStrides ks = page_strides(k, "k", c, c.head_dim, hnd), vs = page_strides(v, "v", c, c.v_head_dim, hnd);
  if (k.shape[0] != v.shape[0]) throw nb::value_error("k and v have different numbers of pages");
  return {.k = k.data,
          .v = v.data,
          .k_page_stride = ks.page,
          .k_head_stride = ks.head,
          .k_token_stride = ks.token,
          .v_page_stride = vs.page,
          .v_head_stride = vs.head,
          .v_token_stride = vs.token,
          .num_pages = k.shape[0]};
}

/// AttentionConfig from keyword arguments, with what it borrows.
struct ConfigArguments {
  explicit ConfigArguments(Arguments& arguments)
      : num_q_heads(arguments.take<std::uint32_t>("num_q_heads")),
        variant(arguments, num_q_heads),
        target(arguments.take<std::string>("target", "")),
        config{.num_q_heads = num_q_heads,
               .num_kv_heads = arguments.take<std::uint32_t>("num_kv_heads"),
               .head_dim = arguments.take<std::uint32_t>("head_dim"),
               .v_head_dim = arguments.take("v_head_dim", std::uint32_t{0}),
               .page_size = arguments.take("page_size", std::uint32_t{16}),
               .kv_dtype = dtype_named(arguments.take<std::string>("dtype", "bf16")),
               .variant = variant.variant,
               .target = target,
               .cascade = arguments.take("cascade", false)} {}

  std::uint32_t num_q_heads;
  VariantArguments variant;
  std::string target;
  AttentionConfig config;
};

void make_plan(PyPlan* self, const nb::kwargs& given) {
  Arguments arguments(given);
  const ConfigArguments layer(arguments);
  const BatchArguments ragged(arguments);
  arguments.finish();
  ragged.check_mask(layer.config);
  AttentionPlan plan = unwrap(unlocked([&] { return AttentionPlan::create(layer.config, ragged.batch); }));
  AttentionConfig kept = layer.config;
  if (kept.v_head_dim == 0) kept.v_head_dim = kept.head_dim;
  kept.variant = {};
  kept.target = {};
  new (self) PyPlan(kept, std::move(plan), ragged.mask_owner);
}

std::size_t workspace_bytes(const nb::kwargs& given) {
  Arguments arguments(given);
  const ConfigArguments layer(arguments);
  const BatchArguments ragged(arguments);
  arguments.finish();
  ragged.check_mask(layer.config);
  return unwrap(AttentionPlan::workspace_bytes(layer.config, ragged.batch));
}

void extend_plan(PyPlan& p, const nb::kwargs& given) {
  Arguments arguments(given);
  const BatchArguments ragged(arguments);
  arguments.finish();
  ragged.check_mask(p.config);
  const Exclusive one(p.in_use);
  unwrap(unlocked([&] { return p.plan.extend(ragged.batch); }));
  p.mask_owner = ragged.mask_owner;
}

nb::object run_plan(PyPlan& p, nb::handle k, nb::handle v, nb::object q, nb::object out, nb::object lse,
                    const std::string& layout, nb::handle sinks) {
  const bool hnd = is_hnd(layout);
  const Exclusive one(p.in_use);
  const AttentionConfig& c = p.config;
  const Array keys = array_of(k, "k", Use::kRead), values = array_of(v, "v", Use::kRead);
  const KvView pages = view_of(keys, values, c, hnd);
  const auto rows = static_cast<std::int64_t>(p.plan.num_rows());
  const Array queries = dense(q, "q", Use::kRead, rows, {c.num_q_heads, c.head_dim});
  if (out.is_none()) out = new_output(q, {rows, c.num_q_heads, c.v_head_dim});
  const Array output = dense(out, "out", Use::kWrite, rows, {c.num_q_heads, c.v_head_dim});
  const Array lses = floats_or_none(lse, "lse", Use::kWrite, rows * c.num_q_heads);
  const Array of_layer = floats_or_none(sinks, "sinks", Use::kRead, c.num_q_heads);
  unwrap(unlocked([&] { return p.plan.run(pages, queries.in(), output.out(), lses.floats(), of_layer.floats()); }));
  return out;
}

/// An extent of an array's shape as the library counts them.
std::uint32_t extent_of(const Array& array, std::size_t axis, const char* name) {
  if (array.shape.size() != 4) throw nb::value_error((std::string(name) + ": expected 4 axes").c_str());
  if (array.shape[axis] > INT32_MAX) throw nb::value_error((std::string(name) + ": an axis is absurd").c_str());
  return static_cast<std::uint32_t>(array.shape[axis]);
}

void write_pages(nb::handle k_pages, nb::handle v_pages, nb::handle slots, nb::handle k, nb::handle v,
                 const std::string& layout) {
  const bool hnd = is_hnd(layout);
  const Array key_pages = array_of(k_pages, "k_pages", Use::kWrite),
              value_pages = array_of(v_pages, "v_pages", Use::kWrite);
  const std::uint32_t heads = extent_of(key_pages, hnd ? 1 : 2, "k_pages");
  const AttentionConfig config{.num_q_heads = heads,
                               .num_kv_heads = heads,
                               .head_dim = extent_of(key_pages, 3, "k_pages"),
                               .v_head_dim = extent_of(value_pages, 3, "v_pages"),
                               .page_size = extent_of(key_pages, hnd ? 2 : 1, "k_pages"),
                               .kv_dtype = key_pages.dtype};
  const KvWriteView pages = view_of(key_pages, value_pages, config, hnd);
  const Longs places = longs_of(slots, "slots");
  const auto rows = static_cast<std::int64_t>(places.span.size());
  const Array keys = dense(k, "k", Use::kRead, rows, {heads, config.head_dim});
  const Array values = dense(v, "v", Use::kRead, rows, {heads, config.v_head_dim});
  unwrap(unlocked([&] { return write_kv(config, pages, places.span, keys.in(), values.in()); }));
}

void merge(nb::handle out_a, nb::handle lse_a, nb::handle out_b, nb::handle lse_b) {
  const auto floats = [](nb::handle object, const char* name, Use use) {
    Array array = array_of(object, name, use);
    array = dense(object, name, use, static_cast<std::int64_t>(array.size()), {});
    if (array.dtype != DType::f32) throw nb::type_error((std::string(name) + ": elements must be float32").c_str());
    return array;
  };
  const Array oa = floats(out_a, "out_a", Use::kWrite), la = floats(lse_a, "lse_a", Use::kWrite);
  const Array ob = floats(out_b, "out_b", Use::kRead), lb = floats(lse_b, "lse_b", Use::kRead);
  unwrap(unlocked([&] { return merge_states(oa.floats(), la.floats(), ob.floats(), lb.floats()); }));
}

#define PAGEDKV_BATCH_PARAMETERS                                                                                  \
  "qo_indptr: object, kv_indptr: object = None, kv_indices: object = None, kv_last_page_len: object = None, "     \
  "block_table: object = None, seq_lens: object = None, q_start: object = None, mask: object = None, mask_bits: " \
  "bool = False, mask_offsets: object = None"
#define PAGEDKV_PLAN_PARAMETERS                                                                             \
  "num_q_heads: int, num_kv_heads: int, head_dim: int, " PAGEDKV_BATCH_PARAMETERS                           \
  ", v_head_dim: int = 0, page_size: int = 16, dtype: str = 'bf16', sm_scale: float = 0.0, causal: bool = " \
  "True, window_left: int = -1, sink_tokens: int = 0, logits_soft_cap: float = 0.0, sinks: object = None, " \
  "alibi_slopes: object = None, f16_as_bf16: bool = False, target: str = '', cascade: bool = False"

void bind_plan_class(nb::module_& m) {
  nb::class_<PyPlan>(m, "AttentionPlan",
                     "A schedule for one ragged batch, made once a step and run once a layer, over anybody's pages.")
      .def("__init__", &make_plan, nb::sig("def __init__(self, *, " PAGEDKV_PLAN_PARAMETERS ") -> None"), kBatchHelp)
      .def_static("workspace_bytes", &workspace_bytes,
                  nb::sig("def workspace_bytes(*, " PAGEDKV_PLAN_PARAMETERS ") -> int"),
                  "Bytes of partial states that a plan of these arguments has.")
      .def(
          "extend", &extend_plan, nb::sig("def extend(self, *, " PAGEDKV_BATCH_PARAMETERS ") -> None"),
          "Plans the next step of the same sequences: as many query rows each, longer keys. Refused, the plan is as it "
          "was.")
      .def("run", &run_plan, "k"_a.none(), "v"_a.none(), "q"_a.none(), "out"_a = nb::none(), "lse"_a = nb::none(),
           "layout"_a = "HND", "sinks"_a = nb::none(),
           "out = softmax(logits) V for every query row. k and v: [pages, heads, tokens, dim] (HND) or [pages, tokens, "
           "heads, dim] (NHD), any strides with contiguous rows; q [rows, num_q_heads, head_dim]; sinks [num_q_heads] "
           "are "
           "this layer's, in place of the plan's.")
      .def_prop_ro(
          "num_rows", [](PyPlan& p) { return alone(p, [&] { return p.plan.num_rows(); }); }, "Query rows of the batch.")
      .def_prop_ro(
          "target", [](PyPlan& p) { return alone(p, [&] { return p.plan.target(); }); }, "Kernel target in use.")
      .def_prop_ro(
          "kv_bytes", [](PyPlan& p) { return alone(p, [&] { return p.plan.kv_bytes(); }); },
          "Bytes of K and V that one run reads.")
      .def_prop_ro(
          "flops", [](PyPlan& p) { return alone(p, [&] { return p.plan.flops(); }); },
          "2 * (head_dim + v_head_dim) a visible (query head, key).");
}

}  // namespace

void bind_plan(nb::module_& m) {
  bind_plan_class(m);
  m.def("write_kv", &write_pages, "k_pages"_a.none(), "v_pages"_a.none(), "slots"_a, "k"_a.none(), "v"_a.none(),
        "layout"_a = "HND",
        "Writes rows of K and V [slots, heads, dim] into pages, converting to their type: row i to slot "
        "slots[i] = page * page_size + offset; negative slots are skipped. Pages as AttentionPlan.run takes them.");
  m.def(
      "merge_states", &merge, "out_a"_a.none(), "lse_a"_a.none(), "out_b"_a.none(), "lse_b"_a.none(),
      "Merges two attention states over disjoint keys into the first, in place. float32; lse are natural logarithms.");
}

}  // namespace pagedkv::python
