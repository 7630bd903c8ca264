// AVX-512 and AMX in plain C++ over AVX2, so that the AMX kernels are tested on every x86 CPU.
//
// Stands before the header of the same name in src/ where the kernels are compiled for tests/emulation. What hardware
// refuses traps: tiles that were not configured, operands whose shapes do not fit, vectors that are not aligned. Loads
// and stores touch the bytes that hardware touches and no others, in C++, so that sanitizers see each of them.
//
// Semantics: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2. Only what the kernels use.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define PAGEDKV_AMX_BEGIN
#define PAGEDKV_AMX_END
#define PAGEDKV_AMX_INLINE inline

// Compilers have some intrinsics as macros, more without optimisation.
#undef _mm256_mask_storeu_epi16
#undef _mm512_cmp_ps_mask
#undef _mm512_cmpge_epi32_mask
#undef _mm512_cmpge_epu16_mask
#undef _mm512_cmplt_epi32_mask
#undef _mm512_cmpneq_epi32_mask
#undef _mm512_cvtps_ph
#undef _mm512_extracti64x4_epi64
#undef _mm512_mask_cmp_ps_mask
#undef _mm512_reduce_ps
#undef _mm512_set4_epi32
#undef _mm512_setr_epi32
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_i32x4
#undef _mm512_shuffle_i64x2
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32

#include "emulation/amx_tiles.h"

// Inside the kernels' namespace, where these hide the compiler's.
namespace pagedkv::kernels::amx {
namespace {

using __m256bh = __m256i;  // clang's own would be converted by functions that only its run-time library has
using __m512bh = __m512i;

// A vector of kBytes as elements of type T.
template <class T, std::size_t kBytes = 64>
struct Lanes {
  static constexpr int kCount = static_cast<int>(kBytes / sizeof(T));
  T at[kBytes / sizeof(T)];

