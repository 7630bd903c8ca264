// Rows of K and V written into pages in random order.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "bench/workload.h"
#include "pagedkv/attention.h"
#include "report.h"

namespace pagedkv::bench {
namespace {

constexpr std::uint32_t kHeads = 8, kDim = 128, kPageSize = 16;
constexpr std::int64_t kRowBytes = kDim * 2, kHeadBytes = 2 * kPageSize * kRowBytes, kPageBytes = kHeads * kHeadBytes;

/// Pages as [page][kv_head][K, V][token][dim] bf16, and slots of whole pages in random order.
struct Fixture {
  explicit Fixture(std::size_t num_tokens)
      : pages(num_tokens / kPageSize * kPageBytes), k(num_tokens * kHeads * kRowBytes), v(k.size()) {
    tool::fill_random(k, DType::bf16, 1);
    tool::fill_random(v, DType::bf16, 2);
    std::vector<std::int64_t> page_order(num_tokens / kPageSize);
    std::iota(page_order.begin(), page_order.end(), 0);
    std::shuffle(page_order.begin(), page_order.end(), std::mt19937_64(3));
    for (const std::int64_t page : page_order) {
      for (std::int64_t t = 0; t < kPageSize; ++t) slots.push_back(page * kPageSize + t);
    }
    config = {.num_q_heads = kHeads, .num_kv_heads = kHeads, .head_dim = kDim, .page_size = kPageSize};
    view = {.k = pages.data(),
            .v = pages.data() + kPageSize * kRowBytes,
            .k_page_stride = kPageBytes,
            .k_head_stride = kHeadBytes,
            .k_token_stride = kRowBytes,
            .v_page_stride = kPageBytes,
            .v_head_stride = kHeadBytes,
            .v_token_stride = kRowBytes,
            .num_pages = static_cast<std::int64_t>(num_tokens / kPageSize)};
  }

  bool write() {
    const std::size_t elements = k.size() / 2;
    return write_kv(config, view, slots, {k.data(), elements, DType::bf16}, {v.data(), elements, DType::bf16})
        .has_value();
  }
  /// Whether every row lies where its slot says, bit for bit.
  [[nodiscard]] bool written() const {
    for (std::size_t i = 0; i < slots.size(); ++i) {
      for (std::uint32_t h = 0; h < kHeads; ++h) {
        const std::int64_t at = slots[i] / kPageSize * kPageBytes + h * kHeadBytes + slots[i] % kPageSize * kRowBytes;
        const std::size_t from = (i * kHeads + h) * kRowBytes;
        if (std::memcmp(pages.data() + at, k.data() + from, kRowBytes) != 0) return false;
        if (std::memcmp(pages.data() + at + kPageSize * kRowBytes, v.data() + from, kRowBytes) != 0) return false;
      }
    }
    return true;
  }

  std::vector<std::byte> pages, k, v;
  std::vector<std::int64_t> slots;
  AttentionConfig config;
  KvWriteView view;
};

void write_rows(benchmark::State& state) {
  Fixture fixture(static_cast<std::size_t>(state.range(0)));
  if (!fixture.write() || !fixture.written()) {
    state.SkipWithError("rows do not lie where their slots say");
    return;
  }
  for (auto _ : state) {
    if (!fixture.write()) state.SkipWithError("a write was refused");
  }
  report_bytes(state, static_cast<double>(fixture.k.size() + fixture.v.size()));
  report_time_each(state, "per_token", static_cast<double>(fixture.slots.size()));
  state.SetLabel("limit: memory write, beside as much read");
}
BENCHMARK(write_rows)->Arg(32)->Arg(2048)->Arg(32'768)->UseRealTime();

}  // namespace
}  // namespace pagedkv::bench
