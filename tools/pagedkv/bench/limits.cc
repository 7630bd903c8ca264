// The loops behind the two ceilings: plain loads, and chains of FMA or of AMX tile products long enough to hide
// latency.
#include "bench/limits.h"

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include <array>
#include <atomic>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pagedkv::tool {
namespace {

constexpr std::size_t kReadGrainBytes = std::size_t{1} << 20;

/// Sum of the 64-bit words of `bytes` bytes, a multiple of 256, in vectors of type V with four running sums.
template <class V>
[[gnu::always_inline]] inline std::uint64_t sum_words(const std::byte* data, std::size_t bytes) {
  V sums[4] = {};
  for (std::size_t i = 0; i < bytes; i += 4 * sizeof(V)) {
    for (std::size_t j = 0; j < 4; ++j) {
      V loaded;
      std::memcpy(&loaded, data + i + j * sizeof(V), sizeof(V));
      sums[j] += loaded;
    }
  }
  const V total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  std::uint64_t result = 0;
  for (std::size_t lane = 0; lane < sizeof(V) / sizeof(std::uint64_t); ++lane) result += total[lane];
  return result;
}

using Words128 = std::uint64_t __attribute__((vector_size(16)));
std::uint64_t sum_words_128(const std::byte* data, std::size_t bytes) { return sum_words<Words128>(data, bytes); }

using SumWords = std::uint64_t (*)(const std::byte*, std::size_t);

#if defined(__x86_64__)
using Words256 = std::uint64_t __attribute__((vector_size(32)));
using Words512 = std::uint64_t __attribute__((vector_size(64)));
[[gnu::target("avx2")]] std::uint64_t sum_words_256(const std::byte* data, std::size_t bytes) {
  return sum_words<Words256>(data, bytes);
}
[[gnu::target("avx512f")]] std::uint64_t sum_words_512(const std::byte* data, std::size_t bytes) {
  return sum_words<Words512>(data, bytes);
}

SumWords best_sum_words() {
  if (__builtin_cpu_supports("avx512f")) return sum_words_512;
  if (__builtin_cpu_supports("avx2")) return sum_words_256;
  return sum_words_128;
}

/// One repetition of ten independent chains, which cover a latency of 4 to 5 cycles at two FMA a cycle. The chains
/// shrink towards a fixed point (x * 0.5 + 0.5), so that no value becomes infinite or denormal.
#define PAGEDKV_TEN_FMA(reg)                                                                        \
  "vfmadd132ps %%" reg "10, %%" reg "11, %%" reg "0\n vfmadd132ps %%" reg "10, %%" reg "11, %%" reg \
  "1\n"                                                                                             \
  "vfmadd132ps %%" reg "10, %%" reg "11, %%" reg "2\n vfmadd132ps %%" reg "10, %%" reg "11, %%" reg \
  "3\n"                                                                                             \
  "vfmadd132ps %%" reg "10, %%" reg "11, %%" reg "4\n vfmadd132ps %%" reg "10, %%" reg "11, %%" reg \
  "5\n"                                                                                             \
  "vfmadd132ps %%" reg "10, %%" reg "11, %%" reg "6\n vfmadd132ps %%" reg "10, %%" reg "11, %%" reg \
  "7\n"                                                                                             \
  "vfmadd132ps %%" reg "10, %%" reg "11, %%" reg "8\n vfmadd132ps %%" reg "10, %%" reg "11, %%" reg "9\n"
#define PAGEDKV_FMA_CLOBBERS \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "memory"

constexpr int kFmaRepetitions = 5000;

[[gnu::target("avx512f")]] double fma_512() {
  const float half = 0.5F;
  asm volatile("vbroadcastss %0, %%zmm10\n vbroadcastss %0, %%zmm11\n" ::"m"(half) : PAGEDKV_FMA_CLOBBERS);
  for (int i = 0; i < kFmaRepetitions; ++i) asm volatile(PAGEDKV_TEN_FMA("zmm")::: PAGEDKV_FMA_CLOBBERS);
  asm volatile("vzeroupper" ::: PAGEDKV_FMA_CLOBBERS);
  return kFmaRepetitions * 10.0 * 16 * 2;
}

/// Twelve chains of products of bf16 pairs, of 0.5 and 0, which cover a latency of 6 cycles at two a cycle.
[[gnu::target("avx512f")]] double dot_512() {
  const std::uint32_t pair = 0x3F00;
  asm volatile("vpbroadcastd %0, %%zmm12\n" ::"m"(pair) : PAGEDKV_FMA_CLOBBERS, "xmm12");
  for (int i = 0; i < kFmaRepetitions; ++i) {
    asm volatile(
        "vdpbf16ps %%zmm12, %%zmm12, %%zmm0\n vdpbf16ps %%zmm12, %%zmm12, %%zmm1\n vdpbf16ps %%zmm12, %%zmm12, %%zmm2\n"
        "vdpbf16ps %%zmm12, %%zmm12, %%zmm3\n vdpbf16ps %%zmm12, %%zmm12, %%zmm4\n vdpbf16ps %%zmm12, %%zmm12, %%zmm5\n"
        "vdpbf16ps %%zmm12, %%zmm12, %%zmm6\n vdpbf16ps %%zmm12, %%zmm12, %%zmm7\n vdpbf16ps %%zmm12, %%zmm12, %%zmm8\n"
        "vdpbf16ps %%zmm12, %%zmm12, %%zmm9\n vdpbf16ps %%zmm12, %%zmm12, %%zmm10\n"
        "vdpbf16ps %%zmm12, %%zmm12, %%zmm11\n" ::
            : PAGEDKV_FMA_CLOBBERS);
  }
  asm volatile("vzeroupper" ::: PAGEDKV_FMA_CLOBBERS, "xmm12");
  return kFmaRepetitions * 12.0 * 32 * 2;
}
[[gnu::target("avx2,fma")]] double fma_256() {
  const float half = 0.5F;
  asm volatile("vbroadcastss %0, %%ymm10\n vbroadcastss %0, %%ymm11\n" ::"m"(half) : PAGEDKV_FMA_CLOBBERS);
  for (int i = 0; i < kFmaRepetitions; ++i) asm volatile(PAGEDKV_TEN_FMA("ymm")::: PAGEDKV_FMA_CLOBBERS);
  asm volatile("vzeroupper" ::: PAGEDKV_FMA_CLOBBERS);
  return kFmaRepetitions * 10.0 * 8 * 2;
}

/// What ldtilecfg reads: every tile 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0;
  std::array<std::uint8_t, 14> reserved{};
  std::array<std::uint16_t, 16> row_bytes{64, 64, 64, 64, 64, 64, 64, 64};
  std::array<std::uint8_t, 16> rows{16, 16, 16, 16, 16, 16, 16, 16};
};

