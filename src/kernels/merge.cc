// Merging attention states, two at a time, from the first keys to the last.
#include "kernels/merge.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pagedkv::kernels {

void merge_row(float* out_a, float* lse_a, const float* out_b, float lse_b, std::size_t dim) noexcept {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  if (lse_b == kMinusInfinity) return;
  if (*lse_a == kMinusInfinity) {
    std::copy_n(out_b, dim, out_a);
    *lse_a = lse_b;
    return;
  }
  const float largest = std::max(*lse_a, lse_b);
  const float sum_a = std::exp(*lse_a - largest), sum_b = std::exp(lse_b - largest), sum = sum_a + sum_b;
  const float weight_a = sum_a / sum, weight_b = sum_b / sum;
  for (std::size_t i = 0; i < dim; ++i) out_a[i] = out_a[i] * weight_a + out_b[i] * weight_b;
  *lse_a = largest + std::log(sum);
}

void merge_rows(float* out_a, float* lse_a, const float* out_b, const float* lse_b, std::size_t count,
                std::size_t dim) noexcept {
  for (std::size_t i = 0; i < count; ++i) merge_row(out_a + i * dim, lse_a + i, out_b + i * dim, lse_b[i], dim);
}

void store_rows(const AttendParams& params, WriteRowFn write_row, std::uint32_t kv_head, std::int64_t first_row,
                std::int32_t num_rows, const float* out, const float* lse) noexcept {
  const std::size_t count = std::size_t{params.group} * params.v_head_dim, element = size_of(params.out_dtype);
  for (std::int32_t row = 0; row < num_rows; ++row) {
    const std::size_t head =
        static_cast<std::size_t>(first_row + row) * params.num_q_heads + std::size_t{kv_head} * params.group;
    write_row(static_cast<std::byte*>(params.out) + head * params.v_head_dim * element, params.out_dtype,
              out + static_cast<std::size_t>(row) * count, DType::f32, count, false);
    if (params.lse == nullptr) continue;
    std::copy_n(lse + static_cast<std::size_t>(row) * params.group, params.group, params.lse + head);
  }
}

}  // namespace pagedkv::kernels
