// How vectors of f32 come out of stored elements and go back: one codec a format, compiled once a target.
//
// Layer: format. A codec has `Stored`, `kPerUnit` (elements in 32 bits), `load` (as many elements as a vector has
// lanes), `split` (element `half` of each 32-bit unit), `load_part` (one of two vectors that hold twice as many
// elements, in the order `kParts`) and `kInfinity` (its bits). All are exact. `store` rounds to nearest even.
#include <cstdint>

#include "format/convert.h"
#include "hwy/highway.h"
#include "pagedkv/types.h"

#if defined(PAGEDKV_FORMAT_CODEC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_FORMAT_CODEC_INL_H_
#undef PAGEDKV_FORMAT_CODEC_INL_H_
#else
#define PAGEDKV_FORMAT_CODEC_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::format::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::ScalableTag<std::uint32_t>;
using VecF32 = hn::Vec<F32>;
using VecU32 = hn::Vec<U32>;

// Which elements the two vectors of `load_part` hold: those before and those behind, the even and the odd ones, or the
// low and the high halves of 128-bit blocks of stored elements.
enum class Parts { kInOrder, kEvenOdd, kHalvesOfBlocks };

struct CodecF32 {
  using Stored = float;
  static constexpr std::int32_t kInfinity = 0x7f800000;
  static constexpr std::size_t kPerUnit = 1;
  static constexpr Parts kParts = Parts::kInOrder;

  static HWY_INLINE VecF32 load(const Stored* from) { return hn::LoadU(F32(), from); }
  static HWY_INLINE void store(VecF32 value, Stored* to) { hn::StoreU(value, F32(), to); }
  static Stored from_f32(float value) noexcept { return value; }
  template <int kHalf>
  static HWY_INLINE VecF32 split(VecU32 units) {
    return hn::BitCast(F32(), units);
  }
  template <int kPart>
  static HWY_INLINE VecF32 load_part(const Stored* from) {
    return load(from + kPart * hn::MaxLanes(F32()));
  }
};

struct CodecBf16 {
  using Stored = bf16_t;
  static constexpr std::int16_t kInfinity = 0x7f80;
  static constexpr std::size_t kPerUnit = 2;
  // Half the instructions of `load`. Halves of blocks take shuffles alone, which AVX2 has a port for beside those of
  // FMA; AVX-512 has not.
  static constexpr Parts kParts = HWY_TARGET == HWY_AVX2 ? Parts::kHalvesOfBlocks : Parts::kEvenOdd;

  static HWY_INLINE VecF32 load(const Stored* from) {
    const hn::Rebind<std::uint16_t, F32> d16;
    const auto bits = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from));
    return hn::BitCast(F32(), hn::ShiftLeft<16>(hn::PromoteTo(U32(), bits)));
  }
  static HWY_INLINE void store(VecF32 value, Stored* to) {
    const hn::Rebind<std::uint16_t, F32> d16;
    const VecU32 bits = hn::BitCast(U32(), value), odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(U32(), 1));
    const VecU32 rounded = hn::Add(bits, hn::Add(odd, hn::Set(U32(), 0x7FFF)));
    const VecU32 quiet = hn::Or(bits, hn::Set(U32(), 0x400000));  // a NaN's payload must not be rounded away
    const VecU32 upper = hn::IfThenElse(hn::RebindMask(U32(), hn::IsNaN(value)), quiet, rounded);
    const auto shifted = hn::BitCast(hn::RebindToSigned<U32>(), hn::ShiftRight<16>(upper));
    hn::StoreU(hn::DemoteTo(d16, shifted), d16, reinterpret_cast<std::uint16_t*>(to));
  }
  static Stored from_f32(float value) noexcept { return to_bf16(value); }
  template <int kHalf>
  static HWY_INLINE VecF32 split(VecU32 units) {
    if constexpr (kHalf == 0) return hn::BitCast(F32(), hn::ShiftLeft<16>(units));
    return hn::BitCast(F32(), hn::And(units, hn::Set(U32(), 0xFFFF0000U)));
  }
  template <int kPart>
  static HWY_INLINE VecF32 load_part(const Stored* from) {
#if HWY_TARGET == HWY_AVX2
    const hn::Repartition<std::uint16_t, F32> d16;
    const auto bits = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from)), zero = hn::Zero(d16);
    if constexpr (kPart == 0) return hn::BitCast(F32(), hn::InterleaveLower(d16, zero, bits));
    return hn::BitCast(F32(), hn::InterleaveUpper(d16, zero, bits));
