// Vector pieces shared by the AMX kernels: exp2, tanh, transposes, conversions, mask rows.
//
// Layer: kernels, only for the x86_amx_*.cc files (see x86_amx_instructions.h for the compile region).
#pragma once

#include "kernels/x86_amx_tile.h"

#if defined(__x86_64__)
#include <cstring>

#include "pagedkv/attention.h"
#include "pagedkv/types.h"

PAGEDKV_AMX_BEGIN
namespace pagedkv::kernels::amx {
namespace {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

/// Logit of a key that a row does not see. Maxima stay finite, and vscalefps makes 2^-inf exactly 0 whatever became of
/// the mantissa (even NaN), so that the exponentials below need no care for it.
inline constexpr float kHiddenLogit = -__builtin_inff();
/// Lowest logit of a visible key.
inline constexpr float kLowestLogit = -__FLT_MAX__;

/// Infinity without its sign, shifted left by one: NaN are above, all other values below.
PAGEDKV_AMX_INLINE __m512i infinity_bits(DType dtype) noexcept {
  return _mm512_set1_epi16(static_cast<std::int16_t>(dtype == DType::f16 ? 0xf800 : 0xff00));
}

/// 2^x. Relative error 1e-7 plus rounding; 0 below -150.
PAGEDKV_AMX_INLINE __m512 exp2_exact(__m512 x) noexcept {
  const __m512 f = _mm512_reduce_ps(x, 1);  // x - floor(x)
  __m512 p = _mm512_set1_ps(0.0018775767376700371f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.008989340023543868f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.05582631811626192f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24015361702111784f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6931530732026271f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.9999999250635878f));
  return _mm512_scalef_ps(p, x);
}

/// 2^x with relative error 7.5e-5, a twentieth of the rounding of the weights to bf16 that follows it.
PAGEDKV_AMX_INLINE __m512 exp2_fast(__m512 x) noexcept {
  const __m512 f = _mm512_reduce_ps(x, 1);
  __m512 p = _mm512_set1_ps(0.07802452268953328f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.2260671553970887f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6958335404792924f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.9999252185659143f));
  return _mm512_scalef_ps(p, x);
}

/// The same with floor by additions, which run on port 5 while AMX occupies it least: the two forms alternate in
/// prefill.
PAGEDKV_AMX_INLINE __m512 exp2_fast_by_adds(__m512 x) noexcept {
  const __m512 magic = _mm512_set1_ps(12582912.f);  // 1.5 * 2^23: the sum is rounded to an integer
  const __m512 n = _mm512_sub_ps(_mm512_add_ps(x, magic), magic);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.05517166909261008f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24261112222375328f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6932609854542462f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.9999280735351597f));
  return _mm512_scalef_ps(p, n);
}

/// cap * tanh(y) for x = 2 log2(e) y, as cap - 2 cap / (2^x + 1); absolute error 2e-6 before `cap`.
PAGEDKV_AMX_INLINE __m512 soft_cap(__m512 x, __m512 cap, __m512 twice_cap) noexcept {
  x = _mm512_min_ps(_mm512_set1_ps(57.f), x);  // in this order NaN stays NaN
  const __m512 f = _mm512_reduce_ps(x, 1);
  __m512 p = _mm512_set1_ps(0.013670309453351237f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.05174499776411068f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24160435727008434f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6929729221730518f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000034929076982f));
  const __m512 d = _mm512_add_ps(_mm512_scalef_ps(p, x), _mm512_set1_ps(1.f));
  __m512 r = _mm512_rcp14_ps(d);  // one Newton step: 14 bits to 24
  r = _mm512_mul_ps(r, _mm512_fnmadd_ps(d, r, _mm512_set1_ps(2.f)));
  return _mm512_fnmadd_ps(r, twice_cap, cap);
}

/// The same with an absolute error of 2e-7 before `cap`.
PAGEDKV_AMX_INLINE __m512 soft_cap_exact(__m512 x, __m512 cap, __m512 twice_cap) noexcept {
  x = _mm512_min_ps(_mm512_set1_ps(57.f), x);  // in this order NaN stays NaN
  return _mm512_sub_ps(cap, _mm512_div_ps(twice_cap, _mm512_add_ps(exp2_exact(x), _mm512_set1_ps(1.f))));
}

