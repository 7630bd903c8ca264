// What the machine can do at best: a contiguous read of memory, and the arithmetic peak of a unit.
//
// Both run in the caller's tbb::task_arena, beside the kernel that is compared with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "pagedkv/types.h"

namespace pagedkv::tool {

/// Reads every 64-byte line of `memory` once, in order, with the widest vectors of this CPU, on all threads of the
/// arena. The result depends on every byte, so that nothing can be left out.
std::uint64_t read_contiguous(std::span<const std::byte> memory);

/// The units whose peak can be measured.
enum class PeakUnit : std::uint8_t { kAmxBf16, kDot512, kFma512, kFma256, kMulAdd128 };

const char* to_string(PeakUnit unit) noexcept;

/// The unit that does the matrix work of a kernel target: AMX for 16-bit pages on "amx", products of bf16 pairs for
/// bf16 pages on "avx512_bf16", else fp32 FMA of its width.
PeakUnit peak_unit_of(std::string_view target, DType kv_dtype) noexcept;

/// Multiplies and adds at full rate for about a millisecond, on random data in registers, on all threads of the arena.
/// Result: floating-point operations done. Requires: this CPU has the unit.
double run_peak(PeakUnit unit, int num_threads);

}  // namespace pagedkv::tool