/// Four accumulators over two by two operand tiles of random data: zeros would run a third faster.
[[gnu::target("amx-tile,amx-bf16")]] double tile_products() {
  constexpr int kRepetitions = 1000;
  alignas(64) std::array<std::uint16_t, 4 * 512> operands{};
  std::uint32_t state = 12345;
  for (std::uint16_t& value : operands) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<std::uint16_t>(((state >> 16) & 0x80FFU) | 0x3F00U);  // magnitudes from 0.5 to 2, any sign
  }
  const TileConfig config;
  const std::uint16_t* tiles = operands.data();
  const std::int64_t stride = 64;
  asm volatile(
      "ldtilecfg %0\n tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n"
      "tileloadd (%1,%2,1), %%tmm4\n tileloadd 1024(%1,%2,1), %%tmm5\n"
      "tileloadd 2048(%1,%2,1), %%tmm6\n tileloadd 3072(%1,%2,1), %%tmm7\n" ::"m"(config),
      "r"(tiles), "r"(stride)
      : "memory");
  for (int i = 0; i < kRepetitions; ++i) {
    asm volatile(
        "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
        "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n" ::
            : "memory");
  }
  asm volatile("tilerelease" ::: "memory");
  return kRepetitions * 4.0 * 16 * 16 * 32 * 2;
}

