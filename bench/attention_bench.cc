// Attention over pages in random order, by phase, format and variant. Small: `pagedkv bench attention` is the judge of
// speed, which measures the machine's limits in the same run.
#include <benchmark/benchmark.h>

#include <string>

#include "bench/check.h"
#include "bench/workload.h"
#include "pagedkv/attention.h"
#include "report.h"

namespace pagedkv::bench {
namespace {

void run_checked(benchmark::State& state, const tool::WorkloadShape& shape, const char* limit) {
  tool::Workload workload(shape);
  const Result<AttentionPlan> plan = AttentionPlan::create(shape.config, workload.batch(0));
  if (!plan || !plan->run(workload.view(), workload.q(), workload.out(), workload.lse())) {
    state.SkipWithError("attention was refused");
    return;
  }
  const tool::CheckedError error = tool::check_against_oracle(shape.config, workload, 1);
  if (!(error.relative <= error.allowed)) {
    state.SkipWithError("attention differs from the oracle");
    return;
  }
  for (auto _ : state) {
    if (!plan->run(workload.view(), workload.q(), workload.out(), workload.lse())) {
      state.SkipWithError("attention was refused");
      break;
    }
  }
  report_bytes(state, static_cast<double>(plan->kv_bytes()));
  report_flops(state, plan->flops());
  state.SetLabel(std::string(plan->target()) + ", limit: " + limit);
}

tool::WorkloadShape shape_of(DType dtype, std::size_t batch, std::int64_t context, std::int64_t query_len) {
  return {.config = {.num_q_heads = 32, .num_kv_heads = 8, .head_dim = 128, .kv_dtype = dtype},
          .contexts = std::vector<std::int64_t>(batch, context),
          .query_len = query_len,
          .q_dtype = dtype};
}

void decode(benchmark::State& state, DType dtype) {
  run_checked(state, shape_of(dtype, static_cast<std::size_t>(state.range(0)), state.range(1), 1),
              state.range(1) < 1024 ? "latency and L2 read" : "memory read");
}
BENCHMARK_CAPTURE(decode, bf16, DType::bf16)->Args({1, 128})->Args({8, 4096})->UseRealTime();
BENCHMARK_CAPTURE(decode, f16, DType::f16)->Args({8, 4096})->UseRealTime();
BENCHMARK_CAPTURE(decode, f32, DType::f32)->Args({8, 4096})->UseRealTime();

void decode_window(benchmark::State& state) {
  tool::WorkloadShape shape = shape_of(DType::bf16, 8, 4096, 1);
  shape.config.variant.window_left = 511;
  run_checked(state, shape, "L2 and L3 read");
}
BENCHMARK(decode_window)->UseRealTime();

void prefill(benchmark::State& state, DType dtype) {
  run_checked(state, shape_of(dtype, 1, state.range(1), state.range(0)), "matrix units");
}
BENCHMARK_CAPTURE(prefill, bf16, DType::bf16)->Args({512, 2048})->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(prefill, f32, DType::f32)->Args({128, 1024})->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace pagedkv::bench