  Lanes() = default;
  template <class Vector>
  explicit Lanes(const Vector& v) noexcept {
    static_assert(sizeof(v) == kBytes);
    std::memcpy(at, &v, kBytes);
  }
  template <class Vector>
  operator Vector() const noexcept {
    static_assert(sizeof(Vector) == kBytes);
    Vector v;
    std::memcpy(&v, at, kBytes);
    return v;
  }
};
using F32 = Lanes<float>;
using I32 = Lanes<std::int32_t>;
using U32 = Lanes<std::uint32_t>;
using U16 = Lanes<std::uint16_t>;
using I64 = Lanes<std::int64_t>;
using U8 = Lanes<std::uint8_t>;

// L with f(lane) in each lane.
template <class L, class F>
inline L each(F f) noexcept {
  L to;
  for (int i = 0; i < L::kCount; ++i) to.at[i] = f(i);
  return to;
}
template <class Mask, class F>
inline Mask mask_of(int lanes, F f) noexcept {
  std::uint64_t bits = 0;
  for (int i = 0; i < lanes; ++i) bits |= std::uint64_t{f(i) ? 1U : 0U} << i;
  return static_cast<Mask>(bits);
}
// f of the lower and of the upper half, as AVX2 computes it.
template <class F, class... V>
inline __m512 halves_ps(F f, V... v) noexcept {
  const auto half = [](const __m512& x, int i) {
    __m256 to;
    std::memcpy(&to, reinterpret_cast<const char*>(&x) + 32 * i, 32);
    return to;
  };
  const __m256 parts[2] = {f(half(v, 0)...), f(half(v, 1)...)};
  __m512 to;
  std::memcpy(&to, parts, sizeof(to));
  return to;
}

template <class T, class Vector>
inline Vector masked_load(Vector otherwise, std::uint64_t mask, const void* from) noexcept {
  Lanes<T, sizeof(Vector)> to(otherwise);
  for (std::size_t i = 0; i < sizeof(Vector) / sizeof(T); ++i) {
    if ((mask >> i & 1) != 0) std::memcpy(&to.at[i], static_cast<const char*>(from) + i * sizeof(T), sizeof(T));
  }
  return to;
}
template <class T, class Vector>
inline void masked_store(void* to, std::uint64_t mask, Vector v) noexcept {
  const Lanes<T, sizeof(Vector)> lanes(v);
  for (std::size_t i = 0; i < sizeof(Vector) / sizeof(T); ++i) {
    if ((mask >> i & 1) != 0) std::memcpy(static_cast<char*>(to) + i * sizeof(T), &lanes.at[i], sizeof(T));
  }
}
inline void trap_unless_aligned(const void* at) noexcept {
  if (reinterpret_cast<std::uintptr_t>(at) % 64 != 0) __builtin_trap();
}
template <class Vector>
inline Vector aligned_load(const void* from) noexcept {
  trap_unless_aligned(from);
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
template <class Vector>
inline void aligned_store(void* to, Vector v) noexcept {
  trap_unless_aligned(to);
  std::memcpy(to, &v, sizeof(v));
}

// ---- moving

inline __m512 _mm512_setzero_ps() noexcept {
  return each<F32>([](int) { return 0.f; });
}
inline __m512 _mm512_set1_ps(float x) noexcept {
  return each<F32>([=](int) { return x; });
}
inline __m512i _mm512_setzero_si512() noexcept {
  return each<I32>([](int) { return 0; });
}
inline __m512i _mm512_set1_epi32(std::int32_t x) noexcept {
  return each<I32>([=](int) { return x; });
}
inline __m512i _mm512_set1_epi16(std::int16_t x) noexcept {
  return each<U16>([=](int) { return static_cast<std::uint16_t>(x); });
}
template <class... X>
inline __m512i _mm512_setr_epi32(X... x) noexcept {
  static_assert(sizeof...(X) == 16);
  const std::int32_t from[] = {static_cast<std::int32_t>(x)...};
  return each<I32>([&](int i) { return from[i]; });
}
template <class... X>
inline __m512i _mm512_set_epi16(X... x) noexcept {
  static_assert(sizeof...(X) == 32);
  const std::uint16_t from[] = {static_cast<std::uint16_t>(x)...};
  return each<U16>([&](int i) { return from[31 - i]; });
}
inline __m512i _mm512_set4_epi32(int d, int c, int b, int a) noexcept {
  const std::int32_t from[] = {a, b, c, d};
  return each<I32>([&](int i) { return from[i % 4]; });
}
inline __m512i _mm512_castps_si512(__m512 x) noexcept { return reinterpret_cast<__m512i>(x); }
inline __m512 _mm512_castsi512_ps(__m512i x) noexcept { return reinterpret_cast<__m512>(x); }
inline float _mm512_cvtss_f32(__m512 x) noexcept { return x[0]; }
inline __m256i _mm512_extracti64x4_epi64(__m512i x, int half) noexcept {
  __m256i to;
  std::memcpy(&to, reinterpret_cast<const char*>(&x) + 32 * (half & 1), sizeof(to));
  return to;
}
inline __m256i _mm512_castsi512_si256(__m512i x) noexcept { return _mm512_extracti64x4_epi64(x, 0); }

inline __m512 _mm512_load_ps(const void* from) noexcept { return aligned_load<__m512>(from); }
inline __m512i _mm512_load_si512(const void* from) noexcept { return aligned_load<__m512i>(from); }
inline void _mm512_store_ps(void* to, __m512 x) noexcept { aligned_store(to, x); }
inline void _mm512_store_si512(void* to, __m512i x) noexcept { aligned_store(to, x); }
inline __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void* from) noexcept {
  return masked_load<std::uint16_t>(_mm512_setzero_si512(), mask, from);
}
inline __m512i _mm512_maskz_loadu_epi8(__mmask64 mask, const void* from) noexcept {
  return masked_load<std::uint8_t>(_mm512_setzero_si512(), mask, from);
}
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* from) noexcept {
  return masked_load<std::uint16_t>(_mm256_setzero_si256(), mask, from);
}
inline __m128i _mm_maskz_loadu_epi8(__mmask16 mask, const void* from) noexcept {
  return masked_load<std::uint8_t>(_mm_setzero_si128(), mask, from);
}
inline __m512 _mm512_mask_loadu_ps(__m512 otherwise, __mmask16 mask, const void* from) noexcept {
  return masked_load<float>(otherwise, mask, from);
}
inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* from) noexcept {
  return masked_load<float>(_mm512_setzero_ps(), mask, from);
}
inline void _mm512_mask_storeu_ps(void* to, __mmask16 mask, __m512 x) noexcept { masked_store<float>(to, mask, x); }
inline void _mm512_mask_storeu_epi16(void* to, __mmask32 mask, __m512i x) noexcept {
  masked_store<std::uint16_t>(to, mask, x);
}
inline void _mm256_mask_storeu_epi16(void* to, __mmask16 mask, __m256i x) noexcept {
  masked_store<std::uint16_t>(to, mask, x);
}
inline __m512 _mm512_mask_mov_ps(__m512 otherwise, __mmask16 mask, __m512 x) noexcept {
  return each<F32>([&](int i) { return (mask >> i & 1) != 0 ? x[i] : otherwise[i]; });
}
inline __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 x) noexcept {
  return _mm512_mask_mov_ps(_mm512_setzero_ps(), mask, x);
}
inline __m512i _mm512_maskz_mov_epi16(__mmask32 mask, __m512i x) noexcept {
  const U16 from(x);
  return each<U16>([&](int i) { return (mask >> i & 1) != 0 ? from.at[i] : std::uint16_t{0}; });
}

