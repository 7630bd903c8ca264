// Errors of keyword arguments.
#include "arguments.h"

namespace nb = nanobind;

namespace pagedkv::python {

nb::object Arguments::take_object(const char* name) {
  if (!left_.contains(name)) return {};
  nb::object value = nb::borrow(left_[name]);
  nb::del(left_[name]);
  return value;
}

void Arguments::refuse(const char* name) {
  throw nb::type_error((std::string(name) + ": the value is of another type, or out of its type's range").c_str());
}

void Arguments::missing(const char* name) {
  throw nb::type_error((std::string("missing the keyword argument ") + name).c_str());
}

void Arguments::finish() const {
  for (const auto& [name, value] : left_) {
    throw nb::type_error(("unknown keyword argument " + nb::cast<std::string>(name)).c_str());
  }
}

namespace {

Array sinks_of(nb::handle given, std::uint32_t num_q_heads, std::uint32_t num_layers) {
  nb::ndarray<nb::ro, nb::device::cpu> array;
  const bool each_layer = num_layers != 0 && nb::try_cast(given, array, false) && array.ndim() == 2;
  PyErr_Clear();
  return floats_or_none(given, "sinks", Use::kRead,
                        std::int64_t{num_q_heads} * (each_layer ? std::int64_t{num_layers} : 1));
}

}  // namespace

VariantArguments::VariantArguments(Arguments& arguments, std::uint32_t num_q_heads, std::uint32_t num_layers)
    : sinks(sinks_of(arguments.take_any("sinks"), num_q_heads, num_layers)),
      alibi_slopes(floats_or_none(arguments.take_any("alibi_slopes"), "alibi_slopes", Use::kRead, num_q_heads)),
      variant{.sm_scale = arguments.take("sm_scale", 0.0F),
              .causal = arguments.take("causal", true),
              .window_left = arguments.take("window_left", std::int32_t{-1}),
              .sink_tokens = arguments.take("sink_tokens", std::uint32_t{0}),
              .logits_soft_cap = arguments.take("logits_soft_cap", 0.0F),
              .sinks = sinks.floats(),
              .alibi_slopes = alibi_slopes.floats(),
              .f16_as_bf16 = arguments.take("f16_as_bf16", false)} {}

}  // namespace pagedkv::python
