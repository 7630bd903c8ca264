// Keyword arguments of constructors that have many: taken by name, each once, with errors that name them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

#include "arrays.h"
#include "pagedkv/attention.h"

namespace pagedkv::python {

class Arguments {
 public:
  explicit Arguments(const nanobind::kwargs& given) : left_(nanobind::dict(given)) {}

  /// The argument, or `fallback` if it was not given. Raises TypeError for a value of another type or range.
  template <class T>
  T take(const char* name, T fallback) {
    const nanobind::object value = take_object(name);
    if (!value.is_valid()) return fallback;
    T result{};
    if (!nanobind::try_cast(value, result)) refuse(name);
    return result;
  }
  /// The same; raises TypeError if it was not given.
  template <class T>
  T take(const char* name) {
    if (!left_.contains(name)) missing(name);
    return take(name, T{});
  }
  /// The argument as it came; None if it was not given.
  nanobind::object take_any(const char* name) {
    nanobind::object value = take_object(name);
    return value.is_valid() ? value : nanobind::none();
  }
  /// Raises TypeError if anything was given that nobody took.
  void finish() const;

 private:
  nanobind::object take_object(const char* name);
  [[noreturn]] static void refuse(const char* name);
  [[noreturn]] static void missing(const char* name);

  nanobind::dict left_;
};

/// sm_scale, causal, window_left, sink_tokens, logits_soft_cap, sinks, alibi_slopes and f16_as_bf16, with the arrays
/// that they borrow. sinks is [num_q_heads], or [num_layers][num_q_heads] where num_layers is not 0.
struct VariantArguments {
  VariantArguments(Arguments& arguments, std::uint32_t num_q_heads, std::uint32_t num_layers = 0);

  Array sinks, alibi_slopes;
  AttentionVariant variant;
};

}  // namespace pagedkv::python
