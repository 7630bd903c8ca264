// The f64 oracle of one query row.
#include "kernels/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "format/convert.h"

namespace pagedkv::kernels {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

const std::byte* kv_row(const AttendParams& params, const ReferenceRow& row, std::int64_t key, bool values) noexcept {
  const KvView& view = params.pages;
  const std::int64_t page = row.page_table[key / params.page_size], slot = key % params.page_size;
  const std::int64_t head = row.q_head / params.group;
  const std::int64_t offset = values
                                  ? page * view.v_page_stride + head * view.v_head_stride + slot * view.v_token_stride
                                  : page * view.k_page_stride + head * view.k_head_stride + slot * view.k_token_stride;
  return static_cast<const std::byte*>(values ? view.v : view.k) + offset;
}

double scaled_score(const AttendParams& params, const ReferenceRow& row, std::int64_t key) noexcept {
  const std::size_t dim = params.head_dim;
  const std::size_t q_index = (static_cast<std::size_t>(row.row) * params.num_q_heads + row.q_head) * dim;
  const std::byte* const k = kv_row(params, row, key, false);
  double dot = 0;
  for (std::size_t d = 0; d < dim; ++d) {
    dot += static_cast<double>(format::load_element(params.q, q_index + d, params.q_dtype)) *
           static_cast<double>(format::load_element(k, d, params.kv_dtype));
  }
  return dot * static_cast<double>(params.sm_scale);
}

double mask_bias(const AttendParams& params, const ReferenceRow& row, std::int64_t key) noexcept {
  if (params.mask_kind != MaskKind::kAdditive) return 0;
  float entry = 0;
  std::memcpy(&entry, row.mask + static_cast<std::size_t>(row.mask_offset + key) * sizeof(float), sizeof(float));
  return static_cast<double>(entry);
}

double capped_score(const AttendParams& params, double score) noexcept {
  const double cap = static_cast<double>(params.logits_soft_cap);
  return cap > 0 ? cap * std::tanh(score / cap) : score;
}

double logit(const AttendParams& params, const ReferenceRow& row, std::int64_t key, double score) noexcept {
  if (!is_visible(params, row, key)) return kMinusInfinity;
  double value = capped_score(params, score);
  if (params.alibi_slopes != nullptr) {
    value += static_cast<double>(params.alibi_slopes[row.q_head]) * static_cast<double>(key - row.position);
  }
  return value + mask_bias(params, row, key);
}

}  // namespace

bool is_visible(const AttendParams& params, const ReferenceRow& row, std::int64_t key) noexcept {
  if (params.causal && key > row.position) return false;
  const bool is_sink = key < std::int64_t{params.sink_tokens};
  if (params.window_left >= 0 && key < row.position - params.window_left && !is_sink) return false;
  const std::int64_t entry = row.mask_offset + key;
  switch (params.mask_kind) {
    case MaskKind::kNone: return true;
    case MaskKind::kBool: return row.mask[entry] != std::byte{0};
    case MaskKind::kAdditive: return mask_bias(params, row, key) != kMinusInfinity;
    case MaskKind::kBits: return (row.mask[entry / 8] >> (entry % 8) & std::byte{1}) != std::byte{0};
  }
  return false;
}

void reference_row(const AttendParams& params, const ReferenceRow& row, ScoreStage stage, double* out, double* lse,
                   double* scores) noexcept {
  const std::size_t v_dim = params.v_head_dim;
  std::fill_n(out, v_dim, 0.0);
  const bool has_sink = params.sinks != nullptr;
  const double sink = has_sink ? static_cast<double>(params.sinks[row.q_head]) : kMinusInfinity;
  double largest = sink;
  for (std::int64_t key = 0; key < row.kv_len; ++key) {
    scores[key] = scaled_score(params, row, key);
    largest = std::max(largest, logit(params, row, key, scores[key]));
  }
  double sum = largest == kMinusInfinity ? 0 : std::exp(sink - largest);
  for (std::int64_t key = 0; key < row.kv_len; ++key) {
    const double value = logit(params, row, key, scores[key]);
    const double weight = value == kMinusInfinity ? 0 : std::exp(value - largest);
    if (stage == ScoreStage::kCapped) scores[key] = capped_score(params, scores[key]);
    if (stage == ScoreStage::kLogits) scores[key] = value;
    if (stage == ScoreStage::kProbabilities) scores[key] = weight;
    if (value == kMinusInfinity) continue;  // an invisible row is not even read
    sum += weight;
    const std::byte* const v = kv_row(params, row, key, true);
    for (std::size_t d = 0; d < v_dim; ++d) {
      out[d] += weight * static_cast<double>(format::load_element(v, d, params.kv_dtype));
    }
  }
  *lse = sum != 0 ? largest + std::log(sum) : kMinusInfinity;
  if (sum == 0) return;
  for (std::size_t d = 0; d < v_dim; ++d) out[d] /= sum;
  if (stage == ScoreStage::kProbabilities) {
    for (std::int64_t key = 0; key < row.kv_len; ++key) scores[key] /= sum;
  }
}

}  // namespace pagedkv::kernels
