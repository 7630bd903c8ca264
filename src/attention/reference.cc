// The public oracle: the f64 row of the kernels room over a whole checked batch.
#include "pagedkv/reference.h"

#include <algorithm>
#include <limits>
#include <new>
#include <vector>

#include "attention/batch.h"
#include "core/align.h"
#include "kernels/reference.h"

namespace pagedkv {
namespace {

struct ReferenceRun {
  kernels::AttendParams params;
  const AttentionBatch& batch;
  std::span<double> out, lse;
  ReferenceScores scores;
  std::vector<double> logits = {};  // [kv_len] of the sequence at hand
  std::size_t scores_done = 0;

  void sequence(const attention::SequenceView& view) {
    logits.assign(static_cast<std::size_t>(view.kv_len), 0.0);
    for (std::uint32_t head = 0; head < params.num_q_heads; ++head) {
      for (std::int64_t r = 0; r < view.q_len; ++r) {
        const kernels::ReferenceRow row = {
            .row = view.first_row + r,
            .q_head = head,
            .position = view.q_start + r,
            .page_table = view.pages,
            .kv_len = view.kv_len,
            .mask = batch.mask.bytes.data(),
            .mask_offset = view.mask_offset + head * view.mask_head_stride + r * view.mask_row_stride};
        const std::size_t index = static_cast<std::size_t>(row.row) * params.num_q_heads + head;
        double row_lse = 0;
        kernels::reference_row(params, row, scores.stage, out.data() + index * params.v_head_dim, &row_lse,
                               logits.data());
        if (!lse.empty()) lse[index] = row_lse;
        if (scores.values.empty()) continue;
        std::copy(logits.begin(), logits.end(), scores.values.begin() + static_cast<std::ptrdiff_t>(scores_done));
        scores_done += logits.size();
      }
    }
  }
};

std::int64_t page_id_limit(const AttentionConfig& config, const AttentionBatch& batch) noexcept {
  std::int64_t limit = 0;
  for (std::size_t i = 0; i < attention::num_sequences(batch); ++i) {
    const attention::SequenceView view = attention::read_sequence(config, batch, i);
    for (std::int64_t p = 0; p < view.num_pages; ++p) limit = std::max(limit, std::int64_t{view.pages[p]} + 1);
  }
  return limit;
}

}  // namespace

std::size_t num_reference_scores(const AttentionConfig& config, const AttentionBatch& batch) noexcept {
  if (!attention::read_layer(config).has_value() || !attention::check_batch(config, batch).has_value()) return 0;
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < attention::num_sequences(batch); ++i) {
    const attention::SequenceView view = attention::read_sequence(config, batch, i);
    std::uint64_t more = 0;
    if (!checked_mul(std::uint64_t{config.num_q_heads} * static_cast<std::uint64_t>(view.q_len),
                     static_cast<std::uint64_t>(view.kv_len), more) ||
        !checked_add(count, more, count)) {
      return std::numeric_limits<std::size_t>::max();
    }
  }
  return count;
}

Result<void> reference_attention(const AttentionConfig& config, const AttentionBatch& batch, const KvView& pages,
                                 ConstTensor q, std::span<double> out, std::span<double> lse,
                                 ReferenceScores scores) noexcept {
  auto params = attention::read_layer(config);
  if (!params.has_value()) return params.error();
  if (auto checked = attention::check_batch(config, batch); !checked) return checked;
  if (auto checked = attention::check_view(*params, pages, page_id_limit(config, batch)); !checked) return checked;
  const std::size_t rows = static_cast<std::size_t>(batch.qo_indptr.back()) * config.num_q_heads;
  if (!is_valid(q.dtype) || q.num_elements != rows * config.head_dim || out.size() != rows * params->v_head_dim ||
      (!lse.empty() && lse.size() != rows)) {
    return Error{Errc::kInvalidArgument, "q, out or lse does not have the size of the batch"};
  }
  if (rows != 0 && q.data == nullptr) return Error{Errc::kInvalidArgument, "q is null"};
  if (!scores.values.empty() && scores.values.size() != num_reference_scores(config, batch)) {
    return Error{Errc::kInvalidArgument, "scores does not have the size of the batch"};
  }
  params->pages = pages;
  params->q = q.data;
  params->q_dtype = q.dtype;
  params->mask_kind = batch.mask.kind;
  try {
    ReferenceRun run = {.params = *params, .batch = batch, .out = out, .lse = lse, .scores = scores};
    for (std::size_t i = 0; i < attention::num_sequences(batch); ++i) {
      run.sequence(attention::read_sequence(config, batch, i));
    }
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for the logits of one row"};
  }
  return {};
}

}  // namespace pagedkv
