// Merging attention states: outputs over disjoint keys, weighted by their sums of exponentials.
//
// Layer: kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attend.h"

namespace pagedkv::kernels {

/// Merges state b of one row into state a. out [dim], lse natural logarithm; an empty state has lse = -inf.
void merge_row(float* out_a, float* lse_a, const float* out_b, float lse_b, std::size_t dim) noexcept;

/// Merges the parts of one (sequence, kv head) in order into the rows of params.out and params.lse.
///
/// Shape: part p at out + p * part_rows * v_head_dim and lse + p * part_rows, each [num_rows][group]; part 0 is
///        overwritten.
void merge_parts(const AttendParams& params, std::uint32_t kv_head, std::int64_t first_row, std::int32_t num_rows,
                 std::int32_t num_parts, std::size_t part_rows, float* out, float* lse) noexcept;

}  // namespace pagedkv::kernels
