// The AMX kernels for bf16 pages, as the kernel table sees them.
//
// Layer: kernels. An ordinary header without SIMD.
#pragma once

#include "kernels/attend.h"

namespace pagedkv::kernels::amx {

/// Most columns (query rows of the task x heads of the group) of the decode kernel: one tile.
inline constexpr std::int32_t kDecodeColumns = 16;

/// Decode: few columns, limited by the read of K and V.
void attend_decode(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept;
std::size_t decode_scratch_bytes(const AttendParams& params) noexcept;

/// Prefill: any number of columns, limited by the matrix unit.
void attend_prefill(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept;
std::size_t prefill_scratch_bytes(const AttendParams& params) noexcept;

}  // namespace pagedkv::kernels::amx
