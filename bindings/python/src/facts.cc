// Facts for Python: version, CPU, kernel targets.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "errors.h"
#include "pagedkv/cpu.h"
#include "pagedkv/version.h"

namespace nb = nanobind;

namespace pagedkv::python {

void bind_facts(nb::module_& m) {
  m.attr("__version__") = version();
  m.def(
      "targets",
      [] {
        nb::list list;
        for (const TargetInfo& target : targets()) {
          nb::dict d;
          d["name"] = target.name;
          d["description"] = target.description;
          d["available"] = target.available;
          list.append(d);
        }
        return list;
      },
      nb::sig("def targets() -> list[dict[str, str | bool]]"), "Kernel targets compiled in, best first.");
  m.def(
      "cpu_info",
      [] {
        const CpuInfo& cpu = cpu_info();
        nb::dict d;
        d["model"] = cpu.model;
        d["num_cpus"] = cpu.num_cpus;
        d["num_numa_nodes"] = cpu.num_numa_nodes;
        d["l1d_bytes"] = cpu.l1d_bytes;
        d["l2_bytes"] = cpu.l2_bytes;
        d["l3_bytes"] = cpu.l3_bytes;
        return d;
      },
      nb::sig("def cpu_info() -> dict[str, str | int]"), "What the machine is; sizes are 0 if unknown.");
  m.def(
      "active_target", [] { return unwrap(active_target())->name; },
      "Name of the kernel target that is used when none is named (PAGEDKV_TARGET forces one).");
}

}  // namespace pagedkv::python
