// The table of each kind of object, and how a C function uses it.
//
// Layer: capi.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "capi/handle_table.h"
#include "pagedkv/attention.h"
#include "pagedkv/c/pagedkv.h"
#include "pagedkv/dense_cache.h"
#include "pagedkv/interleaved_cache.h"
#include "pagedkv/kv_cache.h"
#include "pagedkv/page_pool.h"
#include "pagedkv/result.h"
#include "pagedkv/sequence.h"

namespace pagedkv::capi {

using CacheTable = HandleTable<KvCache, Kind::kCache, Access::kShared>;
using SequenceTable = HandleTable<Sequence, Kind::kSequence, Access::kExclusive>;
using PoolTable = HandleTable<PagePool, Kind::kPool, Access::kShared>;
using StoreTable = HandleTable<SequenceStore, Kind::kStore, Access::kShared>;
using PlanTable = HandleTable<AttentionPlan, Kind::kPlan, Access::kExclusive>;
using DenseTable = HandleTable<DenseCache, Kind::kDense, Access::kExclusive>;
using InterleavedTable = HandleTable<InterleavedCache, Kind::kInterleaved, Access::kExclusive>;

/// The one table of a kind. Never destroyed: threads may still be in calls when the process ends.
template <class Table>
Table& table() noexcept {
  alignas(Table) static std::byte storage[sizeof(Table)];
  static Table* const the_table = ::new (static_cast<void*>(storage)) Table;
  return *the_table;
}

/// A step and the handles of its sequences. What ends the step changes them: it is a call on each of them too.
struct HeldStep {
  Step step;
  std::vector<std::uint64_t> sequences;    ///< Empty when the step is over.
  std::vector<SequenceTable::Use> in_use;  ///< Has room for all of them.

  /// Ends the step by `function`, which returns a Result<void>. Errors: kBusy (another thread is in a call on a
  /// sequence; nothing changed), or what `function` says
  template <class Function>
  Result<void> end(Function&& function) noexcept {
    for (const std::uint64_t sequence : sequences) {
      Result<SequenceTable::Use> use = table<SequenceTable>().use(sequence);
      if (!use) {
        in_use.clear();
        return use.error();
      }
      in_use.push_back(std::move(*use));
    }
    Result<void> ended = function();
    in_use.clear();
    if (ended) sequences.clear();
    return ended;
  }
  Result<void> roll_back() noexcept {
    return end([&]() -> Result<void> {
      step.rollback();
      return {};
    });
  }
};
using StepTable = HandleTable<HeldStep, Kind::kStep, Access::kExclusive>;

/// Remembers an error for pagedkv_last_error of this thread, and returns its code.
pagedkv_status report(Error error) noexcept;
inline pagedkv_status report(const Result<void>& result) noexcept {
  return result ? PAGEDKV_OK : report(result.error());
}

inline constexpr Error kNullArgument{Errc::kInvalidArgument, "a required pointer is NULL"};
inline constexpr Error kNoMemory{Errc::kOutOfMemory, "no memory for the arguments of the call"};

/// Calls `function` with the object of a handle. It returns a Result<void>, and may throw std::bad_alloc while it
/// copies arguments.
template <class Table, class Function>
pagedkv_status with(std::uint64_t handle, Function&& function) noexcept {
  auto use = table<Table>().use(handle);
  if (!use) return report(use.error());
  try {
    return report(function(**use));
  } catch (const std::bad_alloc&) {
    return report(kNoMemory);
  }
}

/// Writes one number that `function` gets from the object of a handle.
template <class Table, class Out, class Function>
pagedkv_status ask(std::uint64_t handle, Out* out, Function&& function) noexcept {
  if (out == nullptr) return report(kNullArgument);
  return with<Table>(handle, [&](auto& object) -> Result<void> {
    *out = static_cast<Out>(function(object));
    return {};
  });
}

/// Stores the object that `make` returns in a Result and writes its handle. The handle's place is had first, so that
/// nothing can fail once the object is made: to undo that would show in counters and in the order of eviction.
template <class Table, class Make>
Result<void> give(std::uint64_t* handle, Make&& make) {
  auto place = table<Table>().reserve();
  if (!place) return place.error();
  auto made = make();
  if (!made) return made.error();
  *handle = place->fill(std::move(*made));
  return {};
}

/// Calls `function`, which returns a Result<void>, with the object of a handle, and closes the handle in the same call
/// if it succeeds: else nothing has changed.
template <class Table, class Function>
pagedkv_status close_after(std::uint64_t handle, Function&& function) noexcept {
  auto use = table<Table>().use(handle);
  if (!use) return report(use.error());
  const Result<void> ended = function(**use);
  if (ended) use->close();
  return report(ended);
}

template <class Table>
pagedkv_status close(std::uint64_t handle) noexcept {
  return report(table<Table>().close(handle));
}

}  // namespace pagedkv::capi
