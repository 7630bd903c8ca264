// ModelConfig: the shape and arithmetic of one Llama-style decoder, whichever file it came from.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace serving {

/// A file that does not hold what it claims. `what()` is one sentence that names the file and the fault.
struct LoadError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Which elements of a head RoPE rotates together.
enum class RopePairs : std::uint8_t {
  kInterleaved,  ///< (0,1), (2,3), ... as llama2.c checkpoints store Q and K.
  kHalves,       ///< (0,d/2), (1,d/2+1), ... as Hugging Face checkpoints do.
};

/// How RoPE frequencies are stretched for contexts longer than the pre-training's (Hugging Face `rope_scaling`).
struct RopeScaling {
  enum class Kind : std::uint8_t { kNone, kLinear, kLlama3 } kind = Kind::kNone;
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  double original_positions = 8192;  ///< Tokens.
};

struct ModelConfig {
  std::uint32_t dim = 0;         ///< Elements of a hidden row.
  std::uint32_t hidden_dim = 0;  ///< Elements of a feed-forward row.
  std::uint32_t num_layers = 0;
  std::uint32_t num_q_heads = 0;
  std::uint32_t num_kv_heads = 0;
  std::uint32_t head_dim = 0;
  std::uint32_t vocab_size = 0;
  std::uint32_t max_positions = 0;  ///< Tokens of prompt and output together.
  std::int32_t window_left = -1;    ///< Sliding window; -1 = none.
  float norm_eps = 1e-5F;
  double rope_theta = 10000;
  RopePairs rope_pairs = RopePairs::kHalves;
  RopeScaling rope_scaling = {};
  bool tied_classifier = true;  ///< The classifier is the embedding.

  [[nodiscard]] std::uint32_t q_dim() const noexcept { return num_q_heads * head_dim; }
  [[nodiscard]] std::uint32_t kv_dim() const noexcept { return num_kv_heads * head_dim; }
};

/// Throws LoadError, in the name of `origin`, unless every number is one that a real model could have. So no later
/// product of two of them overflows 64 bits, and no hostile file asks for absurd memory.
void check_config(const ModelConfig& config, const std::string& origin);

}  // namespace serving
