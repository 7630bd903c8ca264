// The scheduler in virtual time: a pool that only counts, steps that take as long as they have tokens.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace serving {
namespace {

struct SimulatedRequest {
  std::string tenant;
  int priority = 0;
  double arrival = 0;
  std::uint64_t prompt = 0, output = 0;
};

struct Outcome {
  double first_token = -1, finished = -1;
  std::uint64_t preempted = 0;
};

/// Runs requests through a Scheduler over a pool of `capacity_pages`. A step costs 1 ms and 10 us a token.
class Simulation {
 public:
  Simulation(const SchedulerOptions& options, std::uint64_t capacity_pages)
      : scheduler_(options), capacity_(capacity_pages) {}

  std::vector<Outcome> run(const std::vector<SimulatedRequest>& requests) {
    outcomes_.assign(requests.size(), {});
    std::size_t arrived = 0;
    while (arrived < requests.size() || !scheduler_.is_idle()) {
      if (scheduler_.is_idle()) now_ = std::max(now_, requests[arrived].arrival);
      for (; arrived < requests.size() && requests[arrived].arrival <= now_; ++arrived) {
        const SimulatedRequest& r = requests[arrived];
        const LaneId id = scheduler_.add({.tenant = r.tenant,
                                          .priority = r.priority,
                                          .pending_tokens = r.prompt,
                                          .max_total_tokens = r.prompt + r.output},
                                         now_);
        lanes_[id] = {arrived, r.prompt, r.output, 0, 0};
      }
      step();
      if (++steps_ > 1'000'000) ADD_FAILURE() << "no progress";
      if (::testing::Test::HasFailure()) break;
    }
    return outcomes_;
  }

  std::uint64_t largest_step_tokens = 0, largest_pages_held = 0, steps_with_both = 0;

 private:
  struct Lane {
    std::size_t request;
    std::uint64_t total, output_left, computed, generated;
  };

  [[nodiscard]] std::uint64_t pages_of(const Lane& lane) const { return scheduler_.pages_for(lane.computed); }
  [[nodiscard]] std::uint64_t pages_held() const {
    std::uint64_t pages = 0;
    for (const auto& [id, lane] : lanes_) pages += pages_of(lane);
    return pages;
  }

  void step() {
    const StepPlan plan =
        scheduler_.plan(now_, {.available_pages = capacity_ - pages_held(), .capacity_pages = capacity_});
    for (LaneId id : plan.preempted) {
      lanes_.at(id).computed = 0;
      ++outcomes_[lanes_.at(id).request].preempted;
    }
    std::uint64_t tokens = 0;
    bool has_prompt = false, has_decode = false;
    for (const StepPlan::Item& item : plan.items) {
      Lane& lane = lanes_.at(item.lane);
      ASSERT_GT(item.num_tokens, 0U);
      ASSERT_LE(lane.computed + item.num_tokens, lane.total);
      lane.computed += item.num_tokens;
      tokens += item.num_tokens;
      (lane.generated > 0 ? has_decode : has_prompt) = true;
    }
    steps_with_both += has_prompt && has_decode ? 1 : 0;
    largest_step_tokens = std::max(largest_step_tokens, tokens);
    largest_pages_held = std::max(largest_pages_held, pages_held());
    ASSERT_LE(pages_held(), capacity_) << "the plan took pages that are not there";
    now_ += 0.001 + 0.00001 * static_cast<double>(tokens);
    for (const StepPlan::Item& item : plan.items) {
      Lane& lane = lanes_.at(item.lane);
      if (lane.computed < lane.total) {
        scheduler_.advanced(item.lane, lane.computed, lane.total - lane.computed, false);
        continue;
      }
      Outcome& outcome = outcomes_[lane.request];
      if (outcome.first_token < 0) outcome.first_token = now_;
      ++lane.total;
      ++lane.generated;
      if (--lane.output_left == 0) {
        outcome.finished = now_;
        scheduler_.remove(item.lane);
        lanes_.erase(item.lane);
      } else {
        scheduler_.advanced(item.lane, lane.computed, 1, true);
      }
    }
  }

