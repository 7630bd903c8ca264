// Reads the CPU's maker and family from CPUID.
#include "cpu/prefetch_order.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pagedkv::cpu {
namespace {

bool is_zen5() noexcept {
#if defined(__x86_64__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0 || ebx != signature_AMD_ebx) return false;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return false;
  const unsigned family = (eax >> 8 & 0xF) + (eax >> 20 & 0xFF);
  return family == 0x1A;
#else
  return false;
#endif
}

}  // namespace

PrefetchOrder prefetch_order() noexcept {
  static const PrefetchOrder order = is_zen5() ? PrefetchOrder::kPageAfterPage : PrefetchOrder::kPagesInTurn;
  return order;
}

}  // namespace pagedkv::cpu
