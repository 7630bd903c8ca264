// Raises the exception classes of pagedkv/errors.py.
#include "errors.h"

namespace nb = nanobind;

namespace pagedkv::python {

void raise(Error error) {
  nb::object exception =
      nb::module_::import_("pagedkv.errors").attr("make")(static_cast<std::int32_t>(error.code), error.what);
  PyErr_SetObject(exception.type().ptr(), exception.ptr());
  throw nb::python_error();
}

}  // namespace pagedkv::python
