// The oracle: attention in f64, one key after another, for tests, benchmarks and debugging.
//
// Layer: attention. Same shapes, batches and views as attention.h; slow on purpose.
#pragma once

#include <cstdint>
#include <span>

#include "pagedkv/attention.h"
#include "pagedkv/export.h"
#include "pagedkv/result.h"
#include "pagedkv/types.h"

namespace pagedkv {

/// What of a (query, key) pair the oracle shows. A later stage includes the earlier ones.
enum class ScoreStage : std::uint8_t {
  kScaled = 0,         ///< sm_scale * q.k, of every key of the sequence.
  kCapped = 1,         ///< After logits_soft_cap.
  kLogits = 2,         ///< After ALiBi and masks: what the softmax sees; -inf where a key is invisible.
  kProbabilities = 3,  ///< After the softmax, sinks in its denominator; 0 where a key is invisible.
};

/// Scores of sequence i, [num_q_heads][q_len][kv_len], one sequence after another.
struct ReferenceScores {
  ScoreStage stage = ScoreStage::kProbabilities;
  std::span<double> values = {};  ///< Empty = not wanted.
};

/// Number of scores of a batch: the sum of num_q_heads * q_len * kv_len; 0 for a batch that `create` would refuse, the
/// largest size_t if they are more than that.
PAGEDKV_API std::size_t num_reference_scores(const AttentionConfig& config, const AttentionBatch& batch) noexcept;

/// Computes what AttentionPlan::run computes, in f64 from the same stored elements.
///
/// Shape:   q [rows][num_q_heads][head_dim] any dtype; out [rows][num_q_heads][v_head_dim];
///          lse [rows][num_q_heads] natural logarithm, or empty
/// Errors:  as AttentionPlan::create and run; `config.target` is not used
/// Cost:    O(rows * keys * dims) on one thread; allocates.
PAGEDKV_API Result<void> reference_attention(const AttentionConfig& config, const AttentionBatch& batch,
                                             const KvView& pages, ConstTensor q, std::span<double> out,
                                             std::span<double> lse = {}, ReferenceScores scores = {}) noexcept;

}  // namespace pagedkv
