// The server in virtual time: its order of service, its invariants under every policy, and the three real traces.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <map>

#include "replay/address_space.h"
#include "replay/contiguous_memory.h"
#include "replay/paged_memory.h"
#include "replay/replay_run.h"
#include "replay/trace.h"
#include "replay/workload.h"
#include "tool_runs.h"

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

TEST(ContiguousMemory, ASequenceThatCouldNotDoubleComesBackInALargerBuffer) {
  ContiguousMemory memory(Sizing::kDoubling, 100, 100, 1, 1);
  const ReplayCounts counts = serve({request(0, 64, 20)}, memory);
  EXPECT_EQ(counts.completed, 1u);
  ContiguousMemory tight(Sizing::kDoubling, 100, 100, 1, 1);
  EXPECT_EQ(serve({request(0, 40, 50)}, tight).preemptions, 1u);  // 64 and 100 do not fit side by side
}

TEST(AddressSpace, TakesTheFirstHoleThatFitsAndMergesNeighbours) {
  AddressSpace space(100);
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
  ContiguousMemory memory(Sizing::kDoubling, 1000, 100, 1, 4);
  ASSERT_TRUE(memory.open(0, {nullptr, 60, 100, true}));
  ASSERT_TRUE(memory.grow(0, 60));
  EXPECT_EQ(memory.usage().reserved_slots, 64u);
  ASSERT_TRUE(memory.grow(0, 5));
  EXPECT_EQ(memory.usage().reserved_slots, 100u);
  EXPECT_EQ(memory.totals().copied_tokens, 60u);
}

ReplayOptions generated(Workload workload, std::uint64_t capacity_tokens) {
  ReplayOptions options;
  options.open_source = [workload] { return limit_requests(generate_workload(workload, 3), 150); };
  options.capacity_tokens = capacity_tokens;
  return options;
}

TEST(Replay, EveryPolicyServesEveryRequestOfEveryWorkload) {
  for (const Workload workload : {Workload::kChat, Workload::kAgent, Workload::kBatch}) {
    for (const std::uint64_t capacity : {1u << 15, 1u << 20}) {
      const ReplayOptions options = generated(workload, capacity);
      const SourceSummary summary = summarize(*options.open_source());
      for (const Policy policy : {Policy::kPaged, Policy::kMaxLen, Policy::kDoubling}) {
        const ReplayReport report = replay(options, policy, summary);
        EXPECT_EQ(report.counts.completed + report.counts.rejected, 150u);
        EXPECT_EQ(report.counts.rejected, summary.longest_tokens > capacity ? report.counts.rejected : 0);
        EXPECT_GE(report.tail_waste(), 0);
        EXPECT_LE(report.utilization(), 1);
        EXPECT_LE(report.counts.peak_tokens, capacity);
        EXPECT_GE(static_cast<double>(report.counts.peak_sequences), report.mean_sequences());
      }
    }
  }
}

TEST(Replay, PagedServesMoreAtOnceThanReservationsOfTheLongestLength) {
  const ReplayOptions options = generated(Workload::kBatch, 1 << 15);
  const SourceSummary summary = summarize(*options.open_source());
  const ReplayReport paged = replay(options, Policy::kPaged, summary);
  const ReplayReport max_len = replay(options, Policy::kMaxLen, summary);
  EXPECT_GT(paged.mean_sequences(), 2 * max_len.mean_sequences());
  EXPECT_LT(paged.tail_waste(), 0.05);
  EXPECT_LT(paged.counts.steps, max_len.counts.steps);
}

TEST(Replay, WastesNothingAtPageSizeOne) {
  ReplayOptions options = generated(Workload::kChat, 1 << 15);
  options.page_size = 1;
  const ReplayReport report = replay(options, Policy::kPaged, summarize(*options.open_source()));
  EXPECT_EQ(report.tail_waste(), 0);
}

TEST(Replay, JsonHasEveryFieldOfEveryPolicy) {
  const Ran ran = run({"replay", "--policy", "all", "--max-requests", "20", "--json", "-"});
  ASSERT_EQ(ran.code, kDone) << ran.err;
  const Json json = Json::parse(ran.out);
  ASSERT_EQ(json.at("policies").size(), 3u);
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
  options.capacity_tokens = 4'000'000;
  const SourceSummary summary = summarize(*options.open_source());
  EXPECT_EQ(summary.requests, trace.requests);
  EXPECT_EQ(summary.prompt_tokens, trace.prompt_tokens);
  // replay() itself checks that nothing is left in memory and that tokens add up.
  const ReplayReport report = replay(options, Policy::kPaged, summary);
  EXPECT_EQ(report.counts.completed, trace.requests);
  EXPECT_EQ(report.counts.prompt_tokens, trace.prompt_tokens);
  EXPECT_EQ(report.counts.output_tokens, summary.output_tokens);
  EXPECT_EQ(report.counts.output_tokens, trace.output_tokens);
  EXPECT_LT(report.tail_waste(), 0.01);
  EXPECT_LE(report.counts.peak_tokens, options.capacity_tokens);
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
