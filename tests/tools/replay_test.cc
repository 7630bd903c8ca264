// The server in virtual time: its order of service, its invariants under every policy, and the three real traces.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "replay/allocator_memory.h"
#include "replay/allocators.h"
#include "replay/contiguous_memory.h"
#include "replay/latency.h"
#include "replay/paged_memory.h"
#include "replay/replay_run.h"
#include "replay/slot_space.h"
#include "replay/trace.h"
#include "replay/workload.h"
#include "run_tool.h"

namespace pagedkv::tool {
namespace {

/// Sessions from a list.
class ListSource final : public SessionSource {
 public:
  explicit ListSource(std::vector<Session> sessions) : sessions_(std::move(sessions)) {}
  bool next(Session& session) override {
    if (at_ == sessions_.size()) return false;
    session = sessions_[at_++];
    return true;
  }

 private:
  std::vector<Session> sessions_;
  std::size_t at_ = 0;
};

Session request(double start_s, std::uint32_t prompt, std::uint32_t output) {
  return {start_s, 1, {{0, prompt, output, {}, 0}}};
}

/// Counts slots and writes down what it is asked.
class RecordingMemory final : public KvMemory {
 public:
  explicit RecordingMemory(std::uint64_t capacity) : capacity_(capacity) {}
  bool can_ever_hold(std::uint64_t total_tokens) const override { return total_tokens <= capacity_; }
  bool open(SequenceKey key, const Demand& demand) override {
    if (held_ + demand.prefill_tokens > capacity_) return false;
    EXPECT_TRUE(tokens_.emplace(key, 0).second) << "a key was given out twice";
    opened.push_back(demand.request->number >> 24);
    return true;
  }
  bool grow(SequenceKey key, std::uint32_t num_tokens) override {
    if (held_ + num_tokens > capacity_) return false;
    grown_in_step += num_tokens;
    held_ += num_tokens;
    tokens_.at(key) += num_tokens;
    return true;
  }
  void compute() override {
    steps.push_back(grown_in_step);
    grown_in_step = 0;
  }
  void close(SequenceKey key, bool finished) override {
    held_ -= tokens_.at(key);
    tokens_.erase(key);
    preempted += finished ? 0 : 1;
  }
  MemoryUsage usage() const override { return {held_, held_}; }
  MemoryTotals totals() const override { return {}; }

  std::vector<std::uint64_t> opened;  ///< Sessions in order of admission.
  std::vector<std::uint64_t> steps;   ///< Tokens of each step.
  std::uint64_t grown_in_step = 0;
  std::uint64_t preempted = 0;

