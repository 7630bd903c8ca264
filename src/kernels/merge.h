// Merging attention states: outputs over disjoint keys, weighted by their sums of exponentials.
//
// Layer: kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attend.h"
#include "kernels/write.h"

namespace pagedkv::kernels {

/// Merges state b of one row into state a. out [dim], lse natural logarithm; an empty state has lse = -inf.
void merge_row(float* out_a, float* lse_a, const float* out_b, float lse_b, std::size_t dim) noexcept;

/// Merges `count` states of the next keys into states of the keys before. out [count][dim], lse [count].
void merge_rows(float* out_a, float* lse_a, const float* out_b, const float* lse_b, std::size_t count,
                std::size_t dim) noexcept;

/// Writes states of one kv head, out [num_rows][group][v_head_dim] and lse [num_rows][group], to the rows of params.out
/// and params.lse.
void store_rows(const AttendParams& params, WriteRowFn write_row, std::uint32_t kv_head, std::int64_t first_row,
                std::int32_t num_rows, const float* out, const float* lse) noexcept;

}  // namespace pagedkv::kernels
