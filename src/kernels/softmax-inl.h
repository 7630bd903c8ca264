// The softmax between the products: exponentials, soft caps, and its step over the scores of some rows. Compiled once a
// target.
//
// Layer: kernels. A row's arithmetic does not depend on the rows beside it.
#include <limits>

#include "format/codec-inl.h"
#include "hwy/highway.h"
#include "kernels/block.h"
#include "kernels/lanes-inl.h"
#include "kernels/tile-inl.h"

#if defined(PAGEDKV_KERNELS_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_KERNELS_SOFTMAX_INL_H_
#undef PAGEDKV_KERNELS_SOFTMAX_INL_H_
#else
#define PAGEDKV_KERNELS_SOFTMAX_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using format::HWY_NAMESPACE::F32;
using format::HWY_NAMESPACE::VecF32;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// e^x for x <= 0 within 2 ulp; 0 below e^-87; NaN of any payload stays NaN. Of degree 6, fitted for the smallest
// relative error over the rest of the division by ln 2: 3e-9, within 0.9 ulp as rounded here.
template <class D>
HWY_INLINE hn::Vec<D> exp_not_positive(D d, hn::Vec<D> x) {
  const hn::RebindToSigned<D> di;
  const auto magic = hn::Set(d, 12583039.0F);  // 1.5 * 2^23 + 127: its sum with n ends with the exponent bits of 2^n
  const auto shifted = hn::MulAdd(x, hn::Set(d, 1.44269504089F), magic);
  const auto n = hn::Sub(shifted, magic);
  auto r = hn::NegMulAdd(n, hn::Set(d, 0.693359375F), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4F), r);
  auto p = hn::MulAdd(hn::Set(d, 1.38145406e-3F), r, hn::Set(d, 8.36874545e-3F));
  p = hn::MulAdd(p, r, hn::Set(d, 4.16683890e-2F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.66665211e-1F));
  p = hn::MulAdd(p, r, hn::Set(d, 4.99999940e-1F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F));
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.0F)), hn::Mul(p, power));
}

// tanh within 4 ulp: odd rational approximation of degree 13 / 6 (as in Eigen), saturated from 7.9 on.
HWY_INLINE VecF32 tanh_f32(VecF32 value) {
  const F32 d;
  const VecF32 limit = hn::Set(d, 7.90531110763549805F);
  const VecF32 x = hn::IfThenElse(hn::Gt(hn::Abs(value), limit), hn::CopySign(limit, value), value);
  const VecF32 x2 = hn::Mul(x, x);
  VecF32 p = hn::MulAdd(x2, hn::Set(d, -2.76076847742355e-16F), hn::Set(d, 2.00018790482477e-13F));
  p = hn::MulAdd(p, x2, hn::Set(d, -8.60467152213735e-11F));
  p = hn::MulAdd(p, x2, hn::Set(d, 5.12229709037114e-08F));
  p = hn::MulAdd(p, x2, hn::Set(d, 1.48572235717979e-05F));
  p = hn::MulAdd(p, x2, hn::Set(d, 6.37261928875436e-04F));
  p = hn::MulAdd(p, x2, hn::Set(d, 4.89352455891786e-03F));
  VecF32 q = hn::MulAdd(x2, hn::Set(d, 1.19825839466702e-06F), hn::Set(d, 1.18534705686654e-04F));
  q = hn::MulAdd(q, x2, hn::Set(d, 2.26843463243900e-03F));
  q = hn::MulAdd(q, x2, hn::Set(d, 4.89352518554385e-03F));
  return hn::Div(hn::Mul(x, p), q);
}

// Rows that go through the softmax side by side: the lanes of a Quad.
constexpr std::size_t kSoftmaxRows = hn::MaxLanes(Quad());

// The softmax of some query rows so far: what each row has at [row].
struct SoftmaxRows {
  float* largest;  // largest logit so far
  float* sum;      // sum of e^(logit - largest)
  float* decay;    // what the step at hand multiplies earlier sums by
};

// One step of the online softmax: scores [kRows][num_vectors] of a block [kRows][kBlockKeys] become weights
// e^(score - largest), in place. The arrays of `state` have room for kSoftmaxRows rows; those behind kRows stay as they
// are. Inlined, so that the number of vectors of a whole block is a constant.
template <std::size_t kRows>
HWY_INLINE void weigh_rows(float* HWY_RESTRICT scores, std::size_t num_vectors, SoftmaxRows state) {
  static_assert(kRows <= kSoftmaxRows);
  const F32 d;
  const Quad quad;
  VecF32 of_row[kRows];  // the largest in each lane, then the sum of each
  const auto fold = [&](auto op) HWY_ATTR {
    return fold_lanes(of_row[0], of_row[kRows > 1 ? 1 : 0], of_row[kRows > 2 ? 2 : 0], of_row[kRows > 3 ? 3 : 0], op);
  };
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) {
    const float* const from = scores + r * kBlockKeys;
    of_row[r] = hn::LoadU(d, from);
    for (std::size_t v = 1; v < num_vectors; ++v) of_row[r] = hn::Max(of_row[r], hn::LoadU(d, from + v * kLanes));
  }
  const VecQuad before = hn::LoadU(quad, state.largest);
  const VecQuad largest = hn::Max(before, fold(Max()));
  // Nothing visible yet: weights are 0, not NaN.
  const VecQuad shift = hn::IfThenZeroElse(hn::Eq(largest, hn::Set(quad, kMinusInfinity)), largest);
  const VecQuad decay = exp_not_positive(quad, hn::Sub(before, shift));
  float shifts[kSoftmaxRows];
  hn::StoreU(shift, quad, shifts);
  PAGEDKV_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) {
    float* const at = scores + r * kBlockKeys;
    of_row[r] = hn::Zero(d);
    for (std::size_t v = 0; v < num_vectors; ++v) {
      const VecF32 weight = exp_not_positive(d, hn::Sub(hn::LoadU(d, at + v * kLanes), hn::Set(d, shifts[r])));
      of_row[r] = hn::Add(of_row[r], weight);
      hn::StoreU(weight, d, at + v * kLanes);
    }
  }
  const auto store = [&](VecQuad value, float* to) HWY_ATTR {
    if constexpr (kRows < kSoftmaxRows) value = hn::IfThenElse(hn::FirstN(quad, kRows), value, hn::LoadU(quad, to));
    hn::StoreU(value, quad, to);
  };
  store(largest, state.largest);
  store(hn::MulAdd(hn::LoadU(quad, state.sum), decay, fold(Add())), state.sum);
  store(decay, state.decay);
}

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_KERNELS_SOFTMAX_INL_H_
