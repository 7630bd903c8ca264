// What planning a step costs, anew and from the plan of the step before.
#include <benchmark/benchmark.h>

#include <numeric>
#include <vector>

#include "pagedkv/attention.h"
#include "report.h"

namespace pagedkv::bench {
namespace {

constexpr std::int32_t kPageSize = 16, kSparePages = 4;
constexpr AttentionConfig kConfig{.num_q_heads = 32, .num_kv_heads = 8, .head_dim = 128, .page_size = kPageSize};

/// A decode batch over pages in ascending order, with room to grow. The sequences stand at every position of a page in
/// turn, so that of 16 appended tokens one needs a page, as in service.
class DecodeBatch {
 public:
  DecodeBatch(std::int32_t sequences, std::int32_t pages_each)
      : pages_each_(pages_each), stride_(pages_each + kSparePages) {
    qo_indptr_.resize(static_cast<std::size_t>(sequences) + 1);
    std::iota(qo_indptr_.begin(), qo_indptr_.end(), 0);
    block_table_.resize(static_cast<std::size_t>(sequences * stride_));
    std::iota(block_table_.begin(), block_table_.end(), 0);
    seq_lens_.resize(static_cast<std::size_t>(sequences));
    restart();
  }
  void restart() {
    for (std::size_t i = 0; i < seq_lens_.size(); ++i) {
      seq_lens_[i] = (pages_each_ - 1) * kPageSize + 1 + static_cast<std::int32_t>(i) % kPageSize;
    }
  }
  void append() {
    for (std::int32_t& length : seq_lens_) ++length;
  }
  [[nodiscard]] bool full() const { return seq_lens_[0] == (pages_each_ - 1 + kSparePages) * kPageSize; }
  [[nodiscard]] AttentionBatch view() const {
    return {.qo_indptr = qo_indptr_, .block_table = block_table_, .block_table_stride = stride_, .seq_lens = seq_lens_};
  }
  [[nodiscard]] bool covered_by(const AttentionPlan& plan) const {
    const std::uint64_t tokens = std::accumulate(seq_lens_.begin(), seq_lens_.end(), std::uint64_t{0});
    return plan.num_rows() == seq_lens_.size() &&
           plan.kv_bytes() == tokens * kConfig.num_kv_heads * 2 * kConfig.head_dim * size_of(kConfig.kv_dtype);
  }
  [[nodiscard]] double size() const { return static_cast<double>(seq_lens_.size()); }

 private:
  std::int32_t pages_each_, stride_;
  std::vector<std::int32_t> qo_indptr_, block_table_, seq_lens_;
};

void plan_decode(benchmark::State& state) {
  const DecodeBatch batch(static_cast<std::int32_t>(state.range(0)), static_cast<std::int32_t>(state.range(1)));
  const Result<AttentionPlan> checked = AttentionPlan::create(kConfig, batch.view());
  if (!checked || !batch.covered_by(*checked)) {
    state.SkipWithError("the plan does not cover the batch");
    return;
  }
  for (auto _ : state) {
    const Result<AttentionPlan> plan = AttentionPlan::create(kConfig, batch.view());
    benchmark::DoNotOptimize(plan.has_value());
  }
  report_time_each(state, "per_sequence", batch.size());
  state.SetLabel("limit: checks of page ids in L2, allocation");
}
BENCHMARK(plan_decode)->Args({1, 256})->Args({32, 256})->Args({256, 391})->Unit(benchmark::kMicrosecond);

// The next step of the same batch, one token longer each; the caller's own update of the lengths is timed with it.
void extend_decode(benchmark::State& state) {
  DecodeBatch batch(static_cast<std::int32_t>(state.range(0)), static_cast<std::int32_t>(state.range(1)));
  Result<AttentionPlan> plan = AttentionPlan::create(kConfig, batch.view());
  batch.append();
  if (!plan || !plan->extend(batch.view()) || !batch.covered_by(*plan)) {
    state.SkipWithError("the extended plan does not cover the batch");
    return;
  }
  for (auto _ : state) {
    if (batch.full()) {
      state.PauseTiming();
      batch.restart();
      plan = AttentionPlan::create(kConfig, batch.view());
      state.ResumeTiming();
    }
    batch.append();
    const Result<void> extended = plan->extend(batch.view());
    benchmark::DoNotOptimize(extended.has_value());
  }
  if (!batch.covered_by(*plan)) state.SkipWithError("the extended plan does not cover the batch");
  report_time_each(state, "per_sequence", batch.size());
  state.SetLabel("limit: checks of page ids in L2");
}
BENCHMARK(extend_decode)->Args({1, 256})->Args({32, 256})->Args({256, 391})->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace pagedkv::bench