/// In place: row i of 16 x 16 dwords becomes column i.
PAGEDKV_AMX_INLINE void transpose16(__m512i* r) noexcept {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

/// r [16 tokens][kColumns] in kColumns vectors becomes [kColumns][16 tokens].
template <int kColumns>
PAGEDKV_AMX_INLINE void transpose_tokens(__m512i* r) noexcept {
  static_assert(kColumns == 4 || kColumns == 8 || kColumns == 16);
  if constexpr (kColumns == 4) {
    const __m512i by_column = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int i = 0; i < 4; ++i) r[i] = _mm512_permutexvar_epi32(by_column, r[i]);
    const __m512i a = _mm512_shuffle_i64x2(r[0], r[1], 0x44), b = _mm512_shuffle_i64x2(r[0], r[1], 0xee);
    const __m512i c = _mm512_shuffle_i64x2(r[2], r[3], 0x44), d = _mm512_shuffle_i64x2(r[2], r[3], 0xee);
    r[0] = _mm512_shuffle_i64x2(a, c, 0x88);
    r[1] = _mm512_shuffle_i64x2(a, c, 0xdd);
    r[2] = _mm512_shuffle_i64x2(b, d, 0x88);
    r[3] = _mm512_shuffle_i64x2(b, d, 0xdd);
  } else if constexpr (kColumns == 8) {  // 16 x 16, rows 2i and 2i + 1 in one vector
    __m512i t[16];
    for (int i = 0; i < 8; ++i) t[2 * i] = r[i], t[2 * i + 1] = _mm512_shuffle_i64x2(r[i], r[i], 0xee);
    transpose16(t);
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  } else {
    transpose16(r);
  }
}

/// Sixteen f32 to bf16, each in the lower half of a dword.
PAGEDKV_AMX_INLINE __m512i round_to_bf16(__m512 x) noexcept {
  const __m256bh packed = _mm512_cvtneps_pbh(x);
  __m256i bits;
  std::memcpy(&bits, &packed, sizeof(bits));
  return _mm512_cvtepu16_epi32(bits);
}

/// Two vectors of f32 to bf16 (round to nearest even): `low` in elements 0..15, `high` in 16..31.
PAGEDKV_AMX_INLINE __m512i to_bf16(__m512 low, __m512 high) noexcept {
  const __m512bh packed = _mm512_cvtne2ps_pbh(high, low);
  __m512i bits;
  std::memcpy(&bits, &packed, sizeof(bits));
  return bits;
}

/// What a bf16 that is cut off, not rounded, leaves of x; 0 of an infinity or a NaN. Cut off again and again, bf16
/// pieces sum up to x exactly: two to an f16, three to an f32.
PAGEDKV_AMX_INLINE __m512 beyond_bf16(__m512 x) noexcept {
  const __m512 cut = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(~0xffff)));
  const __m512 rest = _mm512_sub_ps(x, cut);
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(rest, rest, _CMP_ORD_Q), rest);
}

/// The same of a finite x.
PAGEDKV_AMX_INLINE __m512 beyond_finite_bf16(__m512 x) noexcept {
  const __m512i cut = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(~0xffff));
  return _mm512_sub_ps(x, _mm512_castsi512_ps(cut));
}

/// Two vectors of f32 to pairs of bf16, cut off: `even` in elements 0, 2, .., `odd` in 1, 3, ... One operation, on the
/// port that AMX leaves free.
PAGEDKV_AMX_INLINE __m512i cut_to_bf16_pairs(__m512 even, __m512 odd) noexcept {
  const __m512i upper =
      _mm512_set4_epi32(static_cast<int>(0x80800f0eu), static_cast<int>(0x80800b0au), static_cast<int>(0x80800706u),
                        static_cast<int>(0x80800302u));  // bytes 2 and 3 of each dword to 0 and 1
  return _mm512_mask_shuffle_epi8(_mm512_castps_si512(odd), 0x3333333333333333, _mm512_castps_si512(even), upper);
}

/// Two vectors of f32 to bf16, cut off: `low` in elements 0..15, `high` in 16..31.
PAGEDKV_AMX_INLINE __m512i cut_to_bf16(__m512 low, __m512 high) noexcept {
  const __m512i upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                                         23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_epi16(_mm512_castps_si512(low), upper, _mm512_castps_si512(high));
}

/// The mask of the first `count` lanes, count clamped to 0..16 (or 0..32).
PAGEDKV_AMX_INLINE __mmask16 first_lanes16(std::int64_t count) noexcept {
  return count >= 16 ? __mmask16{0xffff} : count <= 0 ? __mmask16{0} : static_cast<__mmask16>((1u << count) - 1);
}
PAGEDKV_AMX_INLINE __mmask32 first_lanes32(std::int64_t count) noexcept {
  return count >= 32  ? ~__mmask32{0}
         : count <= 0 ? __mmask32{0}
                      : static_cast<__mmask32>((std::uint64_t{1} << count) - 1);
}

