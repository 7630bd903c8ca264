// Kernel targets by number: what the rooms above compare instead of names.
//
// Layer: cpu.
#pragma once

#include <cstdint>
#include <string_view>

#include "pagedkv/cpu.h"

namespace pagedkv::cpu {

/// One compiled instruction set. Lower is better; only those of this architecture are compiled in.
enum class Target : std::uint8_t { kAmx, kAvx512Bf16, kAvx512, kAvx2, kSse4, kNeon, kScalar };

/// The number of a target that `targets()`, `find_target` or `active_target` returned.
Target target_of(const TargetInfo& info) noexcept;

/// The target of that name, or the active one for none. Errors: kUnsupported (unknown, or cannot run here)
Result<const TargetInfo*> choose_target(std::string_view name) noexcept;

}  // namespace pagedkv::cpu
