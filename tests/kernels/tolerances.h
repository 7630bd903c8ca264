// How far a kernel may be from the f64 oracle: bounds derived from the roundings of its arithmetic.
//
// Derivation (docs/NUMERICS.md): roundings are taken as independent, so a sum of n of them grows as sqrt(n)
// (arXiv:1910.10383), and lambda = 6 standard deviations bound it. An error e of the logits changes a softmax weight by
// the factor 1 + e, and an output, being a weighted mean of V, by at most 2 e max|v|.
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>

#include "pagedkv/types.h"

namespace pagedkv::testing {

inline constexpr double kLambda = 6;
inline constexpr double kRound32 = 0x1p-24, kRound16 = 0x1p-11, kRoundBf16 = 0x1p-8;  // unit roundoffs

/// What an arithmetic rounds besides f32 sums.
struct Arithmetic {
  double q = 0;    ///< Unit roundoff of queries inside the kernel; 0 if they stay f32.
  double p = 0;    ///< Of softmax weights.
  double kv = 0;   ///< Of K and V inside the kernel; 0 if they are as stored.
  double cap = 0;  ///< Absolute error of a capped logit that grows with the cap, not with the logit.
};

/// True if a target multiplies bf16, and f16 too where it may.
inline bool multiplies_bf16(std::string_view target) { return target == "amx" || target == "avx512_bf16"; }

/// Sizes of the numbers that meet.
struct Magnitudes {
  double q_norm = 0, k_norm = 0;           ///< Largest Euclidean norms of rows.
  double q_max = 0, k_max = 0, v_max = 0;  ///< Largest absolute elements.
  double sm_scale = 0;
  double largest_bias = 0;  ///< Largest |ALiBi or additive mask| on a visible logit.
  double dim = 0, keys = 0;
};

/// Bound on the absolute error of a logit, and so of lse.
inline double logit_bound(const Arithmetic& a, const Magnitudes& m) {
  const double sums = kRound32 * std::sqrt(m.dim + 8) * m.q_norm * m.k_norm;
  const double queries = a.q / std::sqrt(3.0) * m.q_max * m.k_norm;
  const double keys = a.kv / std::sqrt(3.0) * m.k_max * m.q_norm;
  const double biases = 4 * kRound32 * (m.largest_bias + m.q_norm * m.k_norm * std::fabs(m.sm_scale));
  return kLambda * std::fabs(m.sm_scale) * (sums + queries + keys) + biases + a.cap;
}

inline double lse_bound(const Arithmetic& a, const Magnitudes& m) {
  const double value = m.q_norm * m.k_norm * std::fabs(m.sm_scale) + m.largest_bias + std::log(m.keys + 2);
  return logit_bound(a, m) + kLambda * kRound32 * (8 + value) + a.p;
}

/// Bound on the absolute error of an output element stored as `out`.
inline double output_bound(const Arithmetic& a, const Magnitudes& m, DType out) {
  const double store = out == DType::f32 ? kRound32 : out == DType::f16 ? kRound16 : kRoundBf16;
  // Sums over keys: 64 in a block, then blocks, then parts; exponentials within 2 ulp.
  const double sums = kLambda * kRound32 * (8 + std::sqrt(64.0) + std::sqrt(m.keys / 64 + 1));
  return m.v_max * (2 * logit_bound(a, m) + sums + kLambda * a.p + a.kv + store);
}

}  // namespace pagedkv::testing
