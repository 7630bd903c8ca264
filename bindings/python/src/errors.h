// Errors of the library as Python exceptions that carry the code.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <utility>

#include "pagedkv/result.h"

namespace pagedkv::python {

/// Throws the exception class of `error.code` (pagedkv/errors.py), with `code` and the library's sentence.
[[noreturn]] void raise(Error error);

/// The value of a result, or its error as an exception.
template <class T>
T unwrap(Result<T>&& result) {
  if (!result) raise(result.error());
  return std::move(result).value();
}
inline void unwrap(Result<void>&& result) {
  if (!result) raise(result.error());
}

/// Refuses a second thread: objects that belong to one thread at a time stay safe though the interpreter lock is
/// released while they work.
class Exclusive {
 public:
  explicit Exclusive(std::atomic<bool>& in_use) : in_use_(in_use) {
    if (in_use_.exchange(true, std::memory_order_acquire)) {
      raise({Errc::kBusy, "another thread is using this object; use it from one thread at a time"});
    }
  }
  ~Exclusive() { in_use_.store(false, std::memory_order_release); }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

 private:
  std::atomic<bool>& in_use_;
};

}  // namespace pagedkv::python
