// Whether the AMX kernels may run in this process: the instructions are there and the kernel has granted their state.
//
// Layer: cpu.
#pragma once

#include "cpu/targets.h"

namespace pagedkv::cpu {

/// True if AVX-512 (F, BW, DQ, VL, BF16) and AMX (TILE, BF16) exist and Linux lets this process use the tile registers.
///
/// The first call asks for the permission (`arch_prctl`, once a process; threads inherit it).
/// Threads: any.
[[nodiscard]] bool amx_usable() noexcept;

/// The target whose generic kernels compute what AMX has no kernel for: AVX-512. A function because tests/emulation
/// answers otherwise.
[[nodiscard]] Target beside_amx() noexcept;

}  // namespace pagedkv::cpu
