// Tiles of AMX: their size and shapes, and the state of a thread that computes with them.
//
// Layer: kernels, only for the x86_amx_*.cc files.
#pragma once

#include "kernels/x86_amx_instructions.h"

#if defined(__x86_64__)
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

/// Configures the tiles for one task and releases them after: a thread that keeps tile state pays for it at each
/// switch.
class TileScope {
 public:
  explicit TileScope(const TileConfig& config) noexcept { tile_configure(config); }
  ~TileScope() { tile_release(); }
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
