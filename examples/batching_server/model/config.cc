// Checks a model's shape, and says how large each tensor of it is.
#include "model/config.h"

#include <cmath>

#include "model/tensor_source.h"

namespace serving {
namespace {

// Larger than any published decoder, and small enough that products of three stay far below 2^63.
constexpr std::uint32_t kMaxDim = 1U << 18;
constexpr std::uint32_t kMaxLayers = 4096;
constexpr std::uint32_t kMaxVocab = 1U << 21;
constexpr std::uint32_t kMaxPositions = 1U << 30;

void require(bool holds, const std::string& origin, const char* fault) {
  if (!holds) throw LoadError(origin + ": " + fault);
}

}  // namespace

void check_config(const ModelConfig& c, const std::string& origin) {
  const auto within = [](std::uint32_t value, std::uint32_t most) { return value >= 1 && value <= most; };
  require(within(c.dim, kMaxDim), origin, "the hidden size is zero or absurd");
  require(within(c.hidden_dim, kMaxDim * 4), origin, "the feed-forward size is zero or absurd");
  require(within(c.num_layers, kMaxLayers), origin, "the number of layers is zero or absurd");
  require(within(c.num_q_heads, 4096), origin, "the number of heads is zero or absurd");
  require(within(c.num_kv_heads, c.num_q_heads) && c.num_q_heads % c.num_kv_heads == 0, origin,
          "the number of query heads is not a multiple of the number of key/value heads");
  require(within(c.head_dim, 1024) && c.head_dim % 2 == 0, origin, "the head size is not an even number of 2..1024");
  require(within(c.vocab_size, kMaxVocab), origin, "the vocabulary size is zero or absurd");
  require(within(c.max_positions, kMaxPositions), origin, "the context length is zero or absurd");
  require(std::isfinite(c.norm_eps) && c.norm_eps >= 0, origin, "the norm's epsilon is not a finite number");
  require(std::isfinite(c.rope_theta) && c.rope_theta > 0, origin, "the RoPE base is not a positive number");
  const RopeScaling& s = c.rope_scaling;
  require(std::isfinite(s.factor) && s.factor > 0 && s.low_freq_factor > 0 && s.high_freq_factor > s.low_freq_factor &&
              s.original_positions > 0,
          origin, "the RoPE scaling is out of range");
}

TensorShape shape_of(TensorRole role, const ModelConfig& c) noexcept {
  switch (role) {
    case TensorRole::kEmbedding:
    case TensorRole::kClassifier: return {c.vocab_size, c.dim};
    case TensorRole::kAttnNorm:
    case TensorRole::kFfnNorm:
    case TensorRole::kFinalNorm: return {1, c.dim};
    case TensorRole::kQuery: return {c.q_dim(), c.dim};
    case TensorRole::kKey:
    case TensorRole::kValue: return {c.kv_dim(), c.dim};
    case TensorRole::kAttnOut: return {c.dim, c.q_dim()};
    case TensorRole::kGate:
    case TensorRole::kUp: return {c.hidden_dim, c.dim};
    case TensorRole::kDown: return {c.dim, c.hidden_dim};
  }
  return {};
}

}  // namespace serving