// ---- permuting

// Quarters of 128 bits: two of a, then two of b, chosen by two bits each.
inline __m512i _mm512_shuffle_i64x2(__m512i a, __m512i b, int which) noexcept {
  const I64 x(a), y(b);
  return each<I64>([&](int i) {
    const int quarter = which >> (i / 2 * 2) & 3;
    return (i < 4 ? x : y).at[2 * quarter + i % 2];
  });
}
inline __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int which) noexcept {
  return _mm512_shuffle_i64x2(a, b, which);
}
inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int which) noexcept {
  return _mm512_castsi512_ps(_mm512_shuffle_i64x2(_mm512_castps_si512(a), _mm512_castps_si512(b), which));
}
inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) noexcept {
  const I32 x(a), y(b);
  return each<I32>([&](int i) { return (i % 2 == 0 ? x : y).at[i / 4 * 4 + i % 4 / 2]; });
}
inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) noexcept {
  const I32 x(a), y(b);
  return each<I32>([&](int i) { return (i % 2 == 0 ? x : y).at[i / 4 * 4 + 2 + i % 4 / 2]; });
}
inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) noexcept {
  const I64 x(a), y(b);
  return each<I64>([&](int i) { return (i % 2 == 0 ? x : y).at[i / 2 * 2]; });
}
inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) noexcept {
  const I64 x(a), y(b);
  return each<I64>([&](int i) { return (i % 2 == 0 ? x : y).at[i / 2 * 2 + 1]; });
}
inline __m512i _mm512_permutexvar_epi32(__m512i index, __m512i a) noexcept {
  const I32 at(index), x(a);
  return each<I32>([&](int i) { return x.at[at.at[i] & 15]; });
}
inline __m512i _mm512_permutex2var_epi16(__m512i a, __m512i index, __m512i b) noexcept {
  const U16 x(a), at(index), y(b);
  return each<U16>([&](int i) { return ((at.at[i] & 32) != 0 ? y : x).at[at.at[i] & 31]; });
}
inline __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b) noexcept {
  const I32 at(index);
  return each<F32>([&](int i) { return ((at.at[i] & 16) != 0 ? b : a)[at.at[i] & 15]; });
}
inline __m512i _mm512_mask_shuffle_epi8(__m512i otherwise, __mmask64 mask, __m512i a, __m512i b) noexcept {
  const U8 old(otherwise), x(a), at(b);
  return each<U8>([&](int i) {
    if ((mask >> i & 1) == 0) return old.at[i];
    return (at.at[i] & 0x80) != 0 ? std::uint8_t{0} : x.at[i / 16 * 16 + (at.at[i] & 15)];
  });
}

