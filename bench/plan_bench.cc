// What planning a step costs.
#include <benchmark/benchmark.h>

#include <numeric>
#include <vector>

#include "pagedkv/attention.h"
#include "report.h"

namespace pagedkv::bench {
namespace {

constexpr std::int32_t kPageSize = 16;

/// A decode batch of sequences of equal length over pages in ascending order, as CSR.
struct DecodeBatch {
  DecodeBatch(std::int32_t sequences, std::int32_t pages_each) {
    qo_indptr.resize(static_cast<std::size_t>(sequences) + 1);
    std::iota(qo_indptr.begin(), qo_indptr.end(), 0);
    for (std::int32_t i = 0; i <= sequences; ++i) kv_indptr.push_back(i * pages_each);
    kv_indices.resize(static_cast<std::size_t>(sequences * pages_each));
    std::iota(kv_indices.begin(), kv_indices.end(), 0);
    last_page_len.assign(static_cast<std::size_t>(sequences), kPageSize);
  }
  [[nodiscard]] AttentionBatch view() const {
    return {
        .qo_indptr = qo_indptr, .kv_indptr = kv_indptr, .kv_indices = kv_indices, .kv_last_page_len = last_page_len};
  }
  std::vector<std::int32_t> qo_indptr, kv_indptr, kv_indices, last_page_len;
};

void plan_decode(benchmark::State& state) {
  const DecodeBatch batch(static_cast<std::int32_t>(state.range(0)), static_cast<std::int32_t>(state.range(1)));
  const AttentionConfig config{.num_q_heads = 32, .num_kv_heads = 8, .head_dim = 128, .page_size = kPageSize};
  const std::uint64_t bytes = batch.kv_indices.size() * kPageSize * 8 * (128 + 128) * 2;
  const Result<AttentionPlan> checked = AttentionPlan::create(config, batch.view());
  if (!checked || checked->kv_bytes() != bytes || checked->num_rows() != batch.qo_indptr.size() - 1) {
    state.SkipWithError("the plan does not cover the batch");
    return;
  }
  for (auto _ : state) {
    const Result<AttentionPlan> plan = AttentionPlan::create(config, batch.view());
    benchmark::DoNotOptimize(plan.has_value());
  }
  report_time_each(state, "per_sequence", static_cast<double>(batch.last_page_len.size()));
  state.SetLabel("limit: checks of page ids in L2, allocation");
}
BENCHMARK(plan_decode)->Args({1, 256})->Args({32, 256})->Args({256, 391})->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace pagedkv::bench
