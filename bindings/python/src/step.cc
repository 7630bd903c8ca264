// Step for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "arrays.h"
#include "errors.h"
#include "objects.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagedkv::python {
namespace {

/// What a step holds. Destroyed without the interpreter lock, it rolls the step back and drops the cache, whose last
/// owner it may be.
struct StepParts {
  Step step;
  std::vector<PySequence*> sequences;
  std::vector<nb::object> kept_alive;

  StepParts(Step&& s, StepItems&& items)
      : step(std::move(s)), sequences(std::move(items.sequences)), kept_alive(std::move(items.kept_alive)) {}
  StepParts(StepParts&&) noexcept = default;
  StepParts& operator=(StepParts&&) = delete;
  ~StepParts() {
    for (PySequence* const sequence : sequences) wait_for(sequence->in_use);
    step.rollback();
    for (PySequence* const sequence : sequences) sequence->in_use.store(false, std::memory_order_release);
    if (kept_alive.empty()) return;
    const nb::gil_scoped_acquire locked;
    kept_alive.clear();
  }
};

/// What ends a step changes its sequences, so it is a use of each of them too.
struct PyStep {
  StepParts parts;
  ModelShape shape;
  std::atomic<bool> in_use{false};

  PyStep(Step&& s, const ModelShape& m, StepItems&& items) : parts(std::move(s), std::move(items)), shape(m) {}
  ~PyStep() { LibraryCall::destroy(parts); }
  PyStep(const PyStep&) = delete;
  PyStep& operator=(const PyStep&) = delete;

  /// Ends the step by `function`, which returns a Result<void>.
  template <class Function>
  void end(Function&& function) {
    const Exclusive one(in_use);
    unwrap(all_alone(parts.sequences, function));
    parts.sequences.clear();
    parts.kept_alive.clear();
  }
};

void step_write(PyStep& s, std::uint32_t layer, nb::handle k, nb::handle v) {
  const Exclusive one(s.in_use);
  const auto rows = static_cast<std::int64_t>(s.parts.step.num_rows());
  const Array keys = dense(k, "k", Use::kRead, rows, {s.shape.num_kv_heads, s.shape.head_dim});
  const Array values = dense(v, "v", Use::kRead, rows, {s.shape.num_kv_heads, s.shape.v_head_dim});
  unwrap(unlocked([&] { return s.parts.step.write(layer, keys.in(), values.in()); }));
}

nb::object step_attend(PyStep& s, std::uint32_t layer, nb::object q, nb::object out, nb::object lse) {
  const Exclusive one(s.in_use);
  const auto rows = static_cast<std::int64_t>(s.parts.step.num_rows());
  const Array queries = dense(q, "q", Use::kRead, rows, {s.shape.num_q_heads, s.shape.head_dim});
  if (out.is_none()) out = new_output(q, {rows, s.shape.num_q_heads, s.shape.v_head_dim});
  const Array output = dense(out, "out", Use::kWrite, rows, {s.shape.num_q_heads, s.shape.v_head_dim});
  const Array lses = floats_or_none(lse, "lse", Use::kWrite, rows * s.shape.num_q_heads);
  unwrap(unlocked([&] { return s.parts.step.attend(layer, queries.in(), output.out(), lses.floats()); }));
  return out;
}

void commit(PyStep& s, nb::handle accepted) {
  if (accepted.is_none()) {
    s.end([&] { return s.parts.step.commit(); });
    return;
  }
  std::vector<std::uint32_t> counts;
  for (const std::int32_t count : ints_of(accepted, "accepted").span) {
    if (count < 0) raise({Errc::kInvalidArgument, "accepted counts must not be negative"});
    counts.push_back(static_cast<std::uint32_t>(count));
  }
  s.end([&] { return s.parts.step.commit(counts); });
}

void rollback(PyStep& s) {
  s.end([&]() -> Result<void> {
    s.parts.step.rollback();
    return {};
  });
}

}  // namespace

StepItems items_of(nb::handle list) {
  StepItems result;
  if (!nb::isinstance<nb::sequence>(list)) throw nb::type_error("items: expected a list of tuples");
  result.tokens.reserve(nb::len(list));
  for (const nb::handle item : list) {
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
    result.tokens.emplace_back();
    if (nb::len(item) == 3 && !parts[2].is_none()) {
      const Ints ids = ints_of(parts[2], "tokens");
      result.tokens.back().assign(ids.span.begin(), ids.span.end());
    }
    result.kept_alive.push_back(nb::borrow(parts[0]));
    result.sequences.push_back(sequence);
    result.items.push_back({.sequence = &sequence->sequence,
                            .num_new_tokens = static_cast<std::uint32_t>(count),
                            .tokens = result.tokens.back()});
  }
  std::vector<PySequence*> sorted = result.sequences;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    raise({Errc::kInvalidArgument, "a sequence is listed twice"});
  }
  return result;
}

nb::object begin_step(PyCache& c, nb::handle list) {
  StepItems items = items_of(list);
  Step step = unwrap(all_alone(items.sequences, [&] { return c.cache.begin_step(items.items); }));
  return nb::cast(std::make_unique<PyStep>(std::move(step), c.shape, std::move(items)));
}

void bind_step(nb::module_& m) {
  nb::class_<PyStep>(m, "Step",
                     "A transaction over a batch of sequences. As a context manager it rolls back unless committed.")
      .def("write", &step_write, "layer"_a, "k"_a.none(), "v"_a.none(),
           "Writes K and V of all new tokens of one layer: [num_rows, num_kv_heads, head_dim], float32, float16 or "
           "bfloat16, contiguous.")
      .def("attend", &step_attend, "layer"_a, "q"_a.none(), "out"_a = nb::none(), "lse"_a = nb::none(),
           "Attention of all new tokens over their sequences: q [num_rows, num_q_heads, head_dim]. Returns out, which "
           "is made beside q if it is not given; lse [num_rows, num_q_heads] float32 gets natural logarithms.")
      .def("commit", &commit, "accepted"_a = nb::none(),
           "Keeps all new tokens, or the first accepted[i] of item i after speculation. The step is over.")
      .def("rollback", &rollback, "Leaves every sequence as it was. The step is over.")
      .def_prop_ro(
          "num_rows", [](PyStep& s) { return alone(s, [&] { return s.parts.step.num_rows(); }); },
          "New tokens of all items.")
      .def_prop_ro(
          "num_items", [](PyStep& s) { return alone(s, [&] { return s.parts.step.num_items(); }); },
          "Sequences of the step.")
      .def("__enter__", [](nb::object self) { return self; })
      .def(
          "__exit__", [](PyStep& s, nb::handle, nb::handle, nb::handle) { rollback(s); }, "type"_a.none(),
          "value"_a.none(), "traceback"_a.none());
}

}  // namespace pagedkv::python
