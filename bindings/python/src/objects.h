// The Python objects that several files of the binding know.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "pagedkv/kv_cache.h"
#include "threads.h"

namespace pagedkv::python {

struct PySequence {
  Sequence sequence;
  std::atomic<bool> in_use{false};

  explicit PySequence(Sequence&& s) : sequence(std::move(s)) {}
  ~PySequence() { LibraryCall::destroy(sequence); }
  PySequence(const PySequence&) = delete;
  PySequence& operator=(const PySequence&) = delete;
};

struct PyCache {
  KvCache cache;
  ModelShape shape;  ///< v_head_dim filled in.

  PyCache(KvCache&& c, const ModelShape& s) : cache(std::move(c)), shape(s) {}
  ~PyCache() { LibraryCall::destroy(cache); }
  PyCache(const PyCache&) = delete;
  PyCache& operator=(const PyCache&) = delete;
};

/// The items of a step, as the library takes them, with what they borrow.
struct StepItems {
  std::vector<StepItem> items;
  std::vector<PySequence*> sequences;
  std::vector<nanobind::object> kept_alive;
  std::vector<std::vector<Token>> tokens;
};
/// (sequence, num_new_tokens) or (sequence, num_new_tokens, tokens) each. Raises TypeError, or InvalidArgument.
StepItems items_of(nanobind::handle list);

/// Counts of a pool by name.
nanobind::dict stats_of(const PoolStats& stats);

void bind_prefixes(nanobind::class_<PyCache>& cache);

/// A new Step object.
nanobind::object begin_step(PyCache& cache, nanobind::handle items);

}  // namespace pagedkv::python
