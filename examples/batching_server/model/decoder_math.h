// The row-wise arithmetic of a Llama layer: RMSNorm, RoPE, SwiGLU. One row at a time, so a row never sees its batch.
#pragma once

#include <cstddef>
#include <span>

#include "model/config.h"

namespace serving {

/// out = x / rms(x) * weight.
void rms_norm(std::span<const float> x, std::span<const float> weight, float epsilon, std::span<float> out) noexcept;

/// Rotates each head of one row. Shape: heads [num_heads][head_dim], cos and sin [head_dim / 2].
void apply_rope(std::span<float> heads, std::span<const float> cos, std::span<const float> sin,
                RopePairs pairs) noexcept;

/// out = silu(gate) * up. Shape: gate_up [2 * out.size()], the gate first.
void swiglu(std::span<const float> gate_up, std::span<float> out) noexcept;

/// The angle by which one position turns pair `i` of a head, scaling applied.
double rope_frequency(const ModelConfig& config, std::uint32_t i) noexcept;

}  // namespace serving
