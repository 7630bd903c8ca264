// Errors of the library as Python exceptions that carry the code.
#pragma once

#include <nanobind/nanobind.h>

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

}  // namespace pagedkv::python