// ---- integers

template <class L, class F>
inline L each_of(__m512i a, __m512i b, F f) noexcept {
  const L x(a), y(b);
  return each<L>([&](int i) { return f(x.at[i], y.at[i]); });
}
inline __m512i _mm512_and_si512(__m512i a, __m512i b) noexcept { return a & b; }
inline __m512i _mm512_or_si512(__m512i a, __m512i b) noexcept { return a | b; }
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) noexcept {
  return each_of<U32>(a, b, [](std::uint32_t x, std::uint32_t y) { return x + y; });
}
inline __m512i _mm512_sub_epi32(__m512i a, __m512i b) noexcept {
  return each_of<U32>(a, b, [](std::uint32_t x, std::uint32_t y) { return x - y; });
}
inline __m512i _mm512_add_epi16(__m512i a, __m512i b) noexcept {
  return each_of<U16>(a, b, [](std::uint16_t x, std::uint16_t y) { return static_cast<std::uint16_t>(x + y); });
}
inline __m512i _mm512_min_epi32(__m512i a, __m512i b) noexcept {
  return each_of<I32>(a, b, [](std::int32_t x, std::int32_t y) { return x < y ? x : y; });
}
inline __m512i _mm512_max_epi32(__m512i a, __m512i b) noexcept {
  return each_of<I32>(a, b, [](std::int32_t x, std::int32_t y) { return x > y ? x : y; });
}
inline __m512i _mm512_max_epu16(__m512i a, __m512i b) noexcept {
  return each_of<U16>(a, b, [](std::uint16_t x, std::uint16_t y) { return x > y ? x : y; });
}
inline __m512i _mm512_sllv_epi32(__m512i a, __m512i count) noexcept {
  return each_of<U32>(a, count, [](std::uint32_t x, std::uint32_t n) { return n > 31 ? 0 : x << n; });
}
inline __m512i _mm512_slli_epi32(__m512i a, unsigned count) noexcept {
  return _mm512_sllv_epi32(a, _mm512_set1_epi32(static_cast<int>(count)));
}
inline __m512i _mm512_srli_epi32(__m512i a, unsigned count) noexcept {
  const U32 x(a);
  return each<U32>([&](int i) { return count > 31 ? 0 : x.at[i] >> count; });
}
inline __mmask16 _mm512_cmpge_epi32_mask(__m512i a, __m512i b) noexcept {
  const I32 x(a), y(b);
  return mask_of<__mmask16>(16, [&](int i) { return x.at[i] >= y.at[i]; });
}
inline __mmask16 _mm512_cmplt_epi32_mask(__m512i a, __m512i b) noexcept {
  return static_cast<__mmask16>(~_mm512_cmpge_epi32_mask(a, b));
}
inline __mmask16 _mm512_cmpneq_epi32_mask(__m512i a, __m512i b) noexcept {
  const I32 x(a), y(b);
  return mask_of<__mmask16>(16, [&](int i) { return x.at[i] != y.at[i]; });
}
inline __mmask32 _mm512_cmpge_epu16_mask(__m512i a, __m512i b) noexcept {
  const U16 x(a), y(b);
  return mask_of<__mmask32>(32, [&](int i) { return x.at[i] >= y.at[i]; });
}
inline __mmask16 _mm512_test_epi32_mask(__m512i a, __m512i b) noexcept {
  return _mm512_cmpneq_epi32_mask(a & b, _mm512_setzero_si512());
}
inline __mmask16 _mm512_testn_epi32_mask(__m512i a, __m512i b) noexcept {
  return static_cast<__mmask16>(~_mm512_test_epi32_mask(a, b));
}
inline __mmask16 _mm_mask_test_epi8_mask(__mmask16 mask, __m128i a, __m128i b) noexcept {
  const Lanes<std::uint8_t, 16> x(a), y(b);
  return mask_of<__mmask16>(16, [&](int i) { return (mask >> i & 1) != 0 && (x.at[i] & y.at[i]) != 0; });
}

