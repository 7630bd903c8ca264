// Which thread may use an object now, and when the interpreter lock is let go.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "errors.h"

namespace pagedkv::python {

/// A call of the library by this thread, or several within each other.
///
/// An eviction policy in Python is called under the pool's lock, which the destructors of sequences, steps and caches
/// take. Those that Python destroys in the policy's methods, as its collector may do at any time, wait therefore until
/// the outermost call is over and none of its objects is in use.
class LibraryCall {
 public:
  LibraryCall() noexcept { ++depth_; }
  ~LibraryCall() {
    if (--depth_ == 0 && callbacks_ == 0 && !waiting_.empty()) destroy_waiting();
  }
  LibraryCall(const LibraryCall&) = delete;
  LibraryCall& operator=(const LibraryCall&) = delete;

  /// Within it, a policy's method runs.
  class Callback {
   public:
    Callback() noexcept { ++callbacks_; }
    ~Callback() { --callbacks_; }
    Callback(const Callback&) = delete;
    Callback& operator=(const Callback&) = delete;
  };

  /// Destroys what an object held, without the interpreter lock: now, or after the callback that runs.
  template <class Held>
  static void destroy(Held& held) {
    waiting_.push_back(std::make_shared<Held>(std::move(held)));
    const LibraryCall call;
  }

 private:
  static void destroy_waiting() {
    const nanobind::gil_scoped_release released;
    while (!waiting_.empty()) std::exchange(waiting_, {}).clear();
  }

  inline static thread_local std::uint32_t depth_ = 0, callbacks_ = 0;
  inline static thread_local std::vector<std::shared_ptr<void>> waiting_;
};

/// Calls `function` without the interpreter lock. Whatever may wait for the pool's lock runs so: an eviction policy in
/// Python is called under that lock and needs the interpreter's.
template <class Function>
auto unlocked(Function&& function) {
  const LibraryCall call;
  const nanobind::gil_scoped_release released;
  return std::forward<Function>(function)();
}

/// Refuses a second thread: objects that belong to one thread at a time stay safe though the interpreter lock is
/// released while they work.
class Exclusive {
 public:
  explicit Exclusive(std::atomic<bool>& in_use) : in_use_(in_use) {
    if (in_use_.exchange(true, std::memory_order_acquire)) refuse();
  }
  ~Exclusive() { in_use_.store(false, std::memory_order_release); }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

  [[noreturn]] static void refuse() {
    raise({Errc::kBusy, "another thread is using this object; use it from one thread at a time"});
  }

 private:
  std::atomic<bool>& in_use_;
};

/// The same for several objects: all or none. `Object` has a member `in_use`.
template <class Object>
class ExclusiveAll {
 public:
  explicit ExclusiveAll(std::span<Object* const> objects) : objects_(objects) {
    while (held_ < objects_.size()) {
      if (objects_[held_]->in_use.exchange(true, std::memory_order_acquire)) {
        release();
        Exclusive::refuse();
      }
      ++held_;
    }
  }
  ~ExclusiveAll() { release(); }
  ExclusiveAll(const ExclusiveAll&) = delete;
  ExclusiveAll& operator=(const ExclusiveAll&) = delete;

 private:
  void release() noexcept {
    while (held_ > 0) objects_[--held_]->in_use.store(false, std::memory_order_release);
  }
  std::span<Object* const> objects_;
  std::size_t held_ = 0;
};

/// Waits until nobody uses an object. Without the interpreter lock: whoever uses it may need that to finish.
inline void wait_for(std::atomic<bool>& in_use) noexcept {
  while (in_use.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
}

/// `function()` while no other thread uses `object`. It must not run Python, as raising does: what Python's collector
/// then destroys may wait for the same object.
template <class Object, class Function>
auto alone(Object& object, Function&& function) {
  const LibraryCall call;
  const Exclusive one(object.in_use);
  return std::forward<Function>(function)();
}

/// `function()` without the interpreter lock, while no other thread uses any of the objects.
template <class Object, class Function>
auto all_alone(const std::vector<Object*>& objects, Function&& function) {
  const LibraryCall call;  // what it destroys at its end may wait for the same objects
  const ExclusiveAll<Object> all(objects);
  return unlocked(std::forward<Function>(function));
}

}  // namespace pagedkv::python
