// Asks CPUID for AMX and Linux for the permission to use its 8 KiB of tile state.
#include "cpu/amx.h"

#include <hwy/targets.h>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pagedkv::cpu {

#if defined(__x86_64__) && defined(__linux__)
namespace {

constexpr long kArchReqXcompPerm = 0x1023;  // ARCH_REQ_XCOMP_PERM; not in <asm/prctl.h> of older kernels' headers
constexpr long kXfeatureTileData = 18;

bool cpu_has_amx_bf16() noexcept {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  return (edx & kAmxBf16) != 0 && (edx & kAmxTile) != 0;
}

bool request_amx() noexcept {
  __builtin_cpu_init();
  return (hwy::SupportedTargets() & HWY_AVX3) != 0 && __builtin_cpu_supports("avx512bf16") && cpu_has_amx_bf16() &&
         syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}

}  // namespace

bool amx_usable() noexcept {
  static const bool usable = request_amx();
  return usable;
}
#else
bool amx_usable() noexcept { return false; }
#endif

Target beside_amx() noexcept { return Target::kAvx512; }

}  // namespace pagedkv::cpu
