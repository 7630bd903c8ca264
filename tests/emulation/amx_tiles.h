// The eight tile registers of a thread and what AMX does with them.
#pragma once

#include <cstdint>

namespace pagedkv::emulation {

/// Traps where hardware would refuse: see Intel's manual, volume 2, on each instruction.
class Tiles {
 public:
  /// Of 64 bytes as `ldtilecfg` reads them. Clears all tiles.
  void configure(const void* config) noexcept;
  void release() noexcept { *this = Tiles{}; }
  void load(int tile, const void* from, std::int64_t stride_bytes) noexcept;
  void store(int tile, void* to, std::int64_t stride_bytes) const noexcept;
  void zero(int tile) noexcept;
  /// acc += a b, a bf16 [rows][2 k], b bf16 [k][columns][2], acc f32 [rows][columns]; denormals are zeros.
  void dot_bf16(int acc, int a, int b) noexcept;

 private:
  struct Tile {
    int rows = 0, row_bytes = 0;  // 0: not configured
    alignas(64) std::uint8_t bytes[16][64] = {};

    float bf16(int row, int i) const noexcept;  // element i of a row
  };
  const Tile& configured(int tile) const noexcept;
  Tile& configured(int tile) noexcept { return const_cast<Tile&>(static_cast<const Tiles&>(*this).configured(tile)); }

  Tile tiles_[8];
};

/// Those of the calling thread.
Tiles& tiles() noexcept;

}  // namespace pagedkv::emulation
