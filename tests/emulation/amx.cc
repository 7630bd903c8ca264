// Stands for src/cpu/amx.cc in programs that run the emulated AMX kernels.
#include "cpu/amx.h"

#include <hwy/targets.h>

namespace pagedkv::cpu {

bool amx_usable() noexcept { return (hwy::SupportedTargets() & HWY_AVX2) != 0; }

Target beside_amx() noexcept { return (hwy::SupportedTargets() & HWY_AVX3) != 0 ? Target::kAvx512 : Target::kAvx2; }

}  // namespace pagedkv::cpu
