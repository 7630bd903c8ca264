// Which kernel computes a task: the choice by target, shape and phase, made once a plan.
//
// Layer: kernels. Every target has generic kernels (one Highway body); the target "amx" puts hand-written ones before
// them, shape by shape.
#pragma once

#include <cstdint>

#include "cpu/targets.h"
#include "kernels/attend.h"

namespace pagedkv::kernels {

/// The kernel for sequences that bring `q_len` query rows in this step.
///
/// The choice depends on the layer (`params` without its pointers), the target and `q_len` of the sequence alone, never
/// on the rest of the batch. Never null: every shape has a generic kernel on every target.
const AttendKernel* select_attend(cpu::Target target, const AttendParams& params, std::int64_t q_len) noexcept;

/// A hand-written AMX kernel for this layer and `q_len`, or null if the shape has none. Called only where AMX runs.
const AttendKernel* find_amx_attend(const AttendParams& params, std::int64_t q_len) noexcept;

/// The generic kernel of a target for that group; "amx" has those of AVX-512. Rows a task fall as the group grows.
const AttendKernel* generic_attend(cpu::Target target, std::uint32_t group) noexcept;

using ScratchFn = std::size_t (*)(const AttendParams& params, std::int32_t max_rows) noexcept;

}  // namespace pagedkv::kernels
