// The prefix cache: a long prompt published, looked up while it is warm, and among many others.
#include <benchmark/benchmark.h>

#include <optional>
#include <random>
#include <vector>

#include "pagedkv/kv_cache.h"
#include "report.h"

namespace pagedkv::bench {
namespace {

constexpr std::uint32_t kPageSize = 16;
constexpr std::size_t kPromptTokens = 100'000;

/// Pages of one tiny layer: what is measured is bookkeeping.
KvCache make_cache(std::uint64_t num_prompts) {
  return KvCache::create({.shape = {.num_layers = 1, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 1},
                          .page_size = kPageSize,
                          .capacity_pages = (num_prompts + 1) * (kPromptTokens / kPageSize + 1),
                          .huge_pages = HugePages::kNever})
      .value();
}

std::vector<Token> make_prompt(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Token> tokens(kPromptTokens);
  for (Token& token : tokens) token = static_cast<Token>(random() % 32'000);
  return tokens;
}

/// Opens the prompt and commits the rest of it; empty if it should not have been found as far as it was.
std::optional<Sequence> compute(KvCache& cache, const std::vector<Token>& prompt, std::uint64_t expected_tokens) {
  Result<Sequence> sequence = cache.open(prompt);
  if (!sequence || sequence->num_tokens() != expected_tokens) return std::nullopt;
  const auto num_new = static_cast<std::uint32_t>(prompt.size() - expected_tokens);
  Result<Step> step = cache.begin_step({{&*sequence, num_new}});
  if (!step || !step->commit()) return std::nullopt;
  return std::move(sequence).value();
}

// Opening, reserving and committing a prompt nobody saw: the lookup ends at once, all pages are published.
void publish_prompt(benchmark::State& state) {
  const std::vector<Token> prompt = make_prompt(1);
  KvCache cache = make_cache(1);
  for (auto _ : state) {
    std::optional<Sequence> sequence = compute(cache, prompt, 0);
    if (!sequence) {
      state.SkipWithError("a prompt was found that was not there");
      break;
    }
    state.PauseTiming();
    sequence.reset();
    cache.clear_prefix_cache();
    state.ResumeTiming();
  }
  report_time_each(state, "per_token", static_cast<double>(kPromptTokens));
  state.SetLabel("limit: cache misses of entries and tokens; step and commit included");
}
BENCHMARK(publish_prompt)->Unit(benchmark::kMicrosecond);

// Opening a prompt that is there whole, one of `range` that take turns.
void open_cached_prompt(benchmark::State& state) {
  const auto num_prompts = static_cast<std::uint64_t>(state.range(0));
  KvCache cache = make_cache(num_prompts);
  std::vector<std::vector<Token>> prompts;
  for (std::uint64_t i = 0; i < num_prompts; ++i) {
    prompts.push_back(make_prompt(i));
    if (!compute(cache, prompts.back(), 0)) state.SkipWithError("a prompt was found that was not there");
  }
  std::size_t next = 0;
  for (auto _ : state) {
    Result<Sequence> sequence = cache.open(prompts[next]);
    if (!sequence || sequence->num_tokens() != kPromptTokens - 1) {
      state.SkipWithError("a cached prompt was not found");
      break;
    }
    next = (next + 1) % prompts.size();
  }
  report_time_each(state, "per_token", static_cast<double>(kPromptTokens));
  state.SetLabel(num_prompts == 1 ? "limit: instructions" : "limit: cache misses of entries and tokens");
}
BENCHMARK(open_cached_prompt)->Arg(1)->Arg(32)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace pagedkv::bench
