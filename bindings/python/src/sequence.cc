// Sequence for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>

#include "errors.h"
#include "objects.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagedkv::python {
namespace {

std::vector<std::int32_t> pages_of(PySequence& s, std::size_t group) {
  std::vector<std::int32_t> ids;
  const bool is_known = alone(s, [&] {
    for (const PageId id : s.sequence.pages(group)) ids.push_back(to_index(id));
    return !s.sequence.is_open() || group < s.sequence.num_groups();
  });
  if (!is_known) raise({Errc::kInvalidArgument, "there is no such layer group"});
  return ids;
}

std::vector<Token> tokens_of(PySequence& s) {
  const Exclusive one(s.in_use);
  const auto tokens = s.sequence.tokens();
  return {tokens.begin(), tokens.end()};
}

std::uint64_t num_tokens(PySequence& s) {
  return alone(s, [&] { return s.sequence.num_tokens(); });
}

/// `function()` without the interpreter lock, while no other thread uses the sequence; its error is raised after that.
template <class Function>
auto call(PySequence& s, Function&& function) {
  return unwrap(alone(s, [&] { return unlocked(function); }));
}

void close(PySequence& s) {
  call(s, [&] { return s.sequence.close(); });
}

void bind_facts_of(nb::class_<PySequence>& sequence) {
  sequence.def_prop_ro("num_tokens", &num_tokens, "Tokens held.")
      .def_prop_ro(
          "cached_tokens", [](PySequence& s) { return alone(s, [&] { return s.sequence.cached_tokens(); }); },
          "Of those, found in the prefix cache when opened.")
      .def_prop_ro(
          "page_size", [](PySequence& s) { return alone(s, [&] { return s.sequence.page_size(); }); }, "Tokens a page.")
      .def_prop_ro(
          "num_groups", [](PySequence& s) { return alone(s, [&] { return s.sequence.num_groups(); }); },
          "Page tables: one for each group of layers that see the same keys.")
      .def_prop_ro(
          "is_open", [](PySequence& s) { return alone(s, [&] { return s.sequence.is_open(); }); },
          "False after close().")
      .def_prop_ro(
          "pages", [](PySequence& s) { return pages_of(s, 0); },
          "Page ids in token order; -1 behind a sliding window. The page table of the first group.")
      .def("pages_of", &pages_of, "group"_a, "The page table of one group; KvCache.page_table_of tells a layer's.")
      .def_prop_ro("tokens", &tokens_of, "Ids of the tokens, as far as they were given.")
      .def("__len__", &num_tokens)
      .def("__repr__", [](PySequence& s) {
        return "<pagedkv.Sequence of " + std::to_string(num_tokens(s)) + " tokens in " +
               std::to_string(alone(s, [&] { return s.sequence.pages().size(); })) + " pages>";
      });
}

}  // namespace

void bind_sequence(nb::module_& m) {
  nb::class_<PySequence> sequence(m, "Sequence",
                                  "One growing token stream; dropping it releases its pages. One thread at a time.");
  bind_facts_of(sequence);
  sequence
      .def(
          "append",
          [](PySequence& s, std::uint32_t num_tokens) { call(s, [&] { return s.sequence.append(num_tokens); }); },
          "num_tokens"_a, "Makes room for more tokens, or changes nothing. For engines with kernels of their own.")
      .def(
          "truncate",
          [](PySequence& s, std::uint64_t num_tokens) { call(s, [&] { return s.sequence.truncate(num_tokens); }); },
          "num_tokens"_a, "Forgets all but the first num_tokens tokens.")
      .def(
          "slide",
          [](PySequence& s, std::uint64_t window, std::uint64_t sink_tokens, std::size_t group) {
            return call(s, [&] { return s.sequence.slide(window, sink_tokens, group); });
          },
          "window"_a, "sink_tokens"_a = 0, "group"_a = 0,
          "Releases the pages behind the last `window` tokens, but for those of the first `sink_tokens`; returns how "
          "many. Groups with a window of their own do so by themselves.")
      .def(
          "fork",
          [](PySequence& s) { return std::make_unique<PySequence>(call(s, [&] { return s.sequence.fork(); })); },
          "A second sequence with the same tokens that shares all pages; whoever writes a shared page first copies it.")
      .def("close", &close, "Releases all pages. Closing twice is harmless.")
      .def(
          "pages_needed",
          [](PySequence& s, std::uint32_t n) { return alone(s, [&] { return s.sequence.pages_needed(n); }); },
          "num_tokens"_a, "Pages that append(num_tokens) would take now.")
      .def("__enter__", [](nb::object self) { return self; })
      .def(
          "__exit__", [](PySequence& s, nb::handle, nb::handle, nb::handle) { close(s); }, "type"_a.none(),
          "value"_a.none(), "traceback"_a.none());
}

}  // namespace pagedkv::python