 private:
  std::uint64_t capacity_;
  std::uint64_t held_ = 0;
  std::map<SequenceKey, std::uint64_t> tokens_;
};

ReplayCounts serve(std::vector<Session> sessions, KvMemory& memory, SchedulerOptions options = {},
                   ArrivalMode mode = ArrivalMode::kClosed) {
  Arrivals arrivals(std::make_unique<ListSource>(std::move(sessions)), mode, options.max_seqs);
  return Scheduler(options, arrivals, memory).run();
}

TEST(Scheduler, PrefillsInChunksAndDecodesATokenAStep) {
  RecordingMemory memory(1000);
  SchedulerOptions options;
  options.max_batched_tokens = 40;
  const ReplayCounts counts = serve({request(0, 100, 3)}, memory, options);
  EXPECT_EQ(memory.steps, (std::vector<std::uint64_t>{40, 40, 20, 1, 1, 1}));
  EXPECT_EQ(counts.completed, 1u);
  EXPECT_EQ(counts.computed_tokens, 103u);
  EXPECT_EQ(counts.peak_tokens, 103u);
}

TEST(Scheduler, DecodingComesBeforePrefillInTheBudgetOfAStep) {
  RecordingMemory memory(1000);
  SchedulerOptions options;
  options.max_batched_tokens = 10;
  serve({request(0, 8, 4), request(0, 30, 1)}, memory, options);
  for (const std::uint64_t tokens : memory.steps) EXPECT_LE(tokens, 10u);
  EXPECT_EQ(memory.steps[0], 10u);  // 8 of the first, 2 of the second
  EXPECT_EQ(memory.steps[1], 10u);  // 1 decoded, 9 prefilled
}

TEST(Scheduler, AdmitsInOrderOfArrivalEvenWhenALaterRequestWouldFit) {
  RecordingMemory memory(100);
  serve({request(0, 60, 10), request(0, 80, 10), request(0, 5, 1)}, memory);
  EXPECT_EQ(memory.opened, (std::vector<std::uint64_t>{0, 1, 2}));
}

TEST(Scheduler, PreemptsTheYoungestAndComputesItAgainLater) {
  RecordingMemory memory(100);
  const ReplayCounts counts = serve({request(0, 45, 40), request(0, 45, 40)}, memory);
  EXPECT_EQ(counts.completed, 2u);
  EXPECT_EQ(counts.preemptions, 1u);
  EXPECT_EQ(memory.opened, (std::vector<std::uint64_t>{0, 1, 1}));
  EXPECT_EQ(counts.recomputed_tokens, 50u);  // both held 50 when memory ran out
  EXPECT_EQ(counts.computed_tokens, 2 * 85u + 50u);
}

TEST(Scheduler, RejectsWhatCanNeverFitAndServesTheRest) {
  RecordingMemory memory(100);
  const ReplayCounts counts = serve({request(0, 99, 2), request(0, 99, 1), request(0, 0, 0)}, memory);
  EXPECT_EQ(counts.requests, 3u);
  EXPECT_EQ(counts.rejected, 1u);
  EXPECT_EQ(counts.completed, 2u);
}

TEST(Scheduler, IsObservedOnlyInStepsInWhichSomethingRan) {
  RecordingMemory memory(10);
  Arrivals arrivals(std::make_unique<ListSource>(std::vector{request(0, 5, 1), request(50, 99, 1), request(90, 5, 1)}),
                    ArrivalMode::kTrace, 4);
  std::vector<std::uint64_t> observed;
  const ReplayCounts counts = Scheduler({}, arrivals, memory).run([&](const ReplayCounts& so_far, const MemoryUsage&) {
    observed.push_back(so_far.steps);
  });
  EXPECT_EQ(counts.rejected, 1u);
  EXPECT_EQ(observed, (std::vector<std::uint64_t>{1, 2, 3, 4}));
}

TEST(Scheduler, NoticesAMemoryThatRefusesWhatItCanHold) {
  class ClosedMemory final : public KvMemory {
   public:
    bool can_ever_hold(std::uint64_t) const override { return true; }
    bool open(SequenceKey, const Demand&) override { return false; }
    bool grow(SequenceKey, std::uint32_t) override { return false; }
    void close(SequenceKey, bool) override {}
    MemoryUsage usage() const override { return {}; }
    MemoryTotals totals() const override { return {}; }
  } memory;
  EXPECT_THROW(serve({request(0, 10, 5)}, memory), std::logic_error);
}

TEST(AllocatorMemory, SaysThatTheAllocatorHasNothingForASequenceThatIsAlone) {
  class EmptyAllocator final : public Allocator {
   public:
    void* allocate(std::size_t) override { return nullptr; }
    void* reallocate(void*, std::size_t, std::size_t) override { return nullptr; }
    void release(void*, std::size_t) override {}
  };
  AllocatorMemory memory(std::make_unique<EmptyAllocator>(), 1000, 100, 4, 64);
  EXPECT_THROW(serve({request(0, 10, 5)}, memory), BadInput);
}

TEST(Scheduler, WaitsForArrivalsInVirtualTime) {
  RecordingMemory memory(100);
  SchedulerOptions options;
  options.step_s = 1;
  options.token_s = 0.5;
  const ReplayCounts counts = serve({request(0, 2, 1), request(100, 2, 1)}, memory, options, ArrivalMode::kTrace);
  // Each request: a step of two tokens and one of one token.
  EXPECT_DOUBLE_EQ(counts.virtual_s, 100 + (1 + 1) + (1 + 0.5));
  EXPECT_EQ(counts.peak_sequences, 1u);
}

TEST(Scheduler, LimitsRunningSequences) {
  RecordingMemory memory(1000);
  SchedulerOptions options;
  options.max_seqs = 3;
  const ReplayCounts counts = serve(std::vector<Session>(20, request(0, 5, 5)), memory, options);
  EXPECT_EQ(counts.peak_sequences, 3u);
  EXPECT_EQ(counts.completed, 20u);
}

TEST(Arrivals, NextTurnOfASessionWaitsForTheOneBeforeIt) {
  RecordingMemory memory(1000);
  Session session = request(0, 5, 5);
  session.turns.push_back({0, 20, 5, {}, 0});
  const ReplayCounts counts = serve({session}, memory, {}, ArrivalMode::kTrace);
  EXPECT_EQ(counts.completed, 2u);
  EXPECT_EQ(counts.peak_sequences, 1u);
}

TEST(Scheduler, NoticesAMemoryInWhichASequenceCannotGoOn) {
  class StuckMemory final : public KvMemory {
   public:
    bool can_ever_hold(std::uint64_t) const override { return true; }
    bool open(SequenceKey, const Demand&) override { return held_ = 0, true; }
    bool grow(SequenceKey, std::uint32_t num_tokens) override {
      if (held_ + num_tokens > 10) return false;
      held_ += num_tokens;
      return true;
    }
    void close(SequenceKey, bool) override { held_ = 0; }
    MemoryUsage usage() const override { return {held_, held_}; }
    MemoryTotals totals() const override { return {}; }

   private:
    std::uint64_t held_ = 0;
  } memory;
  EXPECT_THROW(serve({request(0, 10, 5)}, memory), std::logic_error);
}

ContiguousOptions doubling(std::uint64_t capacity_tokens) {
  return {.sizing = Sizing::kDoubling, .capacity_tokens = capacity_tokens, .max_seq_len = 100, .max_seqs = 4};
}

TEST(ContiguousMemory, ASequenceThatCouldNotDoubleComesBackInALargerBuffer) {
  ContiguousMemory memory(doubling(100));
  const ReplayCounts counts = serve({request(0, 64, 20)}, memory);
  EXPECT_EQ(counts.completed, 1u);
  ContiguousMemory tight(doubling(100));
  EXPECT_EQ(serve({request(0, 40, 50)}, tight).preemptions, 1u);  // 64 and 100 do not fit side by side
}

TEST(FirstFitSpace, TakesTheFirstHoleThatFitsAndMergesNeighbours) {
  FirstFitSpace space(100);
  EXPECT_EQ(space.allocate(40), 0u);
  EXPECT_EQ(space.allocate(40), 40u);
  EXPECT_EQ(space.allocate(40), std::nullopt);
  space.release(0, 40);
  EXPECT_EQ(space.allocate(60), std::nullopt);  // 60 are free, but not side by side
  EXPECT_EQ(space.free_total(), 60u);
  EXPECT_EQ(space.largest_hole(), 40u);
  space.release(40, 40);
  EXPECT_EQ(space.largest_hole(), 100u);
}

TEST(ContiguousMemory, DoublingCopiesWhatItHoldsAndStopsAtTheLongestLength) {
  ContiguousMemory memory(doubling(1000));
  ASSERT_TRUE(memory.open(0, {nullptr, 60, 100, true}));
  ASSERT_TRUE(memory.grow(0, 60));
  EXPECT_EQ(memory.usage().reserved_slots, 64u);
  ASSERT_TRUE(memory.grow(0, 5));
  EXPECT_EQ(memory.usage().reserved_slots, 100u);
  EXPECT_EQ(memory.totals().copied_tokens, 60u);
}

Policy paged(std::uint32_t page_size) { return {"paged", PolicyKind::kPaged, page_size}; }

ReplayOptions generated(Workload workload, std::uint64_t capacity_tokens) {
  ReplayOptions options;
  options.open_source = [workload] { return limit_requests(generate_workload(workload, 3), 150); };
  options.memory.capacity_tokens = capacity_tokens;
  return options;
}

/// jemalloc and mimalloc may be missing, or not be loadable into a process that is running.
bool is_installed(const std::string& allocator) {
  try {
    return load_allocator(allocator, 1024) != nullptr;
  } catch (const BadInput&) {
    return allocator == "glibc" || allocator == "boost-pool";  // these cannot be missing
  }
}

TEST(Replay, EveryPolicyServesEveryRequestOfEveryWorkload) {
  for (const Workload workload : {Workload::kChat, Workload::kAgent, Workload::kBatch}) {
    for (const std::uint64_t capacity : {1u << 15, 1u << 20}) {
      const ReplayOptions options = generated(workload, capacity);
      const SourceSummary summary = summarize(*options.open_source());
      for (const Policy& policy : parse_policies("all", 16, /*attention=*/false)) {
        if (policy.kind == PolicyKind::kAllocator && !is_installed(policy.name)) continue;
        const ReplayReport report = replay(options, policy, summary);
        EXPECT_EQ(report.counts.completed + report.counts.rejected, 150u) << policy.name;
        EXPECT_EQ(report.counts.rejected, summary.longest_tokens > capacity ? report.counts.rejected : 0);
        EXPECT_GE(report.tail_waste(), 0);
        EXPECT_LE(report.utilization(), 1);
        EXPECT_LE(report.counts.peak_tokens, capacity);
        EXPECT_GE(static_cast<double>(report.counts.peak_sequences), report.mean_sequences());
      }
    }
  }
}

TEST(Replay, RequestsThatAreAllTooLongOrEmptyAreAnEmptyReport) {
  for (const Session& session : {request(0, 999, 1), request(0, 0, 0)}) {
    ReplayOptions options = generated(Workload::kChat, 512);
    options.open_source = [&] { return std::make_unique<ListSource>(std::vector(3, session)); };
    const SourceSummary summary = summarize(*options.open_source());
    for (const Policy& policy : parse_policies("all", 16, /*attention=*/false)) {
      if (policy.kind == PolicyKind::kAllocator && !is_installed(policy.name)) continue;
      const ReplayReport report = replay(options, policy, summary);
      EXPECT_EQ(report.counts.requests, summary.requests) << policy.label();
      EXPECT_EQ(report.counts.computed_tokens, 0u) << policy.label();
      EXPECT_EQ(report.utilization(), 0) << policy.label();
    }
  }
}

TEST(Replay, PagedServesMoreAtOnceThanReservationsOfTheLongestLength) {
  const ReplayOptions options = generated(Workload::kBatch, 1 << 15);
  const SourceSummary summary = summarize(*options.open_source());
  const ReplayReport pages = replay(options, paged(16), summary);
  const ReplayReport max_len = replay(options, {"max-len", PolicyKind::kMaxLen}, summary);
  EXPECT_GT(pages.mean_sequences(), 2 * max_len.mean_sequences());
  EXPECT_LT(pages.tail_waste(), 0.05);
  EXPECT_LT(pages.counts.steps, max_len.counts.steps);
}

TEST(Replay, WastesNothingAtPageSizeOne) {
  const ReplayOptions options = generated(Workload::kChat, 1 << 15);
  const ReplayReport report = replay(options, paged(1), summarize(*options.open_source()));
  EXPECT_EQ(report.tail_waste(), 0);
}

TEST(Replay, AttentionGivesTheSameOutputsUnderEveryPolicyAndAfterPreemptions) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    ReplayOptions options = generated(Workload::kBatch, 5000);
    options.open_source = [] { return limit_requests(generate_workload(Workload::kBatch, 3), 24); };
    options.memory.attention = true;
    options.memory.shape = {2, 4, 2, 24, dtype};
    const SourceSummary summary = summarize(*options.open_source());
    std::vector<ReplayReport> reports;
    for (const Policy& policy : parse_policies("all", 16, /*attention=*/true)) {
      reports.push_back(replay(options, policy, summary));
    }
    ASSERT_EQ(reports.size(), 3u);
    EXPECT_GT(reports[0].counts.preemptions + reports[2].counts.preemptions, 0u);
    EXPECT_NE(reports[0].totals.output_checksum, 0u);
    for (const ReplayReport& report : reports) {
      EXPECT_EQ(report.counts.completed, 24u);
      EXPECT_EQ(report.totals.output_checksum, reports[0].totals.output_checksum) << report.policy.name;
      EXPECT_GT(report.attention_gb_per_s(), 0);
    }
  }
}

