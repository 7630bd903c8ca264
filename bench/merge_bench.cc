// Attention states of disjoint keys merged into one.
#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "pagedkv/attention.h"
#include "report.h"

namespace pagedkv::bench {
namespace {

constexpr std::size_t kDim = 128;

struct States {
  explicit States(std::size_t rows) : out_a(rows * kDim), out_b(rows * kDim), lse_a(rows), lse_b(rows) {
    for (std::size_t i = 0; i < out_a.size(); ++i) {
      out_a[i] = std::sin(static_cast<float>(i));
      out_b[i] = std::cos(static_cast<float>(i));
    }
    for (std::size_t r = 0; r < rows; ++r) lse_a[r] = lse_b[r] = static_cast<float>(r % 5);
  }
  std::vector<float> out_a, out_b, lse_a, lse_b;
};

/// States of equal weight: the merged output is the mean, and the weight doubles.
bool merges_right(std::size_t rows) {
  States s(rows);
  const States before = s;
  if (!merge_states(s.out_a, s.lse_a, s.out_b, s.lse_b)) return false;
  for (std::size_t i = 0; i < s.out_a.size(); ++i) {
    if (!(std::abs(s.out_a[i] - (before.out_a[i] + before.out_b[i]) / 2) <= 1e-6F)) return false;
  }
  for (std::size_t r = 0; r < rows; ++r) {
    if (!(std::abs(s.lse_a[r] - (before.lse_a[r] + std::log(2.0F))) <= 1e-5F)) return false;
  }
  return true;
}

void merge(benchmark::State& state) {
  const auto rows = static_cast<std::size_t>(state.range(0));
  if (!merges_right(rows)) {
    state.SkipWithError("merged states are wrong");
    return;
  }
  States s(rows);
  for (auto _ : state) {
    for (float& lse : s.lse_a) lse = 0;  // else the first state's weight grows without end
    if (!merge_states(s.out_a, s.lse_a, s.out_b, s.lse_b)) state.SkipWithError("a merge was refused");
    benchmark::ClobberMemory();
  }
  report_bytes(state, static_cast<double>(rows * kDim * sizeof(float) * 3));
  state.SetLabel(rows < 1024 ? "limit: L1 and L2, two reads and a write" : "limit: memory, two reads and a write");
}
BENCHMARK(merge)->Arg(32)->Arg(1024)->Arg(65'536);

}  // namespace
}  // namespace pagedkv::bench
