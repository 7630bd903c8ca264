// A decode step without its attention: pages reserved for all sequences, and committed.
#include <benchmark/benchmark.h>

#include <vector>

#include "pagedkv/kv_cache.h"
#include "report.h"

namespace pagedkv::bench {
namespace {

constexpr std::uint32_t kPromptTokens = 512;

void begin_and_commit(benchmark::State& state) {
  const auto num_sequences = static_cast<std::size_t>(state.range(0));
  KvCache cache = KvCache::create({.shape = {.num_q_heads = 1, .num_kv_heads = 1, .head_dim = 16},
                                   .capacity_pages = num_sequences * 2 * kPromptTokens / 16,
                                   .huge_pages = HugePages::kNever})
                      .value();
  std::vector<Sequence> sequences;
  std::vector<StepItem> items;
  for (std::size_t i = 0; i < num_sequences; ++i) sequences.push_back(cache.open().value());
  for (Sequence& sequence : sequences) items.push_back({&sequence, kPromptTokens});
  if (!cache.begin_step(items)->commit()) state.SkipWithError("the prompts were refused");
  for (StepItem& item : items) item.num_new_tokens = 1;

  std::uint64_t tokens = kPromptTokens;
  for (auto _ : state) {
    Result<Step> step = cache.begin_step(items);
    if (!step || !step->commit()) {
      state.SkipWithError("a step was refused");
      break;
    }
    if (++tokens < 2 * kPromptTokens) continue;
    state.PauseTiming();
    for (Sequence& sequence : sequences) {
      if (sequence.num_tokens() != tokens || !sequence.truncate(kPromptTokens)) state.SkipWithError("tokens were lost");
    }
    tokens = kPromptTokens;
    state.ResumeTiming();
  }
  report_time_each(state, "per_sequence", static_cast<double>(num_sequences));
  state.SetLabel("limit: cache misses on the sequences");
}
BENCHMARK(begin_and_commit)->Arg(1)->Arg(32)->Arg(256);

}  // namespace
}  // namespace pagedkv::bench
