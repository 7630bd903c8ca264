// The f64 oracle of one query row: softmax attention as its definition says, one key after another.
//
// Layer: kernels. Every kernel is tested against it; reference_attention of pagedkv/reference.h calls it.
#pragma once

#include <cstdint>

#include "kernels/attend.h"
#include "pagedkv/reference.h"

namespace pagedkv::kernels {

/// One (query row, query head) and the keys that its sequence holds.
struct ReferenceRow {
  std::int64_t row = 0;  ///< Row of q.
  std::uint32_t q_head = 0;
  std::int64_t position = 0;
  const std::int32_t* page_table = nullptr;
  std::int64_t kv_len = 0;
  const std::byte* mask = nullptr;
  std::int64_t mask_offset = 0;  ///< Entry (bit) index of (row, head, key 0).
};

/// True if the row sees key `key`, by causality, window and mask.
bool is_visible(const AttendParams& params, const ReferenceRow& row, std::int64_t key) noexcept;

/// Writes the row's output [v_head_dim], its logarithm of the sum of exponentials, and its scores [kv_len] of `stage`.
///
/// `scores` is also the working memory: kv_len doubles, never null unless kv_len is 0.
void reference_row(const AttendParams& params, const ReferenceRow& row, ScoreStage stage, double* out, double* lse,
                   double* scores) noexcept;

}  // namespace pagedkv::kernels
