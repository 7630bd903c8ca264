// Seeded random weights: a model of any shape without a file, the same on every machine.
#include <cmath>

#include "model/tensor_source.h"

namespace serving {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): one multiplication-xor chain a draw, any counter as state.
std::uint64_t split_mix(std::uint64_t& state) {
  state += 0x9E3779B97F4A7C15ULL;
  std::uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

class RandomWeights final : public TensorSource {
 public:
  RandomWeights(const ModelConfig& config, std::uint64_t seed) : config_(config), seed_(seed) {
    check_config(config_, "random model");
  }

  [[nodiscard]] const ModelConfig& config() const override { return config_; }

  std::vector<float> read(TensorRole role, std::uint32_t layer) override {
    const TensorShape shape = shape_of(role, config_);
    std::vector<float> values(shape.num_elements());
    if (shape.rows == 1) {  // Norms begin at one, as in training.
      values.assign(values.size(), 1.0F);
      return values;
    }
    std::uint64_t state = seed_ * 0x100000001B3ULL + (static_cast<std::uint64_t>(role) << 32) + layer;
    // Uniform with variance 1/cols keeps the scale of a row through a layer; embeddings have variance 1, and queries
    // and keys are twice as large so that attention prefers some tokens to others.
    const bool sharp = role == TensorRole::kQuery || role == TensorRole::kKey;
    const double width = role == TensorRole::kEmbedding ? 1.0 : (sharp ? 2.0 : 1.0) / std::sqrt(double(shape.cols));
    for (float& value : values) {
      const double unit = static_cast<double>(split_mix(state) >> 11) * 0x1p-53;  // [0, 1)
      value = static_cast<float>((2 * unit - 1) * std::sqrt(3.0) * width);
    }
    return values;
  }

 private:
  ModelConfig config_;
  std::uint64_t seed_;
};

}  // namespace

std::unique_ptr<TensorSource> random_weights(const ModelConfig& config, std::uint64_t seed) {
  return std::make_unique<RandomWeights>(config, seed);
}

ModelConfig demo_config(std::uint32_t vocab_size, DemoSize size) {
  const bool is_large = size == DemoSize::kLarge;
  ModelConfig config;
  config.dim = is_large ? 1024 : 256;
  config.hidden_dim = is_large ? 2752 : 688;
  config.num_layers = is_large ? 8 : 4;
  config.num_q_heads = is_large ? 16 : 8;
  config.num_kv_heads = is_large ? 4 : 2;
  config.head_dim = is_large ? 64 : 32;
  config.vocab_size = vocab_size;
  config.max_positions = is_large ? 1024 : 8192;
  config.tied_classifier = false;
  return config;
}

}  // namespace serving
