// Stands for src/cpu/amx.cc in programs that run the emulated AMX kernels: defines all of cpu/amx.h, or the linker
// would take both. On a CPU without AVX2 they end with 77, which ctest counts as skipped.
#include "cpu/amx.h"

#include <hwy/targets.h>

#include <cstdlib>

namespace pagedkv::cpu {
namespace {

[[maybe_unused]] const bool runs = amx_usable() || (std::_Exit(77), false);

}  // namespace

bool amx_usable() noexcept { return (hwy::SupportedTargets() & HWY_AVX2) != 0; }

Target beside_amx() noexcept { return (hwy::SupportedTargets() & HWY_AVX3) != 0 ? Target::kAvx512 : Target::kAvx2; }

}  // namespace pagedkv::cpu
