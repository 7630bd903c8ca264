// Each row that is checked becomes a sequence of its own for the oracle: same pages, one query at its position.
#include "bench/check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "conformance/onnx_case.h"
#include "pagedkv/reference.h"
#include "tool.h"

namespace pagedkv::tool {
namespace {

constexpr double kMaxProducts = 3e8;  ///< Multiplications of the oracle in all; about a second.

double allowed_error(DType dtype) {
  switch (dtype) {
    case DType::f32: return 2e-5;
    case DType::f16: return 2e-3;
    case DType::bf16: break;
  }
  return 1e-2;
}

std::size_t v_dim_of(const AttentionConfig& config) {
  return config.v_head_dim == 0 ? config.head_dim : config.v_head_dim;
}

/// The oracle's answer for some rows of a batch.
struct OracleRows {
  std::vector<double> out;  ///< [rows][num_q_heads][v_head_dim].
  std::vector<double> lse;  ///< [rows][num_q_heads].
};

OracleRows compute_rows(const AttentionConfig& config, const Workload& workload, const std::vector<std::size_t>& rows) {
  const AttentionBatch batch = workload.batch(0);
  const ConstTensor q = workload.q();
  const std::size_t row_bytes = std::size_t{config.num_q_heads} * config.head_dim * size_of(q.dtype);
  std::vector<std::int32_t> qo_indptr = {0}, kv_indptr = {0}, kv_indices, last_page_len, q_start;
  std::vector<std::int64_t> mask_offsets;
  std::vector<std::byte> q_rows(rows.size() * row_bytes);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto after =
        std::upper_bound(batch.qo_indptr.begin(), batch.qo_indptr.end(), static_cast<std::int32_t>(rows[i]));
    const auto b = static_cast<std::size_t>(after - batch.qo_indptr.begin()) - 1;
    const std::int32_t begin = batch.kv_indptr[b], end = batch.kv_indptr[b + 1];
    kv_indices.insert(kv_indices.end(), batch.kv_indices.begin() + begin, batch.kv_indices.begin() + end);
    kv_indptr.push_back(static_cast<std::int32_t>(kv_indices.size()));
    last_page_len.push_back(batch.kv_last_page_len[b]);
    const std::int32_t length = (end - begin - 1) * static_cast<std::int32_t>(config.page_size) + last_page_len[i];
    q_start.push_back(length - batch.qo_indptr[b + 1] + static_cast<std::int32_t>(rows[i]));
    qo_indptr.push_back(static_cast<std::int32_t>(i) + 1);
    if (batch.mask.kind != MaskKind::kNone) {
      const std::int64_t row = static_cast<std::int64_t>(rows[i]) - batch.qo_indptr[b];
      mask_offsets.push_back(batch.mask.offsets[b] + row * length);
    }
    std::memcpy(q_rows.data() + i * row_bytes, static_cast<const std::byte*>(q.data) + rows[i] * row_bytes, row_bytes);
  }
  const AttentionBatch single_rows{
      .qo_indptr = qo_indptr,
      .kv_indptr = kv_indptr,
      .kv_indices = kv_indices,
      .kv_last_page_len = last_page_len,
      .q_start = q_start,
      .mask = {.kind = batch.mask.kind, .bytes = batch.mask.bytes, .offsets = mask_offsets}};
  const std::size_t row_heads = rows.size() * config.num_q_heads;
  OracleRows answer{.out = std::vector<double>(row_heads * v_dim_of(config)), .lse = std::vector<double>(row_heads)};
  value_or_bad_input(reference_attention(config, single_rows, workload.view(),
                                         {q_rows.data(), row_heads * config.head_dim, q.dtype}, answer.out, answer.lse),
                     "the oracle");
  return answer;
}

}  // namespace

CheckedError check_against_oracle(const AttentionConfig& config, Workload& workload, std::uint64_t seed) {
  const AttentionBatch batch = workload.batch(0);
  const std::size_t v_dim = v_dim_of(config);
  const double keys_a_row = static_cast<double>(batch.kv_indices.size()) * config.page_size /
                            static_cast<double>(batch.kv_last_page_len.size());
  const double products_a_row = keys_a_row * static_cast<double>(config.num_q_heads * (config.head_dim + v_dim));
  std::vector<std::size_t> rows = {0, workload.num_rows() - 1};
  std::mt19937_64 random(seed);
  while (static_cast<double>(rows.size() + 1) * products_a_row < kMaxProducts && rows.size() < 64) {
    rows.push_back(random() % workload.num_rows());
  }

  const OracleRows oracle = compute_rows(config, workload, rows);
  const Tensor out = workload.out();
  double squared_error = 0, squared_oracle = 0, lse_error = 0;
  for (std::size_t i = 0; i < rows.size() * config.num_q_heads; ++i) {
    const std::size_t row_head = rows[i / config.num_q_heads] * config.num_q_heads + i % config.num_q_heads;
    for (std::size_t d = 0; d < v_dim; ++d) {
      const auto* element = static_cast<const std::byte*>(out.data) + (row_head * v_dim + d) * size_of(out.dtype);
      const double expected = oracle.out[i * v_dim + d];
      const double difference = static_cast<double>(to_float(out.dtype, element)) - expected;
      squared_error += difference * difference;
      squared_oracle += expected * expected;
    }
    const double lse = static_cast<double>(workload.lse()[row_head]);
    if (lse == oracle.lse[i]) continue;  // both -inf
    const double error = std::abs(lse - oracle.lse[i]) / (1 + std::abs(oracle.lse[i]));
    if (!(error <= lse_error)) lse_error = error;  // NaN stays
  }
  const double rms = squared_error == 0 ? 0 : std::sqrt(squared_error / squared_oracle);
  const bool is_rounded = config.kv_dtype == DType::f16 && config.variant.f16_as_bf16;
  return {
      .relative = std::isnan(rms) || std::isnan(lse_error) ? std::nan("") : std::max(rms, lse_error),
      .allowed = std::max(allowed_error(is_rounded ? DType::bf16 : config.kv_dtype), allowed_error(workload.q().dtype)),
      .rows = rows.size()};
}

}  // namespace pagedkv::tool
