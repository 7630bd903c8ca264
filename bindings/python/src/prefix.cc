// What Python may watch and say of the prefix cache: retention, events, clearing.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <string>
#include <vector>

#include "errors.h"
#include "objects.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagedkv::python {
namespace {

struct PyEvent {
  CacheEvent event;  ///< Without tokens.
  std::vector<Token> tokens;
};

const char* kind_of(const PyEvent& e) {
  switch (e.event.kind) {
    case CacheEventKind::kStored: return "stored";
    case CacheEventKind::kEvicted: return "evicted";
    case CacheEventKind::kCleared: return "cleared";
  }
  return "unknown";
}

std::vector<PyEvent> poll_events(PyCache& c) {
  struct Receiver {
    std::vector<PyEvent> events;
    bool out_of_memory = false;
  } receiver;
  const auto receive = [](void* user, const CacheEvent& event) noexcept {
    Receiver& to = *static_cast<Receiver*>(user);
    try {
      to.events.push_back({event, {event.tokens.begin(), event.tokens.end()}});
      to.events.back().event.tokens = {};
    } catch (const std::bad_alloc&) {
      to.out_of_memory = true;
    }
  };
  unlocked([&] { return c.cache.poll_events(receive, &receiver); });
  if (receiver.out_of_memory) raise({Errc::kOutOfMemory, "no memory for the events; some were lost"});
  return std::move(receiver.events);
}

void bind_event(nb::module_& m) {
  nb::class_<PyEvent>(m, "CacheEvent", "One change of what can be found in the prefix cache.")
      .def_prop_ro("kind", &kind_of, "\"stored\", \"evicted\" or \"cleared\".")
      .def_prop_ro(
          "page", [](const PyEvent& e) { return to_index(e.event.page); }, "Page id; -1 if all were dropped.")
      .def_prop_ro(
          "sequence_number", [](const PyEvent& e) { return e.event.sequence_number; },
          "From 0; a gap means that events were lost.")
      .def_prop_ro(
          "hash", [](const PyEvent& e) { return e.event.hash; }, "Of the page's tokens and all before them.")
      .def_prop_ro(
          "parent_hash", [](const PyEvent& e) { return e.event.parent_hash; }, "Of the page before.")
      .def_ro("tokens", &PyEvent::tokens, "Token ids of a stored page.")
      .def("__repr__", [](const PyEvent& e) {
        return "<pagedkv.CacheEvent " + std::to_string(e.event.sequence_number) + ": page " +
               std::to_string(to_index(e.event.page)) + " " + kind_of(e) + ">";
      });
}

}  // namespace

void bind_retention(nb::module_& m) {
  nb::class_<RetentionRange>(m, "RetentionRange", "How long the pages of a range of tokens stay cached.")
      .def(
          "__init__",
          [](RetentionRange* self, std::uint64_t begin, nb::handle end, std::uint32_t priority, std::uint64_t ms) {
            const RetentionRange unbounded;
            new (self) RetentionRange{.begin_token = begin,
                                      .end_token = end.is_none() ? unbounded.end_token : nb::cast<std::uint64_t>(end),
                                      .priority = priority,
                                      .duration_ms = ms};
          },
          "begin_token"_a = 0, "end_token"_a = nb::none(), "priority"_a = kDefaultRetentionPriority,
          "duration_ms"_a = 0,
          "Tokens begin_token .. end_token - 1 (None: all that follow); priority 0..100, lower goes first, 35 is "
          "usual; "
          "duration_ms 0 means for ever.")
      .def_ro("begin_token", &RetentionRange::begin_token, "First token.")
      .def_ro("end_token", &RetentionRange::end_token, "Exclusive.")
      .def_ro("priority", &RetentionRange::priority, "0..100.")
      .def_ro("duration_ms", &RetentionRange::duration_ms, "From publication or reuse; 0 means for ever.");
  bind_event(m);
}

void bind_prefixes(nb::class_<PyCache>& cache) {
  cache
      .def(
          "clear_prefix_cache", [](PyCache& c) { unlocked([&] { c.cache.clear_prefix_cache(); }); },
          "Makes all cached prefixes unfindable. Sequences keep their pages.")
      .def("poll_events", &poll_events,
           "The events since the last call, oldest first. There are some if event_capacity was not 0.");
}

}  // namespace pagedkv::python