  Scheduler scheduler_;
  std::uint64_t capacity_;
  std::map<LaneId, Lane> lanes_;
  std::vector<Outcome> outcomes_;
  double now_ = 0;
  std::uint64_t steps_ = 0;
};

TEST(Scheduler, EveryRequestFinishesWhateverTheMix) {
  std::mt19937 random(1);
  for (int round = 0; round < 30; ++round) {
    const auto draw = [&](unsigned low, unsigned high) { return std::uniform_int_distribution(low, high)(random); };
    SchedulerOptions options{.page_size = draw(1, 32),
                             .token_budget = draw(1, 300),
                             .prefill_chunk = draw(1, 200),
                             .max_lanes = draw(1, 40),
                             .watermark_pages = draw(0, 3)};
    const std::uint64_t capacity = (120 + options.page_size) / options.page_size + draw(0, 100);
    std::vector<SimulatedRequest> requests;
    requests.reserve(60);
    for (int i = 0; i < 60; ++i) {
      requests.push_back({std::string(1, static_cast<char>('a' + draw(0, 3))), static_cast<int>(draw(0, 2)),
                          draw(0, 100) * 0.001, draw(1, 80), draw(1, 40)});
    }
    std::ranges::sort(requests, {}, &SimulatedRequest::arrival);
    Simulation simulation(options, capacity);
    for (const Outcome& outcome : simulation.run(requests)) EXPECT_GE(outcome.finished, 0);
    EXPECT_LE(simulation.largest_step_tokens, options.token_budget);
  }
}

TEST(Scheduler, LongPromptIsMixedWithDecodesInsteadOfStoppingThem) {
  Simulation simulation({.token_budget = 64, .prefill_chunk = 32}, 1000);
  const auto outcomes = simulation.run({{"a", 0, 0, 10, 200}, {"a", 0, 0.01, 4000, 1}});
  EXPECT_GT(simulation.steps_with_both, 100U);
  EXPECT_LE(simulation.largest_step_tokens, 33U);  // A chunk and a decode.
  EXPECT_LT(outcomes[0].finished, 0.3);            // 200 steps of at most 1.33 ms, not 4,000 tokens later.
}

TEST(Scheduler, PreemptsWhenPagesRunOutAndTheOldestNeverLosesItsOwn) {
  // Each needs 10 pages in the end, 13 exist: they cannot all finish together.
  Simulation simulation({.page_size = 16}, 13);
  const auto outcomes = simulation.run({{"a", 0, 0, 16, 144}, {"a", 0, 0, 16, 144}, {"a", 0, 0, 16, 144}});
  EXPECT_EQ(outcomes[0].preempted, 0U);
  EXPECT_GT(outcomes[1].preempted + outcomes[2].preempted, 0U);
  EXPECT_LT(outcomes[0].finished, outcomes[1].finished);
  EXPECT_LT(outcomes[1].finished, outcomes[2].finished);
}

TEST(Scheduler, HighPriorityIsAdmittedFirstAndPreemptedLast) {
  Simulation simulation({.page_size = 16, .max_lanes = 1}, 100);
  const auto outcomes = simulation.run({{"a", 0, 0, 16, 50}, {"a", 0, 0.001, 16, 50}, {"a", 5, 0.002, 16, 50}});
  EXPECT_LT(outcomes[2].finished, outcomes[1].finished);
  Simulation tight({.page_size = 16}, 13);
  const auto squeezed = tight.run({{"a", 0, 0, 16, 144}, {"a", 9, 0, 16, 144}});
  EXPECT_EQ(squeezed[1].preempted, 0U);
  EXPECT_GT(squeezed[0].preempted, 0U);
}

TEST(Scheduler, WaitingRaisesPrioritySoNobodyStarves) {
  // A steady stream of important requests that would keep the only lane busy for 8 seconds, against one that is not.
  std::vector<SimulatedRequest> requests = {{"a", 0, 0, 16, 100}, {"patient", 0, 0.01, 16, 1}};
  for (int i = 0; i < 80; ++i) requests.push_back({"a", 3, 0.02 + 0.1 * i, 16, 100});
  Simulation strict({.max_lanes = 1, .aging_seconds = 0}, 100);
  const double starved = strict.run(requests)[1].finished;
  Simulation aging({.max_lanes = 1, .aging_seconds = 1}, 100);
  const double served = aging.run(requests)[1].finished;
  EXPECT_GT(starved, 8);
  EXPECT_LT(served, 5);
}

TEST(Scheduler, TenantWithFewRequestsIsNotBuriedByOneWithMany) {
  std::vector<SimulatedRequest> requests;
  requests.reserve(105);
  for (int i = 0; i < 100; ++i) requests.push_back({"greedy", 0, 0, 32, 32});
  for (int i = 0; i < 5; ++i) requests.push_back({"modest", 0, 0.001, 32, 32});
  Simulation simulation({.max_lanes = 4}, 1000);
  const auto outcomes = simulation.run(requests);
  double modest = 0, greedy = 0;
  for (std::size_t i = 0; i < outcomes.size(); ++i) (i < 100 ? greedy : modest) = outcomes[i].finished;
  EXPECT_LT(modest, greedy * 0.25);  // 5 of 105 requests, served in turns with the others.
}

TEST(Scheduler, TenantThatReturnsHasNoCreditForItsAbsence) {
  Scheduler scheduler({.max_lanes = 1});
  const PoolView pool{.available_pages = 100, .capacity_pages = 100};
  const auto serve_one = [&](const std::string& tenant) {
    const LaneId id = scheduler.add({.tenant = tenant, .pending_tokens = 16}, 0);
    static_cast<void>(scheduler.plan(0, pool));
    scheduler.advanced(id, 16, 1, true);
    return id;
  };
  for (int i = 0; i < 50; ++i) scheduler.remove(serve_one("busy"));
  const LaneId running = serve_one("busy");
  // Both are level now: in a fair order each gets every other turn, although "late" was never served before.
  std::map<LaneId, std::string> waiting;
  for (int i = 0; i < 4; ++i) {
    for (const char* tenant : {"busy", "late"})
      waiting[scheduler.add({.tenant = tenant, .pending_tokens = 16}, 0)] = tenant;
  }
  scheduler.remove(running);
  std::map<std::string, int> first_four;
  for (int i = 0; i < 4; ++i) {
    const StepPlan plan = scheduler.plan(0, pool);
    ASSERT_EQ(plan.admitted.size(), 1U);
    ++first_four[waiting[plan.admitted[0]]];
    scheduler.advanced(plan.admitted[0], 16, 1, true);
    scheduler.remove(plan.admitted[0]);
  }
  EXPECT_EQ(first_four["busy"], 2);
  EXPECT_EQ(first_four["late"], 2);
}

TEST(Scheduler, AdmissionLeavesTheWatermarkToThoseThatRun) {
  Scheduler scheduler({.page_size = 16, .watermark_pages = 4});
  const PoolView pool{.available_pages = 10, .capacity_pages = 10};
  for (int i = 0; i < 10; ++i) scheduler.add({.pending_tokens = 16}, 0);
  EXPECT_EQ(scheduler.plan(0, pool).admitted.size(), 6U);
}

TEST(Scheduler, AdmissionLeavesForksThePageThatTheirFirstWriteCopies) {
  Scheduler scheduler({.page_size = 16});
  const LaneId fork = scheduler.add({.pending_tokens = 0, .computed_tokens = 10}, 0);
  scheduler.advanced(fork, 10, 1, true);
  scheduler.add({.pending_tokens = 32}, 0);
  EXPECT_TRUE(scheduler.plan(0, {.available_pages = 2, .capacity_pages = 3}).admitted.empty());
}

TEST(Scheduler, PromptAsLargeAsThePoolIsAdmittedDespiteTheWatermark) {
  Scheduler scheduler({.page_size = 16, .watermark_pages = 4});
  scheduler.add({.pending_tokens = 160}, 0);
  EXPECT_EQ(scheduler.plan(0, {.available_pages = 10, .capacity_pages = 10}).admitted.size(), 1U);
}

TEST(Scheduler, LargePromptIsNotOvertakenForEver) {
  Scheduler scheduler({.page_size = 16});
  const LaneId large = scheduler.add({.pending_tokens = 160}, 0);
  scheduler.add({.pending_tokens = 16}, 0);
  // 9 pages are not enough for the first; the second would fit, and must wait all the same.
  EXPECT_TRUE(scheduler.plan(0, {.available_pages = 9, .capacity_pages = 10}).admitted.empty());
  EXPECT_EQ(scheduler.plan(0, {.available_pages = 10, .capacity_pages = 10}).admitted.front(), large);
}

TEST(Scheduler, DraftIsCutToOneTokenRatherThanPreemptingSomebody) {
  Scheduler scheduler({.page_size = 4});
  const PoolView pool{.available_pages = 10, .capacity_pages = 10};
  const LaneId a = scheduler.add({.pending_tokens = 3}, 0), b = scheduler.add({.pending_tokens = 3}, 0);
  static_cast<void>(scheduler.plan(0, pool));
  scheduler.advanced(a, 3, 5, true);  // One token and four guesses: two pages more, but one token needs none.
  scheduler.advanced(b, 3, 1, true);
  const StepPlan plan = scheduler.plan(0, {.available_pages = 0, .capacity_pages = 2});
  EXPECT_TRUE(plan.preempted.empty());
  ASSERT_EQ(plan.items.size(), 2U);
  for (const StepPlan::Item& item : plan.items) EXPECT_EQ(item.num_tokens, 1U);
}

TEST(Scheduler, BudgetSmallerThanTheBatchGoesRound) {
  Scheduler scheduler({.token_budget = 2});
  std::vector<LaneId> lanes;
  lanes.reserve(6);
  for (int i = 0; i < 6; ++i) lanes.push_back(scheduler.add({.pending_tokens = 0, .computed_tokens = 16}, 0));
  for (LaneId id : lanes) scheduler.advanced(id, 16, 1, true);
  std::map<LaneId, int> served;
  for (int i = 0; i < 9; ++i) {
    for (const auto& item : scheduler.plan(0, {.available_pages = 50, .capacity_pages = 50}).items) ++served[item.lane];
  }
  for (LaneId id : lanes) EXPECT_EQ(served[id], 3);
}

TEST(Scheduler, ReservingAtMaximumLengthAdmitsFewer) {
  const auto admitted = [](bool reserve) {
    Scheduler scheduler({.page_size = 16, .reserve_max_length = reserve});
    for (int i = 0; i < 20; ++i) scheduler.add({.pending_tokens = 16, .max_total_tokens = 160}, 0);
    return scheduler.plan(0, {.available_pages = 40, .capacity_pages = 40}).admitted.size();
  };
  EXPECT_EQ(admitted(false), 20U);
  EXPECT_EQ(admitted(true), 4U);
}

TEST(Scheduler, WindowBoundsThePagesOfALongPrompt) {
  // 4,000 tokens through a pool of 20 pages of 16: only the window and a chunk are held at once.
  Simulation simulation({.page_size = 16, .token_budget = 64, .prefill_chunk = 64, .window_left = 127}, 20);
  const auto outcomes = simulation.run({{"a", 0, 0, 4000, 10}});
  EXPECT_GE(outcomes[0].finished, 0);
}

TEST(Scheduler, LaneThatOnlyWaitsForItsGroupGivesWayToIt) {
  Scheduler scheduler({.page_size = 16});
  const LaneId idle = scheduler.add({.pending_tokens = 0, .computed_tokens = 64}, 0);
  const LaneId mate = scheduler.add({.pending_tokens = 64, .heir_of = idle}, 0);
  const StepPlan stuck = scheduler.plan(0, {.available_pages = 1, .capacity_pages = 5});
  EXPECT_EQ(stuck.preempted, std::vector{idle});
  scheduler.remove(idle);  // It has nothing to compute again.
  EXPECT_EQ(scheduler.plan(0, {.available_pages = 5, .capacity_pages = 5}).admitted, std::vector{mate});
}

TEST(Scheduler, HeirRanksAsOldAsItsAncestor) {
  Scheduler scheduler({.page_size = 16});
  const LaneId old = scheduler.add({.pending_tokens = 0, .computed_tokens = 16}, 0);
  const LaneId young = scheduler.add({.pending_tokens = 0, .computed_tokens = 16}, 0);
  const LaneId heir = scheduler.add({.pending_tokens = 0, .computed_tokens = 16, .heir_of = old}, 0);
  scheduler.remove(old);
  scheduler.advanced(heir, 16, 1, true);
  scheduler.advanced(young, 16, 1, true);
  // Both need a page and one comes free with the other's preemption: the heir's is not the one to go.
  EXPECT_EQ(scheduler.plan(0, {.available_pages = 0, .capacity_pages = 2}).preempted, std::vector{young});
}

TEST(Scheduler, RemovedLanesAreForgotten) {
  Scheduler scheduler({});
  const LaneId id = scheduler.add({.pending_tokens = 16}, 0);
  scheduler.remove(id);
  scheduler.remove(id);
  scheduler.advanced(id, 1, 1, true);
  EXPECT_TRUE(scheduler.is_idle());
  EXPECT_TRUE(scheduler.plan(0, {.available_pages = 5, .capacity_pages = 5}).items.empty());
}

}  // namespace
}  // namespace serving
