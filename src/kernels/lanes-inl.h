// Four vectors at a time: interleaved, and folded to the sum or the largest of the lanes of each. Compiled once a
// target.
//
// Layer: kernels.
#include "format/codec-inl.h"
#include "hwy/highway.h"

#if defined(PAGEDKV_KERNELS_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_KERNELS_LANES_INL_H_
#undef PAGEDKV_KERNELS_LANES_INL_H_
#else
#define PAGEDKV_KERNELS_LANES_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using format::HWY_NAMESPACE::F32;
using format::HWY_NAMESPACE::U32;
using format::HWY_NAMESPACE::VecF32;
using format::HWY_NAMESPACE::VecU32;

using Quad = hn::CappedTag<float, 4>;  // one lane on the scalar target
using VecQuad = hn::Vec<Quad>;

struct Add {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Add(a, b);
  }
};

struct Max {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Max(a, b);
  }
};

#if HWY_TARGET != HWY_SCALAR
HWY_INLINE VecU32 interleave_low(VecU32 a, VecU32 b) {
  const hn::Repartition<std::uint64_t, U32> d64;
  return hn::BitCast(U32(), hn::InterleaveLower(hn::BitCast(d64, a), hn::BitCast(d64, b)));
}
HWY_INLINE VecU32 interleave_high(VecU32 a, VecU32 b) {
  const hn::Repartition<std::uint64_t, U32> d64;
  return hn::BitCast(U32(), hn::InterleaveUpper(d64, hn::BitCast(d64, a), hn::BitCast(d64, b)));
}

template <class Op>
HWY_INLINE VecQuad fold_halves(VecQuad folded, Op) {
  return folded;
}
template <class V, class Op>
HWY_INLINE VecQuad fold_halves(V folded, Op op) {
  const hn::Half<hn::DFromV<V>> d_half;
  return fold_halves(op(hn::LowerHalf(d_half, folded), hn::UpperHalf(d_half, folded)), op);
}

// Within the 128-bit blocks of four vectors: lane i of a block is this block of vector i, folded.
template <class Op>
HWY_INLINE VecF32 fold_blocks(VecF32 a, VecF32 b, VecF32 c, VecF32 d, Op op) {
  const F32 f32;
  const auto fold = [&](VecF32 x, VecF32 y) HWY_ATTR {
    return hn::BitCast(U32(), op(hn::InterleaveLower(f32, x, y), hn::InterleaveUpper(f32, x, y)));
  };
  const VecU32 ab = fold(a, b), cd = fold(c, d);
  return op(hn::BitCast(f32, interleave_low(ab, cd)), hn::BitCast(f32, interleave_high(ab, cd)));
}

// Lane i is the sum, or the largest, of the lanes of vector i.
template <class Op>
HWY_INLINE VecQuad fold_lanes(VecF32 a, VecF32 b, VecF32 c, VecF32 d, Op op) {
  return fold_halves(fold_blocks(a, b, c, d, op), op);
}
#else
template <class Op>
HWY_INLINE VecQuad fold_lanes(VecF32 a, VecF32, VecF32, VecF32, Op) {
  return a;
}
#endif
}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_KERNELS_LANES_INL_H_
