// TensorSource: where a decoder's weights come from. One tensor at a time, so that a checkpoint is never held twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/config.h"

namespace serving {

/// The tensors of a Llama-style decoder. Matrices are [out][in].
enum class TensorRole : std::uint8_t {
  kEmbedding,   ///< [vocab][dim]
  kAttnNorm,    ///< [dim]
  kQuery,       ///< [q_heads * head_dim][dim]
  kKey,         ///< [kv_heads * head_dim][dim]
  kValue,       ///< [kv_heads * head_dim][dim]
  kAttnOut,     ///< [dim][q_heads * head_dim]
  kFfnNorm,     ///< [dim]
  kGate,        ///< [hidden][dim], llama2.c's w1
  kDown,        ///< [dim][hidden], w2
  kUp,          ///< [hidden][dim], w3
  kFinalNorm,   ///< [dim]
  kClassifier,  ///< [vocab][dim]; not asked for if tied
};

struct TensorShape {
  std::uint64_t rows = 1, cols = 0;
  [[nodiscard]] std::uint64_t num_elements() const noexcept { return rows * cols; }
};

TensorShape shape_of(TensorRole role, const ModelConfig& config) noexcept;

class TensorSource {
 public:
  TensorSource() = default;
  TensorSource(const TensorSource&) = delete;
  TensorSource& operator=(const TensorSource&) = delete;
  virtual ~TensorSource() = default;

  [[nodiscard]] virtual const ModelConfig& config() const = 0;
  /// The elements in row-major order, as f32. `layer` counts for per-layer roles. Throws LoadError.
  virtual std::vector<float> read(TensorRole role, std::uint32_t layer) = 0;
};

/// A llama2.c "version 0" checkpoint (run.c's legacy export).
std::unique_ptr<TensorSource> open_llama2c(const std::string& path);
/// A folder with config.json and model.safetensors (or its index of shards), as Hugging Face Llama checkpoints are.
std::unique_ptr<TensorSource> open_safetensors(const std::string& folder);
/// Seeded random weights of the given shape: the same for the same seed everywhere.
std::unique_ptr<TensorSource> random_weights(const ModelConfig& config, std::uint64_t seed);
enum class DemoSize : std::uint8_t {
  kSmall,  ///< 3 million weights: answers at once.
  kLarge,  ///< 88 million weights: like a real model, a step is as slow as memory delivers them.
};
/// The shape of the model that runs when no file is given.
ModelConfig demo_config(std::uint32_t vocab_size, DemoSize size);

/// A folder opens as safetensors, a file as llama2.c.
std::unique_ptr<TensorSource> open_checkpoint(const std::string& path);

}  // namespace serving
