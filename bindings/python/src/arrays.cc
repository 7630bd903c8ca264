// Conversion of Python arrays to views, with errors that name the argument.
#include "arrays.h"

#include <nanobind/stl/string.h>

#include <limits>
#include <string>

namespace nb = nanobind;

namespace pagedkv::python {
namespace {

[[noreturn]] void type_error(std::string_view name, const std::string& what) {
  throw nb::type_error((std::string(name) + ": " + what).c_str());
}
[[noreturn]] void value_error(std::string_view name, const std::string& what) {
  throw nb::value_error((std::string(name) + ": " + what).c_str());
}

std::string text_of(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

/// NumPy's bfloat16 (of ml_dtypes) has no DLPack type: it is viewed as uint16, and `bf16` remembers.
nb::object without_bfloat16(nb::handle object, bool& bf16) {
  bf16 = false;
  if (nb::hasattr(object, "__array_interface__") && nb::hasattr(object, "view") &&
      nb::str(nb::handle(nb::object(object.attr("dtype")))).c_str() == std::string_view("bfloat16")) {
    bf16 = true;
    return object.attr("view")("uint16");
  }
  return nb::borrow(object);
}

template <class NdArray>
nb::ndarray<nb::device::cpu> import(nb::handle object, std::string_view name, Use use) {
  NdArray array;
  if (!nb::try_cast<NdArray>(object, array, false)) {
    nb::ndarray<nb::ro> any;
    if (!nb::try_cast<nb::ndarray<nb::ro>>(object, any, false)) {
      PyErr_Clear();
      type_error(name, "expected an array (NumPy, PyTorch, DLPack or buffer), not " +
                           nb::cast<std::string>(nb::str(object.type().attr("__name__"))));
    }
    if (any.device_type() != nb::device::cpu::value) type_error(name, "the array is not in CPU memory");
    type_error(name, use == Use::kWrite ? "the array is read-only" : "the array cannot be read");
  }
  return nb::ndarray<nb::device::cpu>(array);
}

}  // namespace

std::size_t Array::size() const noexcept {
  std::size_t size = 1;
  for (const std::int64_t extent : shape) size *= static_cast<std::size_t>(extent);
  return size;
}

Array array_of(nb::handle object, std::string_view name, Use use) {
  bool bf16 = false;
  const nb::object plain = without_bfloat16(object, bf16);
  Array array;
  // A writable import of a read-only array fails; reading allows both.
  array.handle = use == Use::kWrite
                     ? import <nb::ndarray<nb::device::cpu>>(plain, name, use)
                     : nb::ndarray<nb::device::cpu>(import <nb::ndarray<nb::ro, nb::device::cpu>>(plain, name, use));
  const nb::dlpack::dtype type = array.handle.dtype();
  const auto code = static_cast<nb::dlpack::dtype_code>(type.code);
  if (type.lanes != 1) type_error(name, "vector element types are not supported");
  if (bf16 || (code == nb::dlpack::dtype_code::Bfloat && type.bits == 16)) {
    array.dtype = DType::bf16;
  } else if (code == nb::dlpack::dtype_code::Float && type.bits == 32) {
    array.dtype = DType::f32;
  } else if (code == nb::dlpack::dtype_code::Float && type.bits == 16) {
    array.dtype = DType::f16;
  } else {
    type_error(name, "elements must be float32, float16 or bfloat16");
  }
  array.data = const_cast<void*>(static_cast<const void*>(array.handle.data()));
  for (std::size_t i = 0; i < array.handle.ndim(); ++i) {
    array.shape.push_back(static_cast<std::int64_t>(array.handle.shape(i)));
    array.strides.push_back(array.handle.stride(i));
  }
  return array;
}

Array dense(nb::handle object, std::string_view name, Use use, std::int64_t rows,
            std::initializer_list<std::int64_t> row_shape) {
  Array array = array_of(object, name, use);
  std::vector<std::int64_t> wanted{rows};
  wanted.insert(wanted.end(), row_shape);
  std::size_t size = 1;
  for (const std::int64_t extent : wanted) size *= static_cast<std::size_t>(extent);
  if (array.size() != size) value_error(name, "expected shape " + text_of(wanted) + ", got " + text_of(array.shape));
  std::int64_t expected = 1;
  for (std::size_t i = array.shape.size(); i-- > 0;) {
    if (array.shape[i] > 1 && array.strides[i] != expected) {
      value_error(name, "the array must be contiguous (row-major, without gaps)");
    }
    expected *= array.shape[i];
  }
  return array;
}

Array floats_or_none(nb::handle object, std::string_view name, Use use, std::int64_t size) {
  if (object.is_none()) return {.handle = {}, .shape = {0}, .strides = {1}};
  Array array = dense(object, name, use, size, {});
  if (array.dtype != DType::f32) type_error(name, "elements must be float32");
  return array;
}

Ints ints_of(nb::handle object, std::string_view name) {
  Ints ints;
  if (object.is_none()) return ints;
  nb::ndarray<nb::ro, nb::device::cpu, nb::c_contig> array;
  if (nb::try_cast(object, array, false)) {
    ints.handle = nb::ndarray<nb::device::cpu>(array);
    for (std::size_t i = 0; i < array.ndim(); ++i) ints.shape.push_back(static_cast<std::int64_t>(array.shape(i)));
    if (array.dtype() == nb::dtype<std::int32_t>()) {
      ints.span = {static_cast<const std::int32_t*>(array.data()), array.size()};
      return ints;
    }
    if (array.dtype() != nb::dtype<std::int64_t>()) type_error(name, "integers must be int32 or int64");
    const auto* wide = static_cast<const std::int64_t*>(array.data());
    for (std::size_t i = 0; i < array.size(); ++i) {
      if (wide[i] < std::numeric_limits<std::int32_t>::min() || wide[i] > std::numeric_limits<std::int32_t>::max()) {
        value_error(name, "an integer does not fit in 32 bits");
      }
      ints.copy.push_back(static_cast<std::int32_t>(wide[i]));
    }
  } else {
    PyErr_Clear();
    try {
      for (nb::handle item : object) ints.copy.push_back(nb::cast<std::int32_t>(item));
    } catch (const nb::cast_error&) {
      type_error(name, "expected integers of 32 bits");
    }
    ints.shape.push_back(static_cast<std::int64_t>(ints.copy.size()));
  }
  ints.span = ints.copy;
  return ints;
}

Longs longs_of(nb::handle object, std::string_view name) {
  Longs longs;
  if (object.is_none()) return longs;
  nb::ndarray<nb::ro, nb::device::cpu, nb::c_contig> array;
  if (nb::try_cast(object, array, false) && array.dtype() == nb::dtype<std::int64_t>()) {
    longs.handle = nb::ndarray<nb::device::cpu>(array);
    longs.span = {static_cast<const std::int64_t*>(array.data()), array.size()};
    return longs;
  }
  PyErr_Clear();
  try {
    for (nb::handle item : object) longs.copy.push_back(nb::cast<std::int64_t>(item));
  } catch (const nb::cast_error&) {
    type_error(name, "expected integers of 64 bits");
  }
  longs.span = longs.copy;
  return longs;
}

nb::object new_output(nb::handle q, std::initializer_list<std::int64_t> shape) {
  nb::list extents;
  for (const std::int64_t extent : shape) extents.append(extent);
  return nb::module_::import_("pagedkv.arrays").attr("empty_beside")(q, nb::tuple(extents));
}

DType dtype_named(std::string_view name) {
  if (name == "f32" || name == "float32") return DType::f32;
  if (name == "f16" || name == "float16") return DType::f16;
  if (name == "bf16" || name == "bfloat16") return DType::bf16;
  throw nb::value_error("dtype must be \"f32\", \"f16\" or \"bf16\"");
}

}  // namespace pagedkv::python