/// Tiles are the process's only after it has asked for them; asking again is harmless.
void request_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  syscall(SYS_arch_prctl, kRequestPermission, kTileData);
#endif
}
#else
SumWords best_sum_words() { return sum_words_128; }
double fma_512() { return 0; }
double dot_512() { return 0; }
double fma_256() { return 0; }
double tile_products() { return 0; }
void request_tiles() {}
#endif

/// Multiply and add in vectors of 128 bits; fused where the compiler's baseline has it.
double mul_add_128() {
  using Floats = float __attribute__((vector_size(16)));
  constexpr int kRepetitions = 5000;
  std::array<Floats, 10> chains{};
  Floats half = {0.5F, 0.5F, 0.5F, 0.5F};
  for (int i = 0; i < kRepetitions; ++i) {
    asm volatile("" : "+m"(half));  // the loop must not be folded away
    const Floats factor = half;
    for (Floats& chain : chains) chain = chain * factor + factor;
  }
  for (Floats& chain : chains) asm volatile("" : "+m"(chain));
  return kRepetitions * 10.0 * 4 * 2;
}

}  // namespace

std::uint64_t read_contiguous(std::span<const std::byte> memory) {
  static const SumWords sum = best_sum_words();
  std::atomic<std::uint64_t> total{0};
  const std::size_t bytes = memory.size() / 256 * 256;
  tbb::parallel_for(tbb::blocked_range<std::size_t>(0, (bytes + kReadGrainBytes - 1) / kReadGrainBytes),
                    [&](const tbb::blocked_range<std::size_t>& grains) {
                      const std::size_t begin = grains.begin() * kReadGrainBytes;
                      const std::size_t end = std::min(bytes, grains.end() * kReadGrainBytes);
                      total.fetch_add(sum(memory.data() + begin, end - begin), std::memory_order_relaxed);
                    });
  return total.load(std::memory_order_relaxed);
}

const char* to_string(PeakUnit unit) noexcept {
  switch (unit) {
    case PeakUnit::kAmxBf16: return "amx bf16";
    case PeakUnit::kDot512: return "bf16 dot products 512 bit";
    case PeakUnit::kFma512: return "fp32 fma 512 bit";
    case PeakUnit::kFma256: return "fp32 fma 256 bit";
    case PeakUnit::kMulAdd128: break;
  }
  return "fp32 multiply-add 128 bit";
}

PeakUnit peak_unit_of(std::string_view target, DType kv_dtype) noexcept {
  if (target == "amx") return kv_dtype == DType::f32 ? PeakUnit::kFma512 : PeakUnit::kAmxBf16;
  if (target == "avx512_bf16") return kv_dtype == DType::bf16 ? PeakUnit::kDot512 : PeakUnit::kFma512;
  if (target == "avx512") return PeakUnit::kFma512;
  if (target == "avx2") return PeakUnit::kFma256;
  return PeakUnit::kMulAdd128;
}

double run_peak(PeakUnit unit, int num_threads) {
  if (unit == PeakUnit::kAmxBf16) request_tiles();
  double (*loop)() = mul_add_128;
  if (unit == PeakUnit::kAmxBf16) loop = tile_products;
  if (unit == PeakUnit::kDot512) loop = dot_512;
  if (unit == PeakUnit::kFma512) loop = fma_512;
  if (unit == PeakUnit::kFma256) loop = fma_256;
  constexpr int kLoopsAThread = 64;  // about 20 us each
  std::atomic<double> total{0};
  tbb::parallel_for(
      tbb::blocked_range<int>(0, num_threads * kLoopsAThread, 4),
      [&](const tbb::blocked_range<int>& loops) {
        double done = 0;
        for (int i = loops.begin(); i < loops.end(); ++i) done += loop();
        total.fetch_add(done, std::memory_order_relaxed);
      },
      tbb::simple_partitioner());
  return total.load(std::memory_order_relaxed);
}

}  // namespace pagedkv::tool
