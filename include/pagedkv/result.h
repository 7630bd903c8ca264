// Result<T>: a value or an Error. Nothing in pagedkv throws, aborts or prints.
//
// The member names are those of std::expected, which C++20 does not have.
#pragma once

#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

#include "pagedkv/export.h"

namespace pagedkv {

/// What went wrong, and what a server should do about it. The values are frozen: the C ABI shares them. Any call on an
/// object that was moved from gives kClosed, if it gives a Result; but closing twice is harmless.
enum class Errc : std::int32_t {
  kOk = 0,               ///< Not an error.
  kInvalidArgument = 1,  ///< A size, range or value is wrong. Refuse the request; retrying cannot help.
  kOutOfPages = 2,       ///< The pool is full. Normal under load: wait, preempt or evict, then retry.
  kOutOfMemory = 3,      ///< The host refused memory for bookkeeping. Shed load.
  kUnsupported = 4,      ///< No kernel for this combination on this CPU. Choose another format or target.
  kClosed = 5,           ///< The object was closed, moved from or committed before. A bug in the caller.
  kBusy = 6,             ///< The sequence belongs to a step in flight. Finish that step first.
  kOsError = 7,          ///< The operating system refused a call (reserve, commit, decommit). See `what`.
  kCancelled = 8,        ///< The caller's task group was cancelled; outputs are unspecified.
  kNotFound = 9,         ///< Nothing is known under that name or id.
  kCorrupt = 10,         ///< A file or byte stream does not hold what it claims. Discard it.
};

/// Name of a code, such as "out_of_pages". Static storage; never null.
PAGEDKV_API const char* to_string(Errc code) noexcept;

/// A code and one sentence that says what was wrong. `what` is a string literal: nothing is built at run time.
struct Error {
  Errc code = Errc::kOk;
  const char* what = "";

  friend bool operator==(const Error& error, Errc wanted) noexcept { return error.code == wanted; }
};

/// A `T`, or the `Error` that prevented it.
///
/// `value()`, `*` and `->` require `has_value()`, which nothing checks; `has_value()` and `error()` may always be
/// asked.
template <class T>
class [[nodiscard]] Result {
 public:
  using value_type = T;
  using error_type = Error;

  Result(T value) noexcept(std::is_nothrow_move_constructible_v<T>) : has_value_(true) {  // NOLINT(*-explicit-*)
    ::new (static_cast<void*>(&value_)) T(std::move(value));
  }
  Result(Error error) noexcept : error_(error), has_value_(false) {}  // NOLINT(*-explicit-*)
  Result(Result&& other) noexcept(std::is_nothrow_move_constructible_v<T>) : has_value_(other.has_value_) {
    if (has_value_) {
      ::new (static_cast<void*>(&value_)) T(std::move(other.value_));
    } else {
      error_ = other.error_;
    }
  }
  Result& operator=(Result&& other) noexcept(std::is_nothrow_move_constructible_v<T>) {
    if (this != &other) {
      this->~Result();
      ::new (static_cast<void*>(this)) Result(std::move(other));
    }
    return *this;
  }
  Result(const Result&) = delete;
  Result& operator=(const Result&) = delete;
  ~Result() {
    if (has_value_) value_.~T();
  }

  [[nodiscard]] bool has_value() const noexcept { return has_value_; }
  explicit operator bool() const noexcept { return has_value_; }

  T& value() & noexcept { return value_; }
  const T& value() const& noexcept { return value_; }
  T&& value() && noexcept { return std::move(value_); }
  T& operator*() & noexcept { return value_; }
  const T& operator*() const& noexcept { return value_; }
  T&& operator*() && noexcept { return std::move(value_); }
  T* operator->() noexcept { return &value_; }
  const T* operator->() const noexcept { return &value_; }

  /// The error; `Errc::kOk` if there is a value.
  [[nodiscard]] Error error() const noexcept { return has_value_ ? Error{} : error_; }

  template <class U>
  T value_or(U&& fallback) && {
    return has_value_ ? std::move(value_) : static_cast<T>(std::forward<U>(fallback));
  }

 private:
  union {
    T value_;
    Error error_;
  };
  bool has_value_;
};

/// Success, or the `Error` that prevented it.
template <>
class [[nodiscard]] Result<void> {
 public:
  using value_type = void;
  using error_type = Error;

  Result() noexcept = default;
  Result(Error error) noexcept : error_(error) {}  // NOLINT(*-explicit-*)

  [[nodiscard]] bool has_value() const noexcept { return error_.code == Errc::kOk; }
  explicit operator bool() const noexcept { return has_value(); }
  [[nodiscard]] Error error() const noexcept { return error_; }

 private:
  Error error_;
};

}  // namespace pagedkv
