// Merging attention states, two at a time, from the first keys to the last.
#include "kernels/merge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "format/convert.h"

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

void merge_parts(const AttendParams& params, std::uint32_t kv_head, std::int64_t first_row, std::int32_t num_rows,
                 std::int32_t num_parts, std::size_t part_rows, float* out, float* lse) noexcept {
  const std::size_t dim = params.v_head_dim;
  for (std::int32_t row = 0; row < num_rows; ++row) {
    for (std::uint32_t g = 0; g < params.group; ++g) {
      const std::size_t at = static_cast<std::size_t>(row) * params.group + g;
      float* const row_out = out + at * dim;
      for (std::int32_t part = 1; part < num_parts; ++part) {
        const std::size_t other = static_cast<std::size_t>(part) * part_rows + at;
        merge_row(row_out, lse + at, out + other * dim, lse[other], dim);
      }
      const std::size_t index =
          static_cast<std::size_t>(first_row + row) * params.num_q_heads + std::size_t{kv_head} * params.group + g;
      for (std::size_t i = 0; i < dim; ++i)
        format::store_element(params.out, index * dim + i, params.out_dtype, row_out[i]);
      if (params.lse != nullptr) params.lse[index] = lse[at];
    }
  }
}

}  // namespace pagedkv::kernels
