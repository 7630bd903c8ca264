// The tile registers, byte for byte; products in f32, fused.
#include "emulation/amx_tiles.h"

#include <immintrin.h>

#include <cstring>
#include <utility>

namespace pagedkv::emulation {
namespace {

void trap_unless(bool holds) noexcept {
  if (!holds) __builtin_trap();
}

// MXCSR: what AMX does whatever the mode of the thread.
constexpr unsigned kRoundToNearestFlushingDenormals = 0x1f80 | 0x8040;

}  // namespace

float Tiles::Tile::bf16(int row, int i) const noexcept {
  std::uint16_t bits;
  std::memcpy(&bits, bytes[row] + 2 * i, sizeof(bits));
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &wide, sizeof(x));
  return x;
}

const Tiles::Tile& Tiles::configured(int tile) const noexcept {
  trap_unless(tiles_[tile].rows != 0);
  return tiles_[tile];
}

void Tiles::configure(const void* config) noexcept {
  std::uint8_t bytes[64];
  std::memcpy(bytes, config, sizeof(bytes));
  trap_unless(bytes[0] == 1 && bytes[1] == 0);                                // palette 1, from the first row
  for (const auto& [first, last] : {std::pair{2, 16}, {32, 48}, {56, 64}}) {  // reserved, and tiles beyond the eighth
    for (int i = first; i < last; ++i) trap_unless(bytes[i] == 0);
  }
  *this = Tiles{};
  for (int i = 0; i < 8; ++i) {
    std::uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof(row_bytes));
    trap_unless(row_bytes <= 64 && bytes[48 + i] <= 16 && (row_bytes == 0) == (bytes[48 + i] == 0));
    tiles_[i].rows = bytes[48 + i], tiles_[i].row_bytes = row_bytes;
  }
}

void Tiles::load(int tile, const void* from, std::int64_t stride_bytes) noexcept {
  Tile& to = configured(tile);
  std::memset(to.bytes, 0, sizeof(to.bytes));
  for (int r = 0; r < to.rows; ++r) {
    std::memcpy(to.bytes[r], static_cast<const char*>(from) + r * stride_bytes, static_cast<std::size_t>(to.row_bytes));
  }
}

void Tiles::store(int tile, void* to, std::int64_t stride_bytes) const noexcept {
  const Tile& from = configured(tile);
  for (int r = 0; r < from.rows; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride_bytes, from.bytes[r], static_cast<std::size_t>(from.row_bytes));
  }
}

void Tiles::zero(int tile) noexcept {
  Tile& to = configured(tile);
  std::memset(to.bytes, 0, sizeof(to.bytes));
}

// Even and odd elements are summed apart, with one rounding a product, and join at the end.
void Tiles::dot_bf16(int acc, int a, int b) noexcept {
  Tile &to = configured(acc), &x = configured(a), &y = configured(b);
  trap_unless(acc != a && acc != b && a != b);
  trap_unless(to.rows == x.rows && to.row_bytes == y.row_bytes && x.row_bytes / 4 == y.rows);
  trap_unless(to.row_bytes % 4 == 0 && x.row_bytes % 4 == 0);
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(kRoundToNearestFlushingDenormals);
  alignas(64) float b_wide[2][16][16] = {};  // [parity][pair][column]
  for (int pair = 0; pair < y.rows; ++pair) {
    for (int i = 0; i < to.row_bytes / 2; ++i) b_wide[i % 2][pair][i / 2] = y.bf16(pair, i);
  }
  for (int row = 0; row < to.rows; ++row) {
    __m256 sums[2][2] = {{_mm256_setzero_ps(), _mm256_setzero_ps()}, {_mm256_setzero_ps(), _mm256_setzero_ps()}};
    for (int i = 0; i < 2 * y.rows; ++i) {
      const __m256 factor = _mm256_set1_ps(x.bf16(row, i));
      for (int half = 0; half < 2; ++half) {
        __m256& sum = sums[i % 2][half];
        sum = _mm256_fmadd_ps(factor, _mm256_load_ps(&b_wide[i % 2][i / 2][8 * half]), sum);
      }
    }
    for (int half = 0; half < 2; ++half) {  // columns past the last are never read
      auto* const at = reinterpret_cast<float*>(to.bytes[row] + 32 * half);
      _mm256_store_ps(at, _mm256_add_ps(_mm256_load_ps(at), _mm256_add_ps(sums[0][half], sums[1][half])));
    }
  }
  _mm_setcsr(mode);
}

Tiles& tiles() noexcept {
  static thread_local Tiles of_thread;
  return of_thread;
}

}  // namespace pagedkv::emulation
