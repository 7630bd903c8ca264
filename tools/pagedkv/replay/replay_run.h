// One replay: options in, report out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json_file.h"
#include "replay/attention_load.h"
#include "replay/scheduler.h"
#include "replay/session.h"

namespace pagedkv::tool {

enum class Policy { kPaged, kMaxLen, kDoubling };

/// "paged", "max-len" or "doubling"; throws BadInput otherwise.
Policy parse_policy(const std::string& name);
const char* to_string(Policy policy);

struct ReplayOptions {
  std::string source_name;  ///< For the report.
  OpenSource open_source;
  ArrivalMode arrivals = ArrivalMode::kClosed;
  std::uint64_t capacity_tokens = 0;
  std::uint32_t page_size = 16;
  std::uint64_t max_seq_len = 0;  ///< 0 = the longest request of the source.
  SchedulerOptions scheduler;
  bool attention = false;  ///< Real K and V, real attention.
  AttentionShape shape;    ///< Without attention it turns tokens into bytes in the report.
  bool progress = false;   ///< Draw a progress bar on a terminal.
};

/// What one replay found.
struct ReplayReport {
  Policy policy = Policy::kPaged;
  ReplayCounts counts;
  MemoryTotals totals;
  std::uint64_t capacity_tokens = 0;
  std::uint64_t bytes_per_token = 0;
  bool attention = false;
  double wall_s = 0;

  [[nodiscard]] double mean_sequences() const;
  [[nodiscard]] double tail_waste() const;   ///< Reserved slots without a token / reserved slots, over all steps.
  [[nodiscard]] double utilization() const;  ///< Slots with a token / slots of the capacity, over all steps.
  [[nodiscard]] double tokens_per_s() const;
  [[nodiscard]] double attention_gb_per_s() const;
  [[nodiscard]] Json to_json() const;
};

/// Throws BadInput for options or traces that are wrong, CheckFailed if the replay does not add up.
ReplayReport replay(const ReplayOptions& options, Policy policy, const SourceSummary& summary);

/// The reports side by side, one column each.
std::string format_reports(const std::vector<ReplayReport>& reports);

}  // namespace pagedkv::tool
