// The forward pass: norm, Q/K/V, RoPE, write, attend, output projection, norm, feed-forward; a layer at a time.
#include "model/decoder.h"

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include <algorithm>
#include <cmath>

#include "model/decoder_math.h"

namespace serving {
namespace {

constexpr std::size_t kRowsPerTask = 16;  // Row-wise arithmetic is short; fewer rows would cost more to hand out.

template <class F>
void for_each_row(std::size_t rows, const F& body) {
  if (rows <= kRowsPerTask) {
    for (std::size_t row = 0; row < rows; ++row) body(row);
    return;
  }
  tbb::parallel_for(tbb::blocked_range<std::size_t>(0, rows, kRowsPerTask), [&](const auto& range) {
    for (std::size_t row = range.begin(); row < range.end(); ++row) body(row);
  });
}

// Row `row` of a matrix with rows of `dim` elements.
std::span<float> row_of(std::vector<float>& matrix, std::size_t row, std::size_t dim) {
  return std::span(matrix).subspan(row * dim, dim);
}

void grow(std::vector<float>& buffer, std::size_t elements) {
  if (buffer.size() < elements) buffer.resize(elements);
}

Linear load_linear(TensorSource& source, TensorRole role, std::uint32_t layer, WeightType weights) {
  const TensorShape shape = shape_of(role, source.config());
  return {source.read(role, layer), shape.rows, shape.cols, weights};
}

}  // namespace

Decoder::Decoder(TensorSource& source, WeightType weights) : config_(source.config()) {
  check_config(config_, "model");
  embedding_ = source.read(TensorRole::kEmbedding, 0);
  const TensorShape shape = shape_of(TensorRole::kClassifier, config_);
  classifier_ =
      std::make_unique<Linear>(config_.tied_classifier ? Linear(embedding_, shape.rows, shape.cols, weights)
                                                       : load_linear(source, TensorRole::kClassifier, 0, weights));
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    layers_.push_back(load_layer(source, layer, weights));
  }
  final_norm_ = source.read(TensorRole::kFinalNorm, 0);
  for (std::uint32_t i = 0; i < config_.head_dim / 2; ++i) inv_freq_.push_back(rope_frequency(config_, i));
}

Decoder::Layer Decoder::load_layer(TensorSource& source, std::uint32_t layer, WeightType weights) {
  std::vector<float> gate_up = source.read(TensorRole::kGate, layer);
  const std::vector<float> up = source.read(TensorRole::kUp, layer);
  gate_up.insert(gate_up.end(), up.begin(), up.end());
  return {.attn_norm = source.read(TensorRole::kAttnNorm, layer),
          .ffn_norm = source.read(TensorRole::kFfnNorm, layer),
          .query = load_linear(source, TensorRole::kQuery, layer, weights),
          .key = load_linear(source, TensorRole::kKey, layer, weights),
          .value = load_linear(source, TensorRole::kValue, layer, weights),
          .attn_out = load_linear(source, TensorRole::kAttnOut, layer, weights),
          .gate_up = Linear(gate_up, std::size_t{2} * config_.hidden_dim, config_.dim, weights),
          .down = load_linear(source, TensorRole::kDown, layer, weights)};
}

pagedkv::ModelShape Decoder::kv_shape(pagedkv::DType kv_dtype) const noexcept {
  return {.num_layers = config_.num_layers,
          .num_q_heads = config_.num_q_heads,
          .num_kv_heads = config_.num_kv_heads,
          .head_dim = config_.head_dim,
          .dtype = kv_dtype};
}

pagedkv::Result<void> Decoder::forward(pagedkv::Step& step, std::span<const pagedkv::Token> tokens,
                                       std::span<const std::uint32_t> positions,
                                       std::span<const std::uint32_t> logit_rows, std::vector<float>& logits) {
  const std::size_t rows = tokens.size();
  embed(tokens);
  tabulate_rope(positions);
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    if (auto done = attention_block(step, layer, rows); !done) return done;
    feed_forward_block(layers_[layer], rows);
  }
  // Only rows that somebody samples from pay for the classifier.
  const std::size_t dim = config_.dim;
  grow(normed_, padded_rows(logit_rows.size()) * dim);
  for_each_row(logit_rows.size(), [&](std::size_t i) {
    rms_norm(row_of(hidden_, logit_rows[i], dim), final_norm_, config_.norm_eps, row_of(normed_, i, dim));
  });
  logits.resize(padded_rows(logit_rows.size()) * config_.vocab_size);
  if (!logit_rows.empty()) classifier_->multiply(normed_.data(), logit_rows.size(), logits.data());
  return {};
}

