// The tile instructions of AMX as functions, and the region in which code may use AVX-512 and AMX.
//
// Layer: kernels, only for the x86_amx_*.cc files. Everything between PAGEDKV_AMX_BEGIN and PAGEDKV_AMX_END is compiled
// for that instruction set, function by function: per-file -m flags would leak AVX-512 into inline functions of the
// standard library that baseline code calls. For the same reason what stands there is `static` or in an unnamed
// namespace.
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

#include <cstdint>

#define PAGEDKV_AMX_TARGET "avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16"
#define PAGEDKV_AMX_PRAGMA(tokens) _Pragma(#tokens)
#if defined(__clang__)
#define PAGEDKV_AMX_BEGIN_FOR(isa) \
  PAGEDKV_AMX_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define PAGEDKV_AMX_END _Pragma("clang attribute pop")
#else
#define PAGEDKV_AMX_BEGIN_FOR(isa) _Pragma("GCC push_options") PAGEDKV_AMX_PRAGMA(GCC target isa)
#define PAGEDKV_AMX_END _Pragma("GCC pop_options")
#endif
#define PAGEDKV_AMX_BEGIN PAGEDKV_AMX_BEGIN_FOR(PAGEDKV_AMX_TARGET)
#define PAGEDKV_AMX_INLINE __attribute__((always_inline)) inline

PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

/// A tile is 16 rows of 64 bytes: 16 x 32 bf16 as A operand, 16 pairs x 16 columns as B, 16 x 16 f32 as accumulator.
inline constexpr int kTileRows = 16;
inline constexpr int kTileRowBytes = 64;
inline constexpr int kTileBytes = 1024;
inline constexpr int kTileElements = kTileBytes / 2;  ///< bf16 elements
inline constexpr int kTileFloats = kTileBytes / 4;    ///< f32 elements

/// Palette 1 as `ldtilecfg` reads it. Shapes of the eight tile registers.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  void set(int tile, int num_rows, int bytes_a_row) noexcept {
    rows[tile] = static_cast<std::uint8_t>(num_rows);
    row_bytes[tile] = static_cast<std::uint16_t>(bytes_a_row);
  }
};

// The intrinsics of g++ 12 say nothing of memory, so that loads and stores move across them (wrong sums and SIGILL were
// both seen): inline assembly with a memory clobber instead. tilezero and tdpbf16ps touch no memory; they are volatile,
// which keeps their order among the others.
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

/// Configures the tiles for one task and releases them after: a thread that keeps tile state pays for it at each
/// switch.
class TileScope {
 public:
  explicit TileScope(const TileConfig& config) noexcept { asm volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
  ~TileScope() { asm volatile("tilerelease" ::: "memory"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

/// Round to nearest, denormals flushed, exceptions masked; the caller's mode comes back at the end. The AMX unit
/// flushes denormals whatever the mode, so that this makes the vector code agree with it, and results do not depend on
/// the caller.
class FloatModeScope {
 public:
  FloatModeScope() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80 | 0x8040); }
  ~FloatModeScope() { _mm_setcsr(saved_); }
  FloatModeScope(const FloatModeScope&) = delete;
  FloatModeScope& operator=(const FloatModeScope&) = delete;

 private:
  unsigned saved_;
};

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