ReplayReport replay_with_prefix_cache(ReplayOptions options, Eviction eviction = Eviction::kLru) {
  options.memory.prefix_cache = true;
  options.memory.eviction = eviction;
  options.ideal = ideal_prefix_hits(*options.open_source());
  return replay(options, paged(16), summarize(*options.open_source()));
}

TEST(IdealPrefixHits, CountsWhatWasThereBeforeAndTheLastTokensOfPromptsFoundWhole) {
  Session session;
  session.block_tokens = 4;
  session.turns = {{0, 10, 2, {{7, 3}}, 12}, {0, 8, 1, {{7, 2}}, 8}, {0, 12, 1, {{7, 2}, {20, 1}}, 12}};
  ListSource source({session});
  const IdealPrefixHits ideal = ideal_prefix_hits(source);
  EXPECT_EQ(ideal.tokens, 0u + 8 + 8);
  EXPECT_EQ(ideal.last_tokens, 1u);
}

TEST(PrefixReplay, FindsTheConversationBeforeButForItsLastPartialPageAndTheLastToken) {
  ReplayOptions options = generated(Workload::kChat, 1 << 20);
  options.scheduler.max_seqs = 1;  // every request is finished before the next begins
  const ReplayReport report = replay_with_prefix_cache(options);
  EXPECT_LE(report.counts.cached_tokens, report.ideal.tokens - report.ideal.last_tokens);
  EXPECT_GE(report.counts.cached_tokens + 15 * report.counts.requests, report.ideal.tokens - report.ideal.last_tokens);
  EXPECT_GT(report.prefix_hit_rate(), 0.5);
  EXPECT_EQ(report.pages.evictions, 0u);
}