/// 16 elements of a row in any dtype, as f32; lanes outside `lanes` are 0 and not read. NaN are quiet: the upper half
/// of a signalling one may be that of an infinity.
PAGEDKV_AMX_INLINE __m512 load_floats(const std::byte* from, DType dtype, __mmask16 lanes) noexcept {
  if (dtype == DType::f32) {
    const __m512 x = _mm512_maskz_loadu_ps(lanes, from);
    const __m512i quiet = _mm512_or_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x00400000));
    return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_castsi512_ps(quiet));
  }
  const __m256i half = _mm256_maskz_loadu_epi16(lanes, from);
  if (dtype == DType::f16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/// Writes 16 f32 as elements of any dtype, rounded to nearest even; lanes outside `lanes` are not written.
PAGEDKV_AMX_INLINE void store_floats(std::byte* to, DType dtype, __mmask16 lanes, __m512 x) noexcept {
  if (dtype == DType::f32) {
    _mm512_mask_storeu_ps(to, lanes, x);
  } else if (dtype == DType::f16) {
    _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  } else {
    _mm256_mask_storeu_epi16(to, lanes, _mm512_castsi512_si256(to_bf16(x, x)));
  }
}

/// True if no element of a row of `dim` bf16 or f16 is an infinity or a NaN.
PAGEDKV_AMX_INLINE bool is_finite_row(const std::byte* row, DType dtype, std::int64_t dim) noexcept {
  __mmask32 exceptions = 0;
  for (std::int64_t d = 0; d < dim; d += 32) {
    const __m512i elements = _mm512_maskz_loadu_epi16(first_lanes32(dim - d), row + 2 * d);
    exceptions |= _mm512_cmpge_epu16_mask(_mm512_add_epi16(elements, elements), infinity_bits(dtype));
  }
  return exceptions == 0;
}

/// Sixteen entries of a mask of bytes or bits from `entry` on as bits, 1 = visible. Reads `count` entries (1..16) and
/// no byte beyond them; the rest is 0.
[[maybe_unused]] __mmask16 visible_entries(MaskKind kind, const std::byte* mask, std::int64_t entry,
                                           int count) noexcept {
  const __mmask16 lanes = first_lanes16(count);
  if (kind == MaskKind::kBool) {
    return _mm_mask_test_epi8_mask(lanes, _mm_maskz_loadu_epi8(lanes, mask + entry), _mm_set1_epi8(-1));
  }
  const std::int64_t shift = entry & 7;
  const auto bytes = static_cast<__mmask16>((1u << ((shift + count + 7) >> 3)) - 1);  // a copy of as many is a call
  const auto bits = static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_maskz_loadu_epi8(bytes, mask + (entry >> 3))));
  return static_cast<__mmask16>((bits >> shift) & lanes);
}

/// Sixteen entries of an explicit mask as logits (natural units): 0, a bias, or kHiddenLogit. Reads `count` entries;
/// the rest is kHiddenLogit.
[[maybe_unused]] __m512 mask_logits(MaskKind kind, const std::byte* mask, std::int64_t entry, int count) noexcept {
  const __m512 hidden = _mm512_set1_ps(kHiddenLogit);
  if (kind == MaskKind::kAdditive) return _mm512_mask_loadu_ps(hidden, first_lanes16(count), mask + entry * 4);
  return _mm512_mask_mov_ps(hidden, visible_entries(kind, mask, entry, count), _mm512_setzero_ps());
}

/// Base-2 logits under a mask in natural units: keys that it hides are replaced, since their scores may be NaN; the
/// others stay finite.
PAGEDKV_AMX_INLINE __m512 add_mask(__m512 logits, __m512 mask) noexcept {
  const __m512 hidden = _mm512_set1_ps(kHiddenLogit);
  const __m512 sum = _mm512_fmadd_ps(mask, _mm512_set1_ps(kLog2E), logits);
  const __m512 raised = _mm512_max_ps(_mm512_set1_ps(kLowestLogit), sum);  // in this order NaN stays NaN
  return _mm512_mask_mov_ps(raised, _mm512_cmp_ps_mask(mask, hidden, _CMP_EQ_OQ), hidden);
}

}  // namespace
}  // namespace pagedkv::kernels::amx
PAGEDKV_AMX_END
#endif  // __x86_64__
