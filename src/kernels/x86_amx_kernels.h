// The AMX kernels, as the kernel table sees them.
//
// Layer: kernels. An ordinary header without SIMD.
#pragma once

#include "kernels/attend.h"

namespace pagedkv::kernels::amx {

/// Most columns (query rows of the task x heads of the group) of the decode kernels: one tile.
inline constexpr std::int32_t kDecodeColumns = 16;

/// Decode over bf16 pages: few columns, limited by the read of K and V.
void attend_decode(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept;
std::size_t decode_scratch_bytes(const AttendParams& params) noexcept;

/// Decode over f16 pages at f32 precision: as few columns.
void attend_split_decode(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept;
std::size_t split_decode_scratch_bytes(const AttendParams& params) noexcept;

/// Prefill: any number of columns, limited by the matrix unit.
void attend_prefill(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept;
std::size_t prefill_scratch_bytes(const AttendParams& params) noexcept;

}  // namespace pagedkv::kernels::amx
