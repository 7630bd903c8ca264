// What every micro-benchmark reports beside its time: rates with units, and the resource that limits it.
#pragma once

#include <benchmark/benchmark.h>

namespace pagedkv::bench {

// Counters are of one thread; the library adds those of all threads, and counts the iterations of all of them too.
inline double of_one_thread(const benchmark::State& state, double an_iteration) {
  return an_iteration / static_cast<double>(state.threads());
}

/// Time for each of `items_an_iteration` things; the counter is named after one of them, as in "per_page".
inline void report_time_each(benchmark::State& state, const char* counter, double items_an_iteration) {
  state.counters[counter] =
      benchmark::Counter(of_one_thread(state, items_an_iteration),
                         benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

/// Shown as GB=.../s.
inline void report_bytes(benchmark::State& state, double bytes_an_iteration) {
  state.counters["GB"] = benchmark::Counter(of_one_thread(state, bytes_an_iteration * 1e-9),
                                            benchmark::Counter::kIsIterationInvariantRate);
}

/// Shown as GFLOP=.../s.
inline void report_flops(benchmark::State& state, double flops_an_iteration) {
  state.counters["GFLOP"] = benchmark::Counter(of_one_thread(state, flops_an_iteration * 1e-9),
                                               benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace pagedkv::bench
