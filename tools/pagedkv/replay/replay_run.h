// One replay: options in, report out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json_file.h"
#include "replay/policy.h"
#include "replay/scheduler.h"
#include "replay/session.h"

namespace pagedkv::tool {

struct ReplayOptions {
  OpenSource open_source;
  ArrivalMode arrivals = ArrivalMode::kClosed;
  MemoryOptions memory;
  SchedulerOptions scheduler;
  IdealPrefixHits ideal;  ///< Of the source, with a prefix cache: for the report.
};

/// One point of the curves over time.
struct ReplaySample {
  double virtual_s = 0;
  std::uint64_t sequences = 0, reserved_slots = 0, held_tokens = 0, resident_bytes = 0;
};

/// What one replay found.
struct ReplayReport {
  Policy policy;
  ReplayCounts counts;
  MemoryTotals totals;
  MemoryOptions memory;
  double wall_s = 0;
  double unusable_slot_steps = 0;  ///< Sum over steps of MemoryUsage::unusable_slots.
  std::uint64_t peak_metadata_bytes = 0;
  double resident_byte_samples = 0, held_byte_samples = 0;  ///< Sums over sampled steps, with real memory only.
  std::uint64_t latency_p50_ns = 0, latency_p99_ns = 0, latency_p999_ns = 0;
  PageCounts pages;                   ///< At the end, when the last sequences have left.
  IdealPrefixHits ideal;              ///< With a prefix cache.
  std::vector<ReplaySample> samples;  ///< At most kMaxSamples, evenly spaced in steps.
  std::vector<SlotRun> layout;        ///< When half of the requests were completed.

  static constexpr std::size_t kMaxSamples = 512;

  [[nodiscard]] double mean_sequences() const;
  /// Whether unusable slots and metadata are known: an allocator keeps both to itself.
  [[nodiscard]] bool knows_overhead() const { return policy.kind != PolicyKind::kAllocator; }
  [[nodiscard]] double tail_waste() const;   ///< Reserved slots without a token / reserved slots, over all steps.
  [[nodiscard]] double utilization() const;  ///< Slots with a token / slots of the capacity, over all steps.
  [[nodiscard]] double external_fragmentation() const;  ///< Free but unusable slots / slots of the capacity, likewise.
  [[nodiscard]] double os_scatter() const;              ///< Resident bytes / bytes of live tokens; 0 if unknown.
  [[nodiscard]] double metadata_fraction() const;       ///< Of the capacity in bytes of the model.
  [[nodiscard]] double prefix_hit_rate() const;         ///< Of prompt tokens of completed requests.
  [[nodiscard]] double prefix_ideal_rate() const;       ///< Of prompt tokens of all requests.
  [[nodiscard]] double tokens_per_s() const;
  [[nodiscard]] double attention_gb_per_s() const;
  [[nodiscard]] Json to_json() const;
};

/// Throws BadInput for options or traces that are wrong, CheckFailed if the replay does not add up. Draws a progress
/// bar on a terminal.
ReplayReport replay(const ReplayOptions& options, const Policy& policy, const SourceSummary& summary);

/// The reports as a table: a column each, or a row each if there are many.
std::string format_reports(const std::vector<ReplayReport>& reports);

}  // namespace pagedkv::tool
