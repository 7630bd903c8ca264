// Page tables: growing a token at a time and a prompt at a time, forking, and being cut back.
#include <benchmark/benchmark.h>

#include <optional>

#include "pagedkv/page_pool.h"
#include "pagedkv/sequence.h"
#include "report.h"

namespace pagedkv::bench {
namespace {

constexpr std::uint32_t kPageSize = 16;
constexpr std::uint32_t kPromptTokens = 4096;

struct Fixture {
  PagePool pool =
      PagePool::create({.page_bytes = 4096, .capacity_pages = 4096, .huge_pages = HugePages::kNever}).value();
  SequenceStore store = SequenceStore::create(pool, kPageSize).value();

  /// A sequence of `num_tokens`, whose table is checked; empty if anything is off.
  std::optional<Sequence> open(std::uint32_t num_tokens) {
    Result<Sequence> sequence = store.open();
    if (!sequence || (num_tokens != 0 && !sequence->append(num_tokens))) return std::nullopt;
    if (sequence->num_tokens() != num_tokens || sequence->pages().size() != (num_tokens + kPageSize - 1) / kPageSize) {
      return std::nullopt;
    }
    return std::move(sequence).value();
  }
};

void append_token(benchmark::State& state) {
  Fixture fixture;
  std::optional<Sequence> sequence = fixture.open(kPromptTokens);
  if (!sequence) {
    state.SkipWithError("the page table has the wrong length");
    return;
  }
  for (auto _ : state) {
    if (!sequence->append(1)) {
      state.SkipWithError("a token was refused");
      break;
    }
    if (sequence->num_tokens() == 2 * kPromptTokens) {  // once in 4096 tokens: no matter to the mean
      if (!sequence->truncate(kPromptTokens)) state.SkipWithError("cutting back was refused");
    }
  }
  report_time_each(state, "per_token", 1);
  state.SetLabel("limit: instructions; one pool call in 16 tokens");
}
BENCHMARK(append_token);

void append_prompt_and_close(benchmark::State& state) {
  Fixture fixture;
  const auto tokens = static_cast<std::uint32_t>(state.range(0));
  for (auto _ : state) {
    std::optional<Sequence> sequence = fixture.open(tokens);
    if (!sequence || !sequence->close()) {
      state.SkipWithError("the page table has the wrong length");
      break;
    }
  }
  report_time_each(state, "per_page", static_cast<double>((tokens + kPageSize - 1) / kPageSize));
  state.SetLabel("limit: the pool's lock for short prompts, its list for long ones");
}
BENCHMARK(append_prompt_and_close)->Arg(128)->Arg(kPromptTokens);

void fork_and_close(benchmark::State& state) {
  Fixture fixture;
  std::optional<Sequence> sequence = fixture.open(kPromptTokens);
  if (!sequence) {
    state.SkipWithError("the page table has the wrong length");
    return;
  }
  for (auto _ : state) {
    Result<Sequence> branch = sequence->fork();
    if (!branch || branch->num_tokens() != kPromptTokens || !branch->close()) {
      state.SkipWithError("the branch differs from its origin");
      break;
    }
  }
  report_time_each(state, "per_page", kPromptTokens / kPageSize);
  state.SetLabel("limit: reference counts in L2");
}
BENCHMARK(fork_and_close);

}  // namespace
}  // namespace pagedkv::bench
