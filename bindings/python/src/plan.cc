// AttentionPlan and merge_states for Python: attention over any engine's pages, read in place.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <atomic>
#include <memory>
#include <string>

#include "arrays.h"
#include "errors.h"
#include "pagedkv/attention.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagedkv::python {
namespace {

struct PyPlan {
  AttentionConfig config;
  AttentionPlan plan;
  std::atomic<bool> in_use{false};

  PyPlan(const AttentionConfig& c, AttentionPlan&& p) : config(c), plan(std::move(p)) {}
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

std::unique_ptr<PyPlan> make_plan(std::uint32_t num_q_heads, std::uint32_t num_kv_heads, std::uint32_t head_dim,
                                  std::uint32_t v_head_dim, std::uint32_t page_size, const std::string& dtype,
                                  nb::object qo_indptr, nb::object kv_indptr, nb::object kv_indices,
                                  nb::object kv_last_page_len, nb::object block_table, nb::object seq_lens,
                                  nb::object q_start, float sm_scale, bool causal, std::int32_t window_left,
                                  std::uint32_t sink_tokens, float logits_soft_cap, nb::object sinks,
                                  nb::object alibi_slopes, const std::string& target) {
  const Array sink_values = floats_or_none(sinks, "sinks", num_q_heads);
  const Array slopes = floats_or_none(alibi_slopes, "alibi_slopes", num_q_heads);
  AttentionConfig config{.num_q_heads = num_q_heads,
                         .num_kv_heads = num_kv_heads,
                         .head_dim = head_dim,
                         .v_head_dim = v_head_dim == 0 ? head_dim : v_head_dim,
                         .page_size = page_size,
                         .kv_dtype = dtype_named(dtype),
                         .variant = {.sm_scale = sm_scale,
                                     .causal = causal,
                                     .window_left = window_left,
                                     .sink_tokens = sink_tokens,
                                     .logits_soft_cap = logits_soft_cap,
                                     .sinks = sink_values.floats(),
                                     .alibi_slopes = slopes.floats()},
                         .target = target};
  const Ints qo = ints_of(qo_indptr, "qo_indptr"), indptr = ints_of(kv_indptr, "kv_indptr"),
             indices = ints_of(kv_indices, "kv_indices"), last = ints_of(kv_last_page_len, "kv_last_page_len"),
             table = ints_of(block_table, "block_table"), lens = ints_of(seq_lens, "seq_lens"),
             start = ints_of(q_start, "q_start");
  if (!block_table.is_none() && table.shape.size() != 2) {
    throw nb::value_error("block_table: expected two axes, [sequences, pages]");
  }
  AttentionBatch batch;
  batch.qo_indptr = qo.span;
  batch.kv_indptr = indptr.span;
  batch.kv_indices = indices.span;
  batch.kv_last_page_len = last.span;
  batch.block_table = table.span;
  batch.block_table_stride = table.shape.size() == 2 ? table.shape[1] : 0;
  batch.seq_lens = lens.span;
  batch.q_start = start.span;
  AttentionPlan plan = unwrap(AttentionPlan::create(config, batch));
  config.variant.sinks = {};
  config.variant.alibi_slopes = {};
  config.target = {};
  return std::make_unique<PyPlan>(config, std::move(plan));
}

nb::object run_plan(PyPlan& p, nb::handle k, nb::handle v, nb::object q, nb::object out, nb::object lse,
                    const std::string& layout) {
  if (layout != "HND" && layout != "NHD") throw nb::value_error("layout must be \"HND\" or \"NHD\"");
  const Exclusive one(p.in_use);
  const AttentionConfig& c = p.config;
  const Array keys = array_of(k, "k", Use::kRead), values = array_of(v, "v", Use::kRead);
  const PageStrides ks = page_strides(keys, "k", c, c.head_dim, layout == "HND");
  const PageStrides vs = page_strides(values, "v", c, c.v_head_dim, layout == "HND");
  if (keys.shape[0] != values.shape[0]) throw nb::value_error("k and v have different numbers of pages");
  const KvView pages{.k = keys.data,
                     .v = values.data,
                     .k_page_stride = ks.page,
                     .k_head_stride = ks.head,
                     .k_token_stride = ks.token,
                     .v_page_stride = vs.page,
                     .v_head_stride = vs.head,
                     .v_token_stride = vs.token,
                     .num_pages = keys.shape[0]};
  const auto rows = static_cast<std::int64_t>(p.plan.num_rows());
  const Array queries = dense(q, "q", Use::kRead, rows, {c.num_q_heads, c.head_dim});
  if (out.is_none()) {
    out = nb::module_::import_("pagedkv.arrays")
              .attr("empty_beside")(q, nb::make_tuple(rows, c.num_q_heads, c.v_head_dim));
  }
  const Array output = dense(out, "out", Use::kWrite, rows, {c.num_q_heads, c.v_head_dim});
  const Array lses = floats_or_none(lse, "lse", rows * c.num_q_heads);
  Result<void> result;
  {
    const nb::gil_scoped_release unlocked;
    result = p.plan.run(pages, queries.in(), output.out(), lses.floats());
  }
  unwrap(std::move(result));
  return out;
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
  unwrap(merge_states(oa.floats(), la.floats(), ob.floats(), lb.floats()));
}

}  // namespace

void bind_plan(nb::module_& m) {
  nb::class_<PyPlan>(m, "AttentionPlan",
                     "A schedule for one ragged batch, made once a step and run once a layer, over anybody's pages.")
      .def(nb::new_(&make_plan), nb::kw_only(), "num_q_heads"_a, "num_kv_heads"_a, "head_dim"_a, "v_head_dim"_a = 0,
           "page_size"_a = 16, "dtype"_a = "bf16", "qo_indptr"_a, "kv_indptr"_a = nb::none(),
           "kv_indices"_a = nb::none(), "kv_last_page_len"_a = nb::none(), "block_table"_a = nb::none(),
           "seq_lens"_a = nb::none(), "q_start"_a = nb::none(), "sm_scale"_a = 0.0F, "causal"_a = true,
           "window_left"_a = -1, "sink_tokens"_a = 0, "logits_soft_cap"_a = 0.0F, "sinks"_a = nb::none(),
           "alibi_slopes"_a = nb::none(), "target"_a = "",
           "Page tables come as kv_indptr, kv_indices and kv_last_page_len, or as block_table and seq_lens; lengths "
           "are after append. Integers are lists or arrays.")
      .def("run", &run_plan, "k"_a.none(), "v"_a.none(), "q"_a.none(), "out"_a = nb::none(), "lse"_a = nb::none(),
           "layout"_a = "HND",
           "out = softmax(logits) V for every query row. k and v: [pages, heads, tokens, dim] (HND) or [pages, tokens, "
           "heads, dim] (NHD), any strides with contiguous rows; q [rows, num_q_heads, head_dim].")
      .def_prop_ro(
          "num_rows", [](PyPlan& p) { return p.plan.num_rows(); }, "Query rows of the batch.")
      .def_prop_ro(
          "target", [](PyPlan& p) { return p.plan.target(); }, "Kernel target in use.")
      .def_prop_ro(
          "kv_bytes", [](PyPlan& p) { return p.plan.kv_bytes(); }, "Bytes of K and V that one run reads.")
      .def_prop_ro("flops", [](PyPlan& p) { return p.plan.flops(); });
  m.def(
      "merge_states", &merge, "out_a"_a.none(), "lse_a"_a.none(), "out_b"_a.none(), "lse_b"_a.none(),
      "Merges two attention states over disjoint keys into the first, in place. float32; lse are natural logarithms.");
}

}  // namespace pagedkv::python