TEST(PrefixReplay, TheIdealIsAShareOfAllPromptsThoseIncludedThatNeverFit) {
  ReplayOptions options = generated(Workload::kChat, 512);
  const ReplayReport report = replay_with_prefix_cache(options);
  const SourceSummary summary = summarize(*options.open_source());
  ASSERT_GT(report.counts.rejected, 0u);
  EXPECT_DOUBLE_EQ(report.prefix_ideal_rate() * static_cast<double>(summary.prompt_tokens),
                   static_cast<double>(report.ideal.tokens));
  options.open_source = [] { return std::make_unique<ListSource>(std::vector{request(0, 0, 5)}); };
  EXPECT_EQ(replay_with_prefix_cache(options).prefix_ideal_rate(), 0);
}

TEST(PrefixReplay, EvictsUnderPressureAndLosesNothingWithAnyPolicy) {
  for (const Eviction eviction : {Eviction::kLru, Eviction::kS3Fifo, Eviction::kArc}) {
    const ReplayReport report = replay_with_prefix_cache(generated(Workload::kAgent, 1 << 16), eviction);
    EXPECT_EQ(report.counts.completed, 150u);
    EXPECT_GT(report.pages.evictions, 0u);
    EXPECT_GT(report.counts.cached_tokens, 0u);
    EXPECT_LE(report.counts.cached_tokens, report.ideal.tokens);
    EXPECT_EQ(report.pages.used + report.pages.evictable + report.pages.free, (1u << 16) / 16);
  }
}

