// RMSNorm (arXiv:1910.07467), rotary embeddings (arXiv:2104.09864), SwiGLU (arXiv:2002.05202).
#include "model/decoder_math.h"

#include <cmath>
#include <numbers>

namespace serving {

void rms_norm(std::span<const float> x, std::span<const float> weight, float epsilon, std::span<float> out) noexcept {
  double sum = 0;  // In double: the sum of thousands of squares is the only long accumulation of a row.
  for (float value : x) sum += static_cast<double>(value) * value;
  const auto scale = static_cast<float>(1 / std::sqrt(sum / static_cast<double>(x.size()) + epsilon));
  for (std::size_t i = 0; i < x.size(); ++i) out[i] = weight[i] * (x[i] * scale);
}

void apply_rope(std::span<float> heads, std::span<const float> cos, std::span<const float> sin,
                RopePairs pairs) noexcept {
  const std::size_t half = cos.size();
  const bool interleaved = pairs == RopePairs::kInterleaved;
  for (std::size_t head = 0; head < heads.size(); head += 2 * half) {
    for (std::size_t i = 0; i < half; ++i) {
      float& a = heads[head + (interleaved ? 2 * i : i)];
      float& b = heads[head + (interleaved ? 2 * i + 1 : i + half)];
      const float turned = a * cos[i] - b * sin[i];
      b = a * sin[i] + b * cos[i];
      a = turned;
    }
  }
}

void swiglu(std::span<const float> gate_up, std::span<float> out) noexcept {
  for (std::size_t i = 0; i < out.size(); ++i) {
    const float gate = gate_up[i];
    out[i] = gate / (1.0F + std::exp(-gate)) * gate_up[out.size() + i];
  }
}

double rope_frequency(const ModelConfig& config, std::uint32_t i) noexcept {
  const RopeScaling& scaling = config.rope_scaling;
  const double plain = std::pow(config.rope_theta, -2.0 * i / config.head_dim);
  if (scaling.kind == RopeScaling::Kind::kNone) return plain;
  if (scaling.kind == RopeScaling::Kind::kLinear) return plain / scaling.factor;
  // Llama 3.1: long wavelengths are stretched, short ones kept, those between blended.
  const double turns = scaling.original_positions * plain / (2 * std::numbers::pi);  // In the original context.
  if (turns < scaling.low_freq_factor) return plain / scaling.factor;
  if (turns > scaling.high_freq_factor) return plain;
  const double blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - blend) * plain / scaling.factor + blend * plain;
}

}  // namespace serving
