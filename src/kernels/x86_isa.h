// Intrinsics of x86, and regions of a file that are compiled for an instruction set.
//
// Layer: kernels, only for the x86_*.cc files. A region is compiled for it function by function: per-file -m flags
// would leak AVX-512 into inline functions of the standard library that baseline code calls. For the same reason what
// stands there is `static` or in an unnamed namespace, or no template and not inline.
#pragma once

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push  // g++ 12 takes its own "undefined" vectors for mistakes (PR 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

#define PAGEDKV_ISA_PRAGMA(tokens) _Pragma(#tokens)
#if defined(__clang__)
#define PAGEDKV_ISA_BEGIN(isa) \
  PAGEDKV_ISA_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define PAGEDKV_ISA_END _Pragma("clang attribute pop")
#else
#define PAGEDKV_ISA_BEGIN(isa) _Pragma("GCC push_options") PAGEDKV_ISA_PRAGMA(GCC target isa)
#define PAGEDKV_ISA_END _Pragma("GCC pop_options")
#endif
#define PAGEDKV_ISA_INLINE __attribute__((always_inline)) inline
#endif  // __x86_64__
