// Arrays of Python (NumPy, PyTorch, whatever speaks DLPack or the buffer protocol) as the library's views, never
// copied.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

#include "pagedkv/types.h"

namespace pagedkv::python {

/// A borrowed array; holds what keeps the memory alive.
struct Array {
  nanobind::ndarray<nanobind::device::cpu> handle;
  void* data = nullptr;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  ///< Elements.

  [[nodiscard]] std::size_t size() const noexcept;
  [[nodiscard]] ConstTensor in() const noexcept { return {data, size(), dtype}; }
  [[nodiscard]] Tensor out() const noexcept { return {data, size(), dtype}; }
  /// The elements as f32; requires dtype f32.
  [[nodiscard]] std::span<float> floats() const noexcept { return {static_cast<float*>(data), size()}; }
};

enum class Use { kRead, kWrite };

/// Any float array, with strides. Raises TypeError if it is no array on the CPU, or of another type, or read-only where
/// it is to be written; `name` says which argument.
Array array_of(nanobind::handle object, std::string_view name, Use use);

/// The same, rows of `row_shape` one after another without gaps: [rows][row_shape...] or flat with as many elements.
Array dense(nanobind::handle object, std::string_view name, Use use, std::int64_t rows,
            std::initializer_list<std::int64_t> row_shape);

/// A dense array of f32 with `size` elements, or an empty span for None.
Array floats_or_none(nanobind::handle object, std::string_view name, Use use, std::int64_t size);

/// Integers from a list or an array of int32 or int64; int32 arrays without a copy when dense.
struct Ints {
  nanobind::ndarray<nanobind::device::cpu> handle;
  std::vector<std::int32_t> copy;
  std::span<const std::int32_t> span;
  std::vector<std::int64_t> shape;
};
Ints ints_of(nanobind::handle object, std::string_view name);

/// The same of 64 bits.
struct Longs {
  nanobind::ndarray<nanobind::device::cpu> handle;
  std::vector<std::int64_t> copy;
  std::span<const std::int64_t> span;
};
Longs longs_of(nanobind::handle object, std::string_view name);

/// An uninitialised array beside `q`, of the same library and element type.
nanobind::object new_output(nanobind::handle q, std::initializer_list<std::int64_t> shape);

DType dtype_named(std::string_view name);

}  // namespace pagedkv::python
