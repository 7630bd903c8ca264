// The extension module pagedkv._core; pagedkv/__init__.py is its public face.
#include <nanobind/nanobind.h>

namespace pagedkv::python {
void bind_sequence(nanobind::module_& m);
void bind_step(nanobind::module_& m);
void bind_retention(nanobind::module_& m);
void bind_cache(nanobind::module_& m);
void bind_storage(nanobind::module_& m);
void bind_plan(nanobind::module_& m);
void bind_facts(nanobind::module_& m);
}  // namespace pagedkv::python

NB_MODULE(_core, m) {
  m.doc() = "Paged KV cache and paged attention for CPUs.";
  pagedkv::python::bind_sequence(m);
  pagedkv::python::bind_step(m);
  pagedkv::python::bind_retention(m);
  pagedkv::python::bind_cache(m);
  pagedkv::python::bind_storage(m);
  pagedkv::python::bind_plan(m);
  pagedkv::python::bind_facts(m);
}
