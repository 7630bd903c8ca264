// Kernel targets by number: what the rooms above compare instead of names.
//
// Layer: cpu.
#pragma once

#include <cstdint>

#include "pagedkv/cpu.h"

namespace pagedkv::cpu {

/// One compiled instruction set. Lower is better; only those of this architecture are compiled in.
enum class Target : std::uint8_t { kAmx, kAvx512, kAvx2, kSse4, kNeon, kScalar };

/// The number of a target that `targets()`, `find_target` or `active_target` returned.
Target target_of(const TargetInfo& info) noexcept;

}  // namespace pagedkv::cpu