TEST(PrefixReplay, AttentionOverSharedPagesGivesTheSameOutputs) {
  ReplayOptions options = generated(Workload::kChat, 8192);
  options.open_source = [] { return limit_requests(generate_workload(Workload::kChat, 3), 20); };
  options.memory.attention = true;
  options.memory.shape = {1, 4, 2, 16, DType::f32};
  const ReplayReport shared = replay_with_prefix_cache(options);
  const ReplayReport alone = replay(options, paged(16), summarize(*options.open_source()));
  EXPECT_GT(shared.counts.cached_tokens, 0u);
  EXPECT_EQ(shared.totals.output_checksum, alone.totals.output_checksum);
}

TEST(Replay, HtmlReportIsOneFileThatHoldsItsData) {
  const std::string path = testing::TempDir() + "pagedkv_report.html";
  const ToolRun ran = run_captured({"replay", "--policy", "all", "--max-requests", "20", "--html", path, "--slot-bytes",
                                    "64", "--capacity-tokens", "32768"});
  EXPECT_EQ(ran.code, kDone) << ran.err;
  std::ifstream file(path);
  const std::string page((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::filesystem::remove(path);
  EXPECT_EQ(page.find("@REPORT@"), std::string::npos);
  EXPECT_EQ(page.find("http"), std::string::npos);
  const std::string begin = "type=\"application/json\">";
  const std::size_t at = page.find(begin) + begin.size();
  const Json data = Json::parse(page.substr(at, page.find("</script>", at) - at));
  EXPECT_EQ(data.at("requests"), 20);
  EXPECT_GE(data.at("runs").size(), 14u);
  for (const Json& report : data.at("runs")) EXPECT_FALSE(report.at("samples").empty());
}

TEST(BuddySpace, SplitsAndMergesBuddiesOnly) {
  BuddySpace space(12);  // 8 and 4
  EXPECT_EQ(space.rounded(3), 4u);
  const auto a = space.allocate(2), b = space.allocate(2), c = space.allocate(8);
  ASSERT_TRUE(a && b && c);
  EXPECT_EQ(*c, 0u);
  EXPECT_EQ(space.allocate(1), std::nullopt);
  space.release(*a, 2);
  EXPECT_EQ(space.largest_hole(), 2u);
  EXPECT_EQ(space.unusable_for(4), 2u);
  space.release(*b, 2);
  EXPECT_EQ(space.largest_hole(), 4u);
  space.release(*c, 8);
  EXPECT_EQ(space.largest_hole(), 8u);
  EXPECT_EQ(space.free_total(), 12u);
}

TEST(LatencyHistogram, PercentilesAreRightWithinABucket) {
  LatencyHistogram histogram;
  EXPECT_EQ(histogram.percentile_ns(0.5), 0u);
  for (std::uint64_t ns = 1; ns <= 1000; ++ns) histogram.add(ns);
  EXPECT_NEAR(static_cast<double>(histogram.percentile_ns(0.5)), 500, 32);
  EXPECT_NEAR(static_cast<double>(histogram.percentile_ns(0.999)), 999, 64);
}

TEST(TimedMemory, CallsThatFindNoRoomAreNoSamples) {
  TimedMemory memory(std::make_unique<ContiguousMemory>(doubling(100)));
  ASSERT_TRUE(memory.open(0, {nullptr, 60, 100, true}));
  ASSERT_FALSE(memory.open(1, {nullptr, 60, 100, false}));
  ASSERT_TRUE(memory.grow(0, 60));
  ASSERT_FALSE(memory.grow(0, 10));
  EXPECT_EQ(memory.latency().total(), 2u);
}

TEST(TimedMemory, ACacheYieldsASampleForEachSequenceOfAStep) {
  CacheMemoryOptions options;
  options.capacity_tokens = 160;
  options.max_seqs = 4;
  options.prefix_cache = true;
  TimedMemory memory(std::make_unique<CacheMemory>(options));
  const ReplayCounts counts = serve({request(0, 20, 3), request(0, 20, 3)}, memory);
  EXPECT_EQ(counts.sequence_steps, 2 * counts.steps);
  EXPECT_EQ(memory.latency().total(), 2 + counts.sequence_steps);  // two admissions
}

TEST(Replay, WhatIsNotKnownIsNotReportedAsZero) {
  const ToolRun ran = run_captured({"replay", "--policy", "glibc", "--max-requests", "5", "--json", "-"});
  ASSERT_EQ(ran.code, kDone) << ran.err;
  const Json json = Json::parse(ran.out);
  for (const char* name : {"metadata_bytes", "metadata_fraction", "external_fragmentation"}) {
    EXPECT_TRUE(json.at(name).is_null()) << name;
  }
  const ToolRun cached = run_captured(
      {"replay", "--policy", "all", "--max-requests", "60", "--prefix-cache", "--capacity-tokens", "4096"});
  ASSERT_EQ(cached.code, kDone) << cached.err;
  const std::size_t at = cached.out.find("\nglibc");
  const std::string glibc = cached.out.substr(at + 1, cached.out.find('\n', at + 1) - at - 1);
  EXPECT_EQ(std::count(glibc.begin(), glibc.end(), '-'), 4) << glibc;  // unusable, metadata, found, evicted
  EXPECT_NE(glibc.find("<= "), std::string::npos) << glibc;
}

TEST(Replay, JsonSaysWhatWasAskedFor) {
  const ToolRun ran = run_captured({"replay", "--max-requests", "5", "--prefix-cache", "--eviction", "arc", "--seed",
                                    "7", "--step-ms", "3", "--token-us", "4", "--dtype", "f16", "--json", "-"});
  ASSERT_EQ(ran.code, kDone) << ran.err;
  const Json json = Json::parse(ran.out);
  EXPECT_EQ(json.at("eviction"), "arc");
  EXPECT_EQ(json.at("seed"), 7);
  EXPECT_EQ(json.at("max_requests"), 5);
  EXPECT_EQ(json.at("step_ms"), 3);
  EXPECT_EQ(json.at("token_us"), 4);
  EXPECT_EQ(json.at("dtype"), "f16");
  EXPECT_EQ(json.at("layers"), 32);
  EXPECT_TRUE(json.contains("version"));
  EXPECT_TRUE(json.contains("cpu_model"));
}

TEST(Replay, JsonHasEveryFieldOfEveryPolicy) {
  const ToolRun ran = run_captured({"replay", "--policy", "all", "--max-requests", "20", "--json", "-"});
  ASSERT_EQ(ran.code, kDone) << ran.err;
  const Json json = Json::parse(ran.out);
  ASSERT_GE(json.at("policies").size(), 14u);
  for (const Json& report : json.at("policies")) {
    for (const char* name :
         {"policy", "requests", "completed", "steps", "peak_concurrent_sequences", "mean_concurrent_sequences",
          "tail_waste", "utilization", "bytes_copied", "preemptions", "peak_tokens", "wall_s"}) {
      EXPECT_TRUE(report.contains(name)) << name;
    }
    EXPECT_EQ(report.at("completed"), 20);
  }
}

/// The folder of the public data set: PAGEDKV_DATA_DIR of the environment, or of CMake.
std::filesystem::path data_dir() {
  const char* from_environment = std::getenv("PAGEDKV_DATA_DIR");
  return from_environment != nullptr ? from_environment : PAGEDKV_DATA_DIR;
}

struct RealTrace {
  const char* file;
  TraceFormat format;
  std::uint64_t requests, prompt_tokens, output_tokens;
};

class RealTraces : public testing::TestWithParam<RealTrace> {};

TEST_P(RealTraces, ReplayWithNothingLostAndNothingLeaked) {
  const RealTrace& trace = GetParam();
  const std::filesystem::path path = data_dir() / "traces" / trace.file;
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no data set at " << data_dir();
  ReplayOptions options;
  options.open_source = [&] { return open_trace(path, trace.format, 60); };
  options.memory.capacity_tokens = 4'000'000;
  const SourceSummary summary = summarize(*options.open_source());
  EXPECT_EQ(summary.requests, trace.requests);
  EXPECT_EQ(summary.prompt_tokens, trace.prompt_tokens);
  // replay() itself checks that nothing is left in memory and that tokens add up.
  const ReplayReport report = replay(options, paged(16), summary);
  EXPECT_EQ(report.counts.completed, trace.requests);
  EXPECT_EQ(report.counts.prompt_tokens, trace.prompt_tokens);
  EXPECT_EQ(report.counts.output_tokens, summary.output_tokens);
  EXPECT_EQ(report.counts.output_tokens, trace.output_tokens);
  EXPECT_LT(report.tail_waste(), 0.01);
  EXPECT_LE(report.counts.peak_tokens, options.memory.capacity_tokens);
}

INSTANTIATE_TEST_SUITE_P(
    Replay, RealTraces,
    testing::Values(RealTrace{"mooncake_conversation_trace.jsonl.xz", TraceFormat::kMooncake, 12031, 144'793'823,
                              4'122'048},
                    RealTrace{"AzureLLMInferenceTrace_conv.csv.xz", TraceFormat::kAzure, 19366, 22'361'870, 4'088'665},
                    RealTrace{"agentic64_public.jsonl.xz", TraceFormat::kAgentic, 25226, 2'957'358'181, 11'179'688}),
    [](const auto& instance) {
      return std::string(instance.param.format == TraceFormat::kMooncake ? "Mooncake"
                         : instance.param.format == TraceFormat::kAzure  ? "Azure"
                                                                         : "Agentic");
    });

}  // namespace
}  // namespace pagedkv::tool
