// Facts about the CPU: which kernel targets were compiled in, which may run here, and which one is used.
//
// Layer: cpu.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "pagedkv/export.h"
#include "pagedkv/result.h"

namespace pagedkv {

/// One compiled instruction set of the kernels. Names, best first on x86: "amx", "avx512_bf16", "avx512", "avx2",
/// "sse4", "scalar"; on Arm: "neon", "scalar".
struct TargetInfo {
  const char* name;         ///< Lower case; what PAGEDKV_TARGET and `AttentionConfig::target` take.
  const char* description;  ///< One line.
  bool available;           ///< This CPU and operating system can run it.
};

/// All targets compiled into the library, best first. Static storage. Thread-safe.
PAGEDKV_API std::span<const TargetInfo> targets() noexcept;

/// The target that plans use when they name none: PAGEDKV_TARGET if it is set and available, else the best. A cache
/// asks when it is created; `AttentionPlan::create`, `write_kv` and InterleavedCache ask at each call, so do not change
/// the environment while they run.
///
/// Errors: kUnsupported  PAGEDKV_TARGET names a target that is unknown or cannot run here
PAGEDKV_API Result<const TargetInfo*> active_target() noexcept;

/// Looks a target up by name (case-insensitive).
///
/// Errors: kNotFound     no such target was compiled in
///         kUnsupported  it cannot run on this machine
PAGEDKV_API Result<const TargetInfo*> find_target(std::string_view name) noexcept;

/// What the machine is, for reports. Sizes in bytes, 0 if unknown.
struct CpuInfo {
  const char* model;  ///< As the operating system names it. Static storage.
  int num_cpus;       ///< CPUs that this process may run on.
  std::size_t l1d_bytes, l2_bytes, l3_bytes;
  int num_numa_nodes;
};
PAGEDKV_API const CpuInfo& cpu_info() noexcept;

}  // namespace pagedkv