void Decoder::embed(std::span<const pagedkv::Token> tokens) {
  const std::size_t dim = config_.dim;
  const std::size_t padded = padded_rows(tokens.size());
  for (std::vector<float>* buffer : {&hidden_, &normed_, &projected_}) grow(*buffer, padded * dim);
  for (std::vector<float>* buffer : {&query_, &attended_}) grow(*buffer, padded * config_.q_dim());
  for (std::vector<float>* buffer : {&key_, &value_}) grow(*buffer, padded * config_.kv_dim());
  grow(gate_up_, padded * 2 * config_.hidden_dim);
  grow(activated_, padded * config_.hidden_dim);
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    const auto source = std::span(embedding_).subspan(static_cast<std::size_t>(tokens[row]) * dim, dim);
    std::ranges::copy(source, row_of(hidden_, row, dim).begin());
  }
}

void Decoder::tabulate_rope(std::span<const std::uint32_t> positions) {
  const std::size_t half = inv_freq_.size();
  grow(rope_cos_, positions.size() * half);
  grow(rope_sin_, positions.size() * half);
  for_each_row(positions.size(), [&](std::size_t row) {
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = positions[row] * inv_freq_[i];
      rope_cos_[row * half + i] = static_cast<float>(std::cos(angle));
      rope_sin_[row * half + i] = static_cast<float>(std::sin(angle));
    }
  });
}

pagedkv::Result<void> Decoder::attention_block(pagedkv::Step& step, std::uint32_t layer_index, std::size_t rows) {
  const Layer& layer = layers_[layer_index];
  const std::size_t dim = config_.dim, q_dim = config_.q_dim(), kv_dim = config_.kv_dim();
  for_each_row(rows, [&](std::size_t row) {
    rms_norm(row_of(hidden_, row, dim), layer.attn_norm, config_.norm_eps, row_of(normed_, row, dim));
  });
  layer.query.multiply(normed_.data(), rows, query_.data());
  layer.key.multiply(normed_.data(), rows, key_.data());
  layer.value.multiply(normed_.data(), rows, value_.data());
  for_each_row(rows, [&](std::size_t row) {
    const std::size_t half = inv_freq_.size();
    const auto cos = row_of(rope_cos_, row, half);
    const auto sin = row_of(rope_sin_, row, half);
    apply_rope(row_of(query_, row, q_dim), cos, sin, config_.rope_pairs);
    apply_rope(row_of(key_, row, kv_dim), cos, sin, config_.rope_pairs);
  });

  // The library's part: K and V into pages, then causal attention of each row over its own sequence's pages.
  const std::span<const float> key(key_.data(), rows * kv_dim), value(value_.data(), rows * kv_dim);
  if (auto written = step.write(layer_index, key, value); !written) return written;
  const std::span<const float> query(query_.data(), rows * q_dim);
  const std::span<float> attended(attended_.data(), rows * q_dim);
  if (auto done = step.attend(layer_index, query, attended); !done) return done;

  layer.attn_out.multiply(attended_.data(), rows, projected_.data());
  for_each_row(rows, [&](std::size_t row) {
    for (std::size_t i = row * dim; i < (row + 1) * dim; ++i) hidden_[i] += projected_[i];
  });
  return {};
}

void Decoder::feed_forward_block(const Layer& layer, std::size_t rows) {
  const std::size_t dim = config_.dim, hidden_dim = config_.hidden_dim;
  for_each_row(rows, [&](std::size_t row) {
    rms_norm(row_of(hidden_, row, dim), layer.ffn_norm, config_.norm_eps, row_of(normed_, row, dim));
  });
  layer.gate_up.multiply(normed_.data(), rows, gate_up_.data());
  for_each_row(rows, [&](std::size_t row) {
    swiglu(row_of(gate_up_, row, 2 * hidden_dim), row_of(activated_, row, hidden_dim));
  });
  layer.down.multiply(activated_.data(), rows, projected_.data());
  for_each_row(rows, [&](std::size_t row) {
    for (std::size_t i = row * dim; i < (row + 1) * dim; ++i) hidden_[i] += projected_[i];
  });
}

}  // namespace serving
