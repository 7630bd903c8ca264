// `pagedkv bench`: short runs give the fields that scripts read, and bad shapes are refused before anything is timed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bench/limits.h"
#include "bench/samples.h"
#include "pagedkv/cpu.h"
#include "pagedkv/version.h"
#include "run_tool.h"

namespace pagedkv::tool {
namespace {

using Arguments = std::vector<std::string>;

/// Small shapes in memory that caches hold: what is checked is the report, not the speed.
ToolRun bench_attention(const Arguments& more) {
  Arguments arguments = {"bench",     "attention", "--q-heads", "8", "--kv-heads", "2", "--head-dim",        "64",
                         "--seconds", "0",         "--threads", "2", "--json",     "-", "--working-set-mib", "0"};
  if (std::find(more.begin(), more.end(), "--contexts") == more.end()) {
    arguments.insert(arguments.end(), {"--batch", "2", "--context", "70"});
  }
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run_captured(arguments);
}

TEST(BenchAttention, DecodeReportsItsRateBesideAReadOfTheSameRun) {
  const ToolRun run = bench_attention({"--phase", "decode"});
  ASSERT_EQ(run.code, kDone) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  for (const char* key : {"ms_median", "gb_per_s", "gflop_per_s", "read_bandwidth_gb_per_s", "fraction_of_bandwidth"}) {
    EXPECT_GT(json[key].get<double>(), 0) << key;
  }
  EXPECT_EQ(json["page_order"], "random");
  EXPECT_EQ(json["kv_bytes"].get<double>(), 2.0 * 70 * 2 * (64 + 64) * 2);
  EXPECT_LE(json["relative_error"].get<double>(), json["relative_error_allowed"].get<double>());
  EXPECT_FALSE(json.contains("fraction_of_peak"));
}

TEST(BenchAttention, PrefillReportsAFractionOfThePeakOfItsUnit) {
  const ToolRun run = bench_attention({"--phase", "prefill", "--query-len", "33"});
  ASSERT_EQ(run.code, kDone) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  EXPECT_GT(json["peak_gflop_per_s"].get<double>(), 0);
  EXPECT_GT(json["fraction_of_peak"].get<double>(), 0);
  EXPECT_LT(json["fraction_of_peak"].get<double>(), 1);
  EXPECT_EQ(json["query_len"], 33);
}

TEST(BenchAttention, ReadsAsManyBytesAsSharedPagesAreReadHoweverLittleMemoryHoldsThem) {
  const ToolRun run = bench_attention({"--contexts", "80x32", "--shared-prefix", "64"});
  ASSERT_EQ(run.code, kDone) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  EXPECT_EQ(json["copies"], 1);
  EXPECT_EQ(json["kv_bytes"].get<double>(), 32.0 * 80 * 2 * (64 + 64) * 2);
  EXPECT_GT(json["fraction_of_bandwidth"].get<double>(), 0);
}

TEST(BenchAttention, MakesNoMoreCopiesThanRoundsCanUse) {
  const ToolRun run = bench_attention({"--batch", "1", "--context", "1", "--q-heads", "1", "--kv-heads", "1",
                                       "--head-dim", "8", "--page-size", "1", "--working-set-mib", "16"});
  ASSERT_EQ(run.code, kDone) << run.err;
  EXPECT_EQ(nlohmann::json::parse(run.out)["copies"], 20'000);
}

TEST(BenchAttention, ReportSaysWhatWasMeasured) {
  const Arguments variant = {"--no-causal", "--window-left", "9",      "--soft-cap", "2.5",    "--sinks", "--alibi",
                             "--contexts",  "70,50x2",       "--seed", "5",          "--mask", "none"};
  const auto json = nlohmann::json::parse(bench_attention(variant).out);
  EXPECT_EQ(json["causal"], false);
  EXPECT_EQ(json["window_left"], 9);
  EXPECT_EQ(json["soft_cap"], 2.5);
  EXPECT_EQ(json["sinks"], true);
  EXPECT_EQ(json["alibi"], true);
  EXPECT_EQ(json["mask"], "none");
  EXPECT_EQ(json["values_in_keys"], false);
  EXPECT_EQ(json["contexts"], "70x1,50x2");
  EXPECT_EQ(json["shared_prefix"], 0);
  EXPECT_EQ(json["working_set_mib"], 0);
  EXPECT_EQ(json["seed"], 5);
  EXPECT_EQ(json["version"], version());
  EXPECT_EQ(json["cpu_model"], cpu_info().model);

  Arguments as_text = variant;
  as_text.insert(as_text.end(), {"--json", "/dev/null"});
  EXPECT_THAT(bench_attention(as_text).out, testing::HasSubstr("variant     not causal, window of 9 keys to the left, "
                                                               "soft cap 2.5, sinks, ALiBi\n"));
  EXPECT_THAT(bench_attention({"--json", "/dev/null"}).out, testing::Not(testing::HasSubstr("variant")));
}

TEST(BenchAttention, EveryVariantRunsOnEveryTargetAndAgreesWithTheOracle) {
  const std::vector<Arguments> variants = {{"--window-left", "16"},
                                           {"--sinks"},
                                           {"--soft-cap", "2.5"},
                                           {"--alibi"},
                                           {"--no-causal", "--query-len", "5"},
                                           {"--v-head-dim", "40"},
                                           {"--head-dim", "96", "--v-head-dim", "64", "--values-in-keys"},
                                           {"--dtype", "f16", "--page-size", "3"},
                                           {"--dtype", "f16", "--f16-as-bf16", "--query-len", "20"},
                                           {"--dtype", "f32", "--page-order", "contiguous"},
                                           {"--dtype", "bf16", "--q-dtype", "f32"},
                                           {"--contexts", "130,17x3"},
                                           {"--shared-prefix", "32", "--small-os-pages"}};
  for (const TargetInfo& target : targets()) {
    if (!target.available) continue;
    for (Arguments variant : variants) {
      variant.insert(variant.end(), {"--target", target.name});
      const ToolRun run = bench_attention(variant);
      EXPECT_EQ(run.code, kDone) << target.name << " " << variant[0] << ": " << run.err;
    }
  }
}

TEST(BenchAttention, RefusesShapesThatMakeNoSense) {
  expect_bad_input(bench_attention({"--context", "0"}), "--context");
  expect_bad_input(bench_attention({"--query-len", "71"}), "--query-len");
  expect_bad_input(bench_attention({"--contexts", "12,x"}), "--contexts");
  expect_bad_input(bench_attention({"--contexts", "-5"}), "--contexts");
  expect_bad_input(bench_attention({"--shared-prefix", "80"}), "--shared-prefix");
  expect_bad_input(bench_attention({"--shared-prefix", "15", "--cascade"}), "one page of 16");
  expect_bad_input(bench_attention({"--contexts", "70", "--batch", "2"}), "--contexts");
  expect_bad_input(bench_attention({"--contexts", "70", "--context", "70"}), "--contexts");
  expect_bad_input(bench_attention({"--seconds", "nan"}), "--seconds");
  expect_bad_input(bench_attention({"--q-heads", "4000000000", "--sinks"}), "--q-heads");
  expect_bad_input(bench_attention({"--q-heads", "7"}), "");
  expect_bad_input(bench_attention({"--head-dim", "0"}), "");
  expect_bad_input(bench_attention({"--dtype", "int3"}), "--dtype");
  expect_bad_input(bench_attention({"--target", "vax"}), "");
  expect_bad_input(bench_attention({"--soft-cap", "-1"}), "");
  expect_bad_input(bench_attention({"--head-dim", "64", "--v-head-dim", "65", "--values-in-keys"}), "--values-in-keys");
}

TEST(BenchPool, ReportsNanosecondsOfThreeWays) {
  const ToolRun run = run_captured({"bench", "pool", "--samples", "1", "--pages", "256", "--json", "-"});
  ASSERT_EQ(run.code, kDone) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  for (const char* key : {"one_page_ns_a_page", "batch_64_ns_a_page", "contended_ns_a_page"}) {
    EXPECT_GT(json[key].get<double>(), 0) << key;
  }
}

TEST(BenchPool, RefusesPoolsSmallerThanItsBatches) {
  expect_bad_input(run_captured({"bench", "pool", "--pages", "8"}), "--pages");
}

TEST(Bench, WithoutAPartIsBadUsage) { expect_bad_input(run_captured({"bench"}), "subcommand"); }

TEST(BenchSamples, QuantilesAreNearestRanks) {
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(quantile({5, 1, 4, 2, 3}, 0.1), 1);
  EXPECT_EQ(quantile({5, 1, 4, 2, 3}, 0.9), 5);
  EXPECT_EQ(median({}), 0);
}

TEST(BenchLimits, ReadDependsOnEveryWord) {
  std::vector<std::byte> memory((std::size_t{1} << 21) + 768, std::byte{0});
  const std::uint64_t before = read_contiguous(memory);
  for (const std::size_t at : {std::size_t{0}, std::size_t{1} << 20, memory.size() - 8}) {
    memory[at] = std::byte{1};
    EXPECT_NE(read_contiguous(memory), before) << at;
    memory[at] = std::byte{0};
  }
}

TEST(BenchLimits, PeakUnitFollowsTargetAndFormat) {
  EXPECT_EQ(peak_unit_of("amx", DType::bf16), PeakUnit::kAmxBf16);
  EXPECT_EQ(peak_unit_of("amx", DType::f16), PeakUnit::kAmxBf16);
  EXPECT_EQ(peak_unit_of("amx", DType::f32), PeakUnit::kFma512);
  EXPECT_EQ(peak_unit_of("avx512_bf16", DType::bf16), PeakUnit::kDot512);
  EXPECT_EQ(peak_unit_of("avx512_bf16", DType::f16), PeakUnit::kFma512);
  EXPECT_EQ(peak_unit_of("avx512", DType::bf16), PeakUnit::kFma512);
  EXPECT_EQ(peak_unit_of("avx2", DType::f32), PeakUnit::kFma256);
  EXPECT_EQ(peak_unit_of("scalar", DType::f32), PeakUnit::kMulAdd128);
}

}  // namespace
}  // namespace pagedkv::tool