#else
    return split<kPart>(hn::LoadU(U32(), reinterpret_cast<const std::uint32_t*>(from)));
#endif
  }
};

struct CodecF16 {
  using Stored = f16_t;
  static constexpr std::int16_t kInfinity = 0x7c00;
  static constexpr std::size_t kPerUnit = 2;
  static constexpr Parts kParts = Parts::kInOrder;

  static HWY_INLINE VecF32 load(const Stored* from) {
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SCALAR  // no instruction, and Highway's substitute knows no infinities
    const hn::Rebind<std::uint16_t, F32> d16;
    return split<0>(hn::PromoteTo(U32(), hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from))));
#else
    const hn::Rebind<hwy::float16_t, F32> d16;
    return hn::PromoteTo(F32(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
#endif
  }
  static HWY_INLINE void store(VecF32 value, Stored* to) {
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SCALAR  // likewise
    HWY_ALIGN float elements[hn::MaxLanes(F32())];
    hn::Store(value, F32(), elements);
    for (std::size_t i = 0; i < hn::MaxLanes(F32()); ++i) to[i] = to_f16(elements[i]);
#else
    const hn::Rebind<hwy::float16_t, F32> d16;
    hn::StoreU(hn::DemoteTo(d16, value), d16, reinterpret_cast<hwy::float16_t*>(to));
#endif
  }
  static Stored from_f32(float value) noexcept { return to_f16(value); }
  template <int kHalf>
  static HWY_INLINE VecF32 split(VecU32 units) {
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SCALAR  // likewise
    const VecU32 low = kHalf == 0 ? hn::And(units, hn::Set(U32(), 0xFFFFU)) : hn::ShiftRight<16>(units);
    // Bits to the exponent's place; 2^112 makes up for the bias and normalises subnormals. Infinities and NaN keep a
    // saturated exponent.
    const VecU32 sign = hn::ShiftLeft<16>(hn::And(low, hn::Set(U32(), 0x8000U)));
    const VecU32 magnitude = hn::ShiftLeft<13>(hn::And(low, hn::Set(U32(), 0x7FFFU)));
    const VecU32 scaled = hn::BitCast(U32(), hn::Mul(hn::BitCast(F32(), magnitude), hn::Set(F32(), 0x1p112F)));
    const auto is_special = hn::Gt(hn::BitCast(hn::ScalableTag<std::int32_t>(), magnitude),
                                   hn::Set(hn::ScalableTag<std::int32_t>(), 0x0F7FFFFF));
    const VecU32 special = hn::Or(scaled, hn::Set(U32(), 0x7F800000U));
    const VecU32 value = hn::IfThenElse(hn::RebindMask(U32(), is_special), special, scaled);
    return hn::BitCast(F32(), hn::Or(value, sign));
#else
    const auto half = hn::TruncateTo(hn::Rebind<std::uint16_t, F32>(), kHalf == 0 ? units : hn::ShiftRight<16>(units));
    return hn::PromoteTo(F32(), hn::BitCast(hn::Rebind<hwy::float16_t, F32>(), half));
#endif
  }
  template <int kPart>
  static HWY_INLINE VecF32 load_part(const Stored* from) {
    return load(from + kPart * hn::MaxLanes(F32()));
  }
};

// Calls use(codec) with the codec of a format.
template <class Use>
HWY_INLINE void with_codec(DType dtype, const Use& use) {
  if (dtype == DType::f32) return use(CodecF32());
  if (dtype == DType::f16) return use(CodecF16());
  use(CodecBf16());
}

// `count` elements of one format as another.
template <class From, class To>
void convert_elements(const typename From::Stored* from, std::size_t count, typename To::Stored* to) {
  constexpr std::size_t lanes = hn::MaxLanes(F32());
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) To::store(From::load(from + i), to + i);
  for (; i < count; ++i) to[i] = To::from_f32(to_f32(from[i]));
}

}  // namespace pagedkv::format::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_FORMAT_CODEC_INL_H_