// ---- f32: AVX2 on the halves, whose rounding, flushing and treatment of NaN are those of AVX-512

inline __m512 _mm512_add_ps(__m512 a, __m512 b) noexcept {
  return halves_ps([](__m256 x, __m256 y) { return _mm256_add_ps(x, y); }, a, b);
}
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) noexcept {
  return halves_ps([](__m256 x, __m256 y) { return _mm256_sub_ps(x, y); }, a, b);
}
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) noexcept {
  return halves_ps([](__m256 x, __m256 y) { return _mm256_mul_ps(x, y); }, a, b);
}
inline __m512 _mm512_div_ps(__m512 a, __m512 b) noexcept {
  return halves_ps([](__m256 x, __m256 y) { return _mm256_div_ps(x, y); }, a, b);
}
inline __m512 _mm512_max_ps(__m512 a, __m512 b) noexcept {
  return halves_ps([](__m256 x, __m256 y) { return _mm256_max_ps(x, y); }, a, b);
}
inline __m512 _mm512_min_ps(__m512 a, __m512 b) noexcept {
  return halves_ps([](__m256 x, __m256 y) { return _mm256_min_ps(x, y); }, a, b);
}
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) noexcept {
  return halves_ps([](__m256 x, __m256 y, __m256 z) { return _mm256_fmadd_ps(x, y, z); }, a, b, c);
}
inline __m512 _mm512_fmsub_ps(__m512 a, __m512 b, __m512 c) noexcept {
  return halves_ps([](__m256 x, __m256 y, __m256 z) { return _mm256_fmsub_ps(x, y, z); }, a, b, c);
}
inline __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) noexcept {
  return halves_ps([](__m256 x, __m256 y, __m256 z) { return _mm256_fnmadd_ps(x, y, z); }, a, b, c);
}
inline __m512 _mm512_mask3_fmadd_ps(__m512 a, __m512 b, __m512 c, __mmask16 mask) noexcept {
  return _mm512_mask_mov_ps(c, mask, _mm512_fmadd_ps(a, b, c));
}
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) noexcept {
  return mask_of<__mmask16>(16, [&](int i) {
    const bool is_ordered = a[i] == a[i] && b[i] == b[i];
    switch (predicate) {
      case _CMP_EQ_OQ: return a[i] == b[i];
      case _CMP_NEQ_OQ: return is_ordered && a[i] != b[i];
      case _CMP_NEQ_UQ: return a[i] != b[i];
      case _CMP_GT_OQ: return a[i] > b[i];
      case _CMP_NLT_UQ: return !(a[i] < b[i]);
      case _CMP_ORD_Q: return is_ordered;
      case _CMP_UNORD_Q: return !is_ordered;
      default: __builtin_trap();
    }
  });
}
inline __mmask16 _mm512_mask_cmp_ps_mask(__mmask16 mask, __m512 a, __m512 b, int predicate) noexcept {
  return static_cast<__mmask16>(mask & _mm512_cmp_ps_mask(a, b, predicate));
}

