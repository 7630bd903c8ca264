// What every micro-benchmark reports beside its time: rates with units, and the resource that limits it.
#pragma once

#include <benchmark/benchmark.h>

namespace pagedkv::bench {

/// Time for each of `items_an_iteration` things; the counter is named after one of them, as in "per_page".
inline void report_time_each(benchmark::State& state, const char* counter, double items_an_iteration) {
  state.counters[counter] = benchmark::Counter(
      items_an_iteration, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

/// Shown as GB=.../s.
inline void report_bytes(benchmark::State& state, double bytes_an_iteration) {
  state.counters["GB"] = benchmark::Counter(bytes_an_iteration * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

/// Shown as GFLOP=.../s.
inline void report_flops(benchmark::State& state, double flops_an_iteration) {
  state.counters["GFLOP"] =
      benchmark::Counter(flops_an_iteration * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace pagedkv::bench
