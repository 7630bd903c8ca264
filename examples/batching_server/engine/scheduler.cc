// The order of things: who runs, who waits, who gives way.
#include "engine/scheduler.h"

#include <algorithm>

namespace serving {
namespace {

// A generated token costs about twice a prompt token in the steps that it takes part in (VTC's weights).
constexpr double kPromptTokenWeight = 1, kGeneratedTokenWeight = 2;
constexpr std::size_t kMaxIdleTenants = 4096;  // Beyond it, tenants without lanes are forgotten.

std::uint64_t ceil_div(std::uint64_t a, std::uint64_t b) noexcept { return (a + b - 1) / b; }

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options) : options_(options) {}

LaneId Scheduler::add(const LaneSpec& spec, double now) {
  const bool is_new_tenant =
      std::ranges::none_of(lanes_, [&](const Entry& entry) { return entry.second.spec.tenant == spec.tenant; });
  if (is_new_tenant) {
    // Who comes back has no credit for the time away: it begins level with the least served of those that are here.
    std::optional<double> least;
    for (const auto& [id, lane] : lanes_) {
      const double served = served_[lane.spec.tenant];
      least = std::min(least.value_or(served), served);
    }
    if (served_.size() > kMaxIdleTenants) {
      std::erase_if(served_, [&](const auto& tenant) {
        return std::ranges::none_of(lanes_, [&](const Entry& e) { return e.second.spec.tenant == tenant.first; });
      });
    }
    double& served = served_[spec.tenant];
    served = std::max(served, least.value_or(served));
  }
  Lane lane;
  lane.spec = spec;
  lane.waiting_since = now;
  lane.pending = spec.pending_tokens;
  lane.was_preempted = spec.heir_of.has_value();  // If it waits: somebody held its pages before.
  if (spec.computed_tokens) {
    lane.is_running = true;
    lane.decodes = true;
    lane.last_served = steps_;  // As the lane that it was forked from.
    lane.computed = *spec.computed_tokens;
    lane.shares_last_page = lane.computed % options_.page_size != 0;
  }
  const LaneId id = next_id_++;
  lane.arrival = spec.heir_of.value_or(id);
  lanes_.emplace(id, std::move(lane));
  return id;
}

void Scheduler::remove(LaneId lane) { lanes_.erase(lane); }

void Scheduler::found_cached(LaneId id, std::uint64_t computed) {
  const auto it = lanes_.find(id);
  if (it == lanes_.end()) return;
  Lane& lane = it->second;
  const std::uint64_t total = lane.computed + lane.pending;
  lane.computed = std::min(computed, total);
  lane.pending = total - lane.computed;
}

void Scheduler::advanced(LaneId id, std::uint64_t computed, std::uint64_t pending, bool decodes) {
  const auto it = lanes_.find(id);
  if (it == lanes_.end()) return;
  Lane& lane = it->second;
  const double weight = lane.decodes ? kGeneratedTokenWeight : kPromptTokenWeight;
  if (computed > lane.computed) {
    served_[lane.spec.tenant] += weight * static_cast<double>(computed - lane.computed);
    lane.shares_last_page = false;
  }
  lane.computed = computed;
  lane.pending = pending;
  lane.decodes = decodes;
}

std::uint64_t Scheduler::pages_for(std::uint64_t tokens) const noexcept {
  if (options_.window_left >= 0) {
    // At most the window before a chunk and the chunk itself, neither aligned to pages.
    const std::uint64_t live = static_cast<std::uint64_t>(options_.window_left) + options_.prefill_chunk;
    return std::min(ceil_div(tokens, options_.page_size), ceil_div(live, options_.page_size) + 1);
  }
  return ceil_div(tokens, options_.page_size);
}

std::uint64_t Scheduler::pages_to_grow(const Lane& lane, std::uint64_t num_tokens) const noexcept {
  return ceil_div(lane.computed + num_tokens, options_.page_size) - ceil_div(lane.computed, options_.page_size) +
         (lane.shares_last_page ? 1 : 0);
}

// Pages that a running lane will still take for tokens that are already certain; all it might, if it reserves.
std::uint64_t Scheduler::pages_promised(const Lane& lane) const noexcept {
  const std::uint64_t tokens = options_.reserve_max_length ? lane.spec.max_total_tokens : lane.computed + lane.pending;
  const std::uint64_t held = pages_for(lane.computed);
  return std::max(pages_for(tokens), held) - held + (lane.shares_last_page ? 1 : 0);
}

std::vector<Scheduler::Entry*> Scheduler::running() {
  std::vector<Entry*> lanes;
  for (Entry& entry : lanes_) {
    if (entry.second.is_running) lanes.push_back(&entry);
  }
  return lanes;
}

std::vector<Scheduler::Entry*> Scheduler::waiting_in_order(double now) {
  struct Candidate {
    double priority, served;
    Entry* entry;
  };
  std::vector<Candidate> candidates;
  for (Entry& entry : lanes_) {
    const Lane& lane = entry.second;
    if (lane.is_running) continue;
    const double aged = options_.aging_seconds > 0 ? (now - lane.waiting_since) / options_.aging_seconds : 0;
    // Whole levels only: within a level, fairness between tenants decides.
    candidates.push_back(
        {lane.spec.priority + static_cast<double>(static_cast<std::int64_t>(aged)), served_[lane.spec.tenant], &entry});
  }
  std::ranges::sort(candidates, [](const Candidate& a, const Candidate& b) {
    const auto key = [](const Candidate& c) {
      const Lane& lane = c.entry->second;
      return std::tuple(-c.priority, !lane.was_preempted, c.served, lane.arrival);
    };
    return key(a) < key(b);
  });
  std::vector<Entry*> lanes;
  lanes.reserve(candidates.size());
  for (const Candidate& candidate : candidates) lanes.push_back(candidate.entry);
  return lanes;
}

// Who keeps its pages longest comes first. Strict, even within a group: or its lanes could go on preempting each other.
std::tuple<int, LaneId, LaneId> Scheduler::rank(const Entry& entry) {
  return {-entry.second.spec.priority, entry.second.arrival, entry.first};
}

// The last in rank of the running lanes that `may_give_way` names.
template <typename Predicate>
Scheduler::Entry* Scheduler::last_running(Predicate may_give_way) {
  Entry* last = nullptr;
  for (Entry& entry : lanes_) {
    if (!entry.second.is_running || !may_give_way(entry)) continue;
    if (last == nullptr || rank(entry) > rank(*last)) last = &entry;
  }
  return last;
}

void Scheduler::preempt(Lane& lane, double now) {
  lane.pending += lane.computed;
  lane.computed = 0;
  lane.is_running = lane.decodes = lane.shares_last_page = false;
  lane.was_preempted = true;
  lane.waiting_since = now;
  ++preemptions_;
}

std::optional<LaneId> Scheduler::preempt_one(double now) {
  if (running().size() < 2) return std::nullopt;
  Entry* victim = last_running([](const Entry&) { return true; });
  preempt(victim->second, now);
  return victim->first;
}

void Scheduler::serve_running(Budget& budget, double now, StepPlan& plan) {
  std::vector<Entry*> order = running();
  // Decodes before prompts: who waits for the next token must not wait for somebody's prompt. Among equals, who was
  // served longest ago comes first, so that a budget smaller than the batch goes round.
  std::ranges::sort(order, [](const Entry* a, const Entry* b) {
    const auto key = [](const Lane& lane) {
      return std::tuple(!lane.decodes, -lane.spec.priority, lane.decodes ? lane.last_served : 0, lane.arrival);
    };
    return key(a->second) < key(b->second);
  });
  for (Entry* entry : order) {
    Lane& lane = entry->second;
    if (budget.tokens == 0) break;
    if (!lane.is_running || lane.pending == 0) continue;  // Preempted just now, or waiting for its group.
    std::uint64_t count = std::min<std::uint64_t>(lane.pending, budget.tokens);
    if (!lane.decodes) count = std::min<std::uint64_t>(count, options_.prefill_chunk);
    if (lane.decodes && pages_to_grow(lane, count) > budget.pages) count = 1;  // The draft is not worth a preemption.
    while (pages_to_grow(lane, count) > budget.pages) {
      Entry* victim = last_running([&](const Entry& other) { return rank(other) > rank(*entry); });
      // A lane that already has its place in this step keeps it; then, or without a lower-ranked one, this one yields.
      const bool is_planned = victim != nullptr && victim->second.last_served == steps_;
      if (victim == nullptr || is_planned) break;
      budget.pages += pages_for(victim->second.computed);  // An upper bound: shared pages stay with the others.
      plan.preempted.push_back(victim->first);
      preempt(victim->second, now);
    }
    const std::uint64_t grown = pages_to_grow(lane, count);
    if (grown > budget.pages) continue;  // Stands still for a step; what finishes meanwhile gives pages back.
    budget.pages -= grown;
    budget.tokens -= count;
    lane.last_served = steps_;
    plan.items.push_back({entry->first, static_cast<std::uint32_t>(count)});
  }
}

// Never promises more than `budget` has left: a step that was refused for what it admitted would be planned again.
void Scheduler::admit_waiting(Budget& budget, double now, const PoolView& pool, StepPlan& plan) {
  std::uint64_t promised = options_.watermark_pages, num_running = 0;
  for (const Entry* entry : running()) {
    promised += pages_promised(entry->second);
    ++num_running;
  }
  // What running lanes take in this very step is part of what was promised to them.
  std::uint64_t free_pages = pool.available_pages > promised ? pool.available_pages - promised : 0;
  free_pages = std::min(free_pages, budget.pages);
  for (Entry* entry : waiting_in_order(now)) {
    Lane& lane = entry->second;
    if (budget.tokens == 0 || num_running >= options_.max_lanes) break;
    const std::uint64_t needed = pages_promised(lane);
    // The first in line may use the watermark if nobody else can move: else it would wait for ever.
    const bool fits = needed <= free_pages || (plan.items.empty() && needed <= pool.available_pages);
    if (!fits) break;  // No overtaking: a large prompt is not starved by small ones behind it.
    const auto count =
        static_cast<std::uint32_t>(std::min<std::uint64_t>({lane.pending, budget.tokens, options_.prefill_chunk}));
    free_pages -= std::min(free_pages, needed);
    budget.tokens -= count;
    lane.is_running = true;
    lane.last_served = steps_;
    ++num_running;
    plan.admitted.push_back(entry->first);
    plan.items.push_back({entry->first, count});
  }
}

StepPlan Scheduler::plan(double now, const PoolView& pool) {
  ++steps_;
  StepPlan plan;
  Budget budget{options_.token_budget, pool.available_pages};
  serve_running(budget, now, plan);
  if (plan.preempted.empty()) admit_waiting(budget, now, pool, plan);
  // Nobody could move. Whoever waits for its group holds pages that the group needs, and loses no work: it gives way
  // first, even the last that runs. Without such, those that run hold each other's pages.
  if (plan.items.empty() && plan.preempted.empty()) {
    if (Entry* idle = last_running([](const Entry& entry) { return entry.second.pending == 0; })) {
      preempt(idle->second, now);
      plan.preempted.push_back(idle->first);
    } else if (const auto victim = preempt_one(now)) {
      plan.preempted.push_back(*victim);
    }
  }
  return plan;
}

SchedulerStats Scheduler::stats() const noexcept {
  SchedulerStats stats{.preemptions = preemptions_};
  for (const auto& [id, lane] : lanes_) ++(lane.is_running ? stats.running : stats.waiting);
  return stats;
}

}  // namespace serving
