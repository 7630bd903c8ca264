// Scheduler: which sequences compute how many tokens in the next step. Pure bookkeeping in the caller's time.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace serving {

/// One sequence, as the scheduler knows it.
using LaneId = std::uint64_t;

struct SchedulerOptions {
  std::uint32_t page_size = 16;       ///< Tokens.
  std::uint32_t token_budget = 512;   ///< New tokens of one step, at most: bounds how long a step takes.
  std::uint32_t prefill_chunk = 256;  ///< Prompt tokens of one sequence in one step, at most.
  std::uint32_t max_lanes = 256;      ///< Sequences admitted at once; forks of them are not counted.
  std::int32_t window_left = -1;      ///< Sliding window in tokens, as AttentionVariant has it; -1 = none.
  std::uint64_t watermark_pages = 0;  ///< Pages that admission leaves for those that run.
  double aging_seconds = 10;          ///< A waiting sequence gains one level of priority in that time.
  /// Reserve `max_total_tokens` when a sequence is admitted, as servers without pages do. For comparison only.
  bool reserve_max_length = false;
};

struct LaneSpec {
  std::string tenant = {};             ///< Fairness is between tenants.
  int priority = 0;                    ///< Higher first.
  std::uint64_t pending_tokens = 1;    ///< Tokens to compute: the prompt.
  std::uint64_t max_total_tokens = 1;  ///< Prompt and output, at most.
  /// The lane begins with tokens computed and pages held (a fork), so it runs at once.
  std::optional<std::uint64_t> computed_tokens = {};
  /// The lane carries on what that one began (a child of its beam, say), so it is as old; it need not exist any more.
  std::optional<LaneId> heir_of = {};
};

/// What the pool has. The scheduler never sees it otherwise.
struct PoolView {
  std::uint64_t available_pages = 0;  ///< Free and evictable.
  std::uint64_t capacity_pages = 0;
};

/// What to do now: preempt, then admit, then one step over `items`. The lists name every lane at most once.
struct StepPlan {
  struct Item {
    LaneId lane;
    std::uint32_t num_tokens;
  };
  std::vector<LaneId> preempted;  ///< Give up their pages; they wait, and later compute everything again.
  std::vector<LaneId> admitted;   ///< Get a sequence. They are among `items`.
  std::vector<Item> items;        ///< Decodes first, then prompts.
};

struct SchedulerStats {
  std::uint64_t waiting = 0, running = 0;
  std::uint64_t preemptions = 0;
};

/// Continuous batching with chunked prefill.
///
/// A lane is a sequence that has `pending` tokens to compute: its whole prompt at first, one when it decodes, a few
/// when a draft is checked. Each step first serves running lanes that decode, then running prompts in chunks, then
/// admits waiting lanes, all within a token budget and the pages that are there. Running lanes go by priority and age;
/// so the oldest of the highest priority always advances, and no order of requests can stop progress. Among those that
/// wait, priority (raised by waiting) decides, then the tenant that was served least (virtual token counters), then
/// age. When pages run out, the youngest lane of the lowest priority loses its own and computes again later. When
/// nobody can move, somebody waits for pages of a lane that itself only waits for its group: then that one gives way.
///
/// Threads: one at a time.
/// Source:  iteration-level scheduling, Orca (OSDI'22); chunked prefill, Sarathi-Serve (OSDI'24); fairness, VTC
///          (OSDI'24); preemption by recompute, vLLM (SOSP'23)
class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  /// A lane waits from `now` on, in seconds; a fork runs at once.
  LaneId add(const LaneSpec& spec, double now);
  /// The lane has finished or was cancelled. Unknown lanes are ignored.
  void remove(LaneId lane);
  /// An admitted lane begins with `computed` tokens that cost nothing: a prefix that the cache held.
  void found_cached(LaneId lane, std::uint64_t computed);
  /// A step is over: the lane holds `computed` tokens and has `pending` more to compute. With `decodes`, those are one
  /// generated token and a draft's guesses, computed together or cut down to one; else a prompt, computed in chunks.
  /// None pending: the lane waits for others of its group.
  void advanced(LaneId lane, std::uint64_t computed, std::uint64_t pending, bool decodes);

  /// The next step. After a step that the pool refused: `preempt_one`, then plan again.
  StepPlan plan(double now, const PoolView& pool);
  /// The lane that gives way next: it waits from now on, unless the caller removes it. None if no more than one runs.
  std::optional<LaneId> preempt_one(double now);

  [[nodiscard]] SchedulerStats stats() const noexcept;
  [[nodiscard]] bool is_idle() const noexcept { return lanes_.empty(); }
  [[nodiscard]] const SchedulerOptions& options() const noexcept { return options_; }
  /// Pages that `tokens` take at most at once, the window considered.
  [[nodiscard]] std::uint64_t pages_for(std::uint64_t tokens) const noexcept;

 private:
  struct Lane {
    LaneSpec spec;
    LaneId arrival = 0;             // Order of arrival: its own id, or its ancestor's. Kept when preempted.
    std::uint64_t last_served = 0;  // Number of the step that it was last in.
    double waiting_since = 0;
    bool is_running = false, decodes = false, was_preempted = false;
    bool shares_last_page = false;  // A fork that has not written yet: the first write copies a page.
    std::uint64_t computed = 0, pending = 0;
  };
  struct Budget {
    std::uint64_t tokens, pages;
  };
  using Entry = std::pair<const LaneId, Lane>;

  [[nodiscard]] std::vector<Entry*> running();
  [[nodiscard]] std::vector<Entry*> waiting_in_order(double now);
  [[nodiscard]] static std::tuple<int, LaneId, LaneId> rank(const Entry& entry);
  template <typename Predicate>
  [[nodiscard]] Entry* last_running(Predicate may_give_way);
  [[nodiscard]] std::uint64_t pages_to_grow(const Lane& lane, std::uint64_t num_tokens) const noexcept;
  [[nodiscard]] std::uint64_t pages_promised(const Lane& lane) const noexcept;
  void preempt(Lane& lane, double now);
  void serve_running(Budget& budget, double now, StepPlan& plan);
  void admit_waiting(Budget& budget, double now, const PoolView& pool, StepPlan& plan);

  SchedulerOptions options_;
  std::map<LaneId, Lane> lanes_;
  std::map<std::string, double> served_;  // Tokens a tenant was served; a tenant that returns begins at the least.
  LaneId next_id_ = 1;
  std::uint64_t steps_ = 0, preemptions_ = 0;
};

}  // namespace serving