// x without its integral part; only the form that rounds down, to an integer.
inline __m512 _mm512_reduce_ps(__m512 x, int form) noexcept {
  if (form != 1) __builtin_trap();
  return each<F32>([&](int i) { return std::isinf(x[i]) ? 0.f : x[i] - std::floor(x[i]); });
}
// a * 2^floor(b): of -inf 0 and of +inf infinity, whatever a is but their opposite.
inline __m512 _mm512_scalef_ps(__m512 a, __m512 b) noexcept {
  return each<F32>([&](int i) {
    const float x = a[i], power = b[i];
    if (std::isnan(power)) return power;
    if (std::isinf(power)) {
      if (power < 0) return std::isinf(x) ? std::nanf("") : std::isnan(x) ? 0.f : std::copysign(0.f, x);
      return x == 0 ? std::nanf("") : std::isnan(x) ? power : std::copysign(power, x);
    }
    const double clamped = std::fmin(std::fmax(std::floor(static_cast<double>(power)), -600.0), 600.0);
    return static_cast<float>(std::ldexp(static_cast<double>(x), static_cast<int>(clamped)));
  });
}
// 1 / x cut to 14 bits: the largest error that hardware may have, nearly.
inline __m512 _mm512_rcp14_ps(__m512 x) noexcept {
  const F32 exact(_mm512_div_ps(_mm512_set1_ps(1.f), x));
  const __m512 cut = _mm512_castsi512_ps(_mm512_castps_si512(exact) & _mm512_set1_epi32(~0x1ff));
  return each<F32>([&](int i) { return std::isfinite(exact.at[i]) ? cut[i] : exact.at[i]; });
}

// ---- conversions

inline __m512i _mm512_cvtepu16_epi32(__m256i x) noexcept {
  const Lanes<std::uint16_t, 32> from(x);
  return each<U32>([&](int i) { return std::uint32_t{from.at[i]}; });
}
inline __m512 _mm512_cvtepi32_ps(__m512i x) noexcept {
  const I32 from(x);
  return each<F32>([&](int i) { return static_cast<float>(from.at[i]); });
}
inline __m512 _mm512_cvtph_ps(__m256i x) noexcept {
  const __m256 parts[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
  __m512 to;
  std::memcpy(&to, parts, sizeof(to));
  return to;
}
inline __m256i _mm512_cvtps_ph(__m512 x, int rounding) noexcept {
  if (rounding != _MM_FROUND_TO_NEAREST_INT) __builtin_trap();
  __m256 parts[2];
  std::memcpy(parts, &x, sizeof(x));
  return _mm256_set_m128i(_mm256_cvtps_ph(parts[1], _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(parts[0], _MM_FROUND_TO_NEAREST_INT));
}
// To nearest even, denormals to zero, NaN made quiet, in every floating-point mode.
inline std::uint16_t bf16_of(std::uint32_t bits) noexcept {
  const std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  if (magnitude < 0x00800000) return static_cast<std::uint16_t>((bits & 0x80000000) >> 16);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline __m256bh _mm512_cvtneps_pbh(__m512 x) noexcept {
  const U32 from(_mm512_castps_si512(x));
  std::uint16_t to[16];
  for (int i = 0; i < 16; ++i) to[i] = bf16_of(from.at[i]);
  __m256bh packed;
  std::memcpy(&packed, to, sizeof(packed));
  return packed;
}
inline __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) noexcept {
  const __m256bh parts[2] = {_mm512_cvtneps_pbh(low), _mm512_cvtneps_pbh(high)};
  __m512bh packed;
  std::memcpy(&packed, parts, sizeof(packed));
  return packed;
}

// ---- what the kernels' own header adds

template <int kTile>
inline void tile_load(const void* from, std::int64_t stride_bytes) noexcept {
  emulation::tiles().load(kTile, from, stride_bytes);
}
template <int kTile>
inline void tile_store(void* to, std::int64_t stride_bytes) noexcept {
  emulation::tiles().store(kTile, to, stride_bytes);
}
template <int kTile>
inline void tile_zero() noexcept {
  emulation::tiles().zero(kTile);
}
template <int kAcc, int kA, int kB>
inline void tile_dot() noexcept {
  emulation::tiles().dot_bf16(kAcc, kA, kB);
}
template <class Config>
inline void tile_configure(const Config& config) noexcept {
  static_assert(sizeof(Config) == 64);
  emulation::tiles().configure(&config);
}
inline void tile_release() noexcept { emulation::tiles().release(); }

inline void compute_here(__m512&) noexcept {}
inline void keep_rounded(__m512&) noexcept {}  // compiled without contraction

}  // namespace
}  // namespace pagedkv::kernels::amx
