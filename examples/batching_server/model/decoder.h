// Decoder: the Llama-style transformer around a pagedkv::Step. It computes everything but attention and the KV cache.
#pragma once

#include <pagedkv/kv_cache.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/linear.h"
#include "model/tensor_source.h"

namespace serving {

/// Threads: one `forward` at a time; parallel inside, in the caller's tbb::task_arena.
class Decoder {
 public:
  /// Reads every tensor once and packs it. Throws LoadError.
  Decoder(TensorSource& source, WeightType weights);

  [[nodiscard]] const ModelConfig& config() const noexcept { return config_; }
  /// What a KvCache must know of this model.
  [[nodiscard]] pagedkv::ModelShape kv_shape(pagedkv::DType kv_dtype) const noexcept;

  /// Feeds the new tokens of a step's items, in the order of its rows, and computes the logits of some of them.
  ///
  /// Shape:  tokens, positions [step.num_rows()]; logit_rows: row indices; logits [logit_rows.size()][vocab]
  /// Result: bitwise the same for a sequence whatever else is in the step, and however its prompt was cut in chunks
  ///         (f32 weights and K/V; with 16-bit ones too, since rounding acts on each element alone).
  /// Errors: those of Step::write and Step::attend.
  pagedkv::Result<void> forward(pagedkv::Step& step, std::span<const pagedkv::Token> tokens,
                                std::span<const std::uint32_t> positions, std::span<const std::uint32_t> logit_rows,
                                std::vector<float>& logits);

 private:
  struct Layer {
    std::vector<float> attn_norm, ffn_norm;  // [dim]
    Linear query, key, value, attn_out;
    Linear gate_up;  // [2 * hidden][dim]: the gate's rows, then those of up.
    Linear down;
  };

  Layer load_layer(TensorSource& source, std::uint32_t layer, WeightType weights);
  void embed(std::span<const pagedkv::Token> tokens);
  void tabulate_rope(std::span<const std::uint32_t> positions);
  pagedkv::Result<void> attention_block(pagedkv::Step& step, std::uint32_t layer, std::size_t rows);
  void feed_forward_block(const Layer& layer, std::size_t rows);

  ModelConfig config_;
  std::vector<float> embedding_;   // [vocab][dim]
  std::vector<float> final_norm_;  // [dim]
  std::vector<double> inv_freq_;   // [head_dim / 2]
  std::vector<Layer> layers_;
  std::unique_ptr<Linear> classifier_;

  // Activations of one step, [padded_rows(rows)][...]; they grow to the largest step and stay.
  std::vector<float> hidden_, normed_, query_, key_, value_, attended_, projected_, gate_up_, activated_;
  std::vector<float> rope_cos_, rope_sin_;  // [rows][head_dim / 2]
};

}  // namespace serving
