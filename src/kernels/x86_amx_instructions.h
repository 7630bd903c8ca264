// AVX-512 and AMX as functions: the intrinsics of the compiler, and the tile instructions, which need inline assembly.
//
// Tests of machines without AMX put a header of the same name before this one (tests/emulation).
//
// Layer: kernels, only for the x86_amx_*.cc files. Everything between PAGEDKV_AMX_BEGIN and PAGEDKV_AMX_END is compiled
// for that instruction set (x86_isa.h).
#pragma once

#include "kernels/x86_isa.h"

#if defined(__x86_64__)
#include <cstdint>

#define PAGEDKV_AMX_TARGET "avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16"
#define PAGEDKV_AMX_BEGIN PAGEDKV_ISA_BEGIN(PAGEDKV_AMX_TARGET)
#define PAGEDKV_AMX_END PAGEDKV_ISA_END
#define PAGEDKV_AMX_INLINE PAGEDKV_ISA_INLINE

PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

// The tile intrinsics of g++ 12 say nothing of memory, so that loads and stores move across them (wrong sums and SIGILL
// were both seen): inline assembly with a memory clobber instead. tilezero and tdpbf16ps touch no memory; they are
// volatile, which keeps their order among the others.
template <int kTile>
PAGEDKV_AMX_INLINE void tile_load(const void* from, std::int64_t stride_bytes) noexcept {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride_bytes) : "memory");
}
template <int kTile>
PAGEDKV_AMX_INLINE void tile_store(void* to, std::int64_t stride_bytes) noexcept {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(stride_bytes) : "memory");
}
template <int kTile>
PAGEDKV_AMX_INLINE void tile_zero() noexcept {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
/// acc += a b, a bf16 [rows][2 k], b bf16 [k][columns][2], acc f32 [rows][columns].
template <int kAcc, int kA, int kB>
PAGEDKV_AMX_INLINE void tile_dot() noexcept {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kAcc), "i"(kA), "i"(kB));
}
/// Shapes of the tile registers, from 64 bytes as `ldtilecfg` reads them; until then tiles cannot be used.
template <class Config>
PAGEDKV_AMX_INLINE void tile_configure(const Config& config) noexcept {
  static_assert(sizeof(Config) == 64);
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
PAGEDKV_AMX_INLINE void tile_release() noexcept { asm volatile("tilerelease" ::: "memory"); }

/// Has x computed at this point of the tile instructions, not later.
PAGEDKV_AMX_INLINE void compute_here(__m512& x) noexcept { asm volatile("" : "+v"(x)); }
/// Has x rounded: its last operation is not fused with the next.
PAGEDKV_AMX_INLINE void keep_rounded(__m512& x) noexcept { asm("" : "+v"(x)); }

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
