// Runs one policy over a source and turns its sums into a report.
#include "replay/replay_run.h"

#include <fmt/format.h>

#include <chrono>
#include <functional>
#include <stdexcept>

#include "progress.h"
#include "replay/contiguous_memory.h"
#include "replay/paged_memory.h"
#include "table.h"
#include "tool.h"

namespace pagedkv::tool {
namespace {

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

std::unique_ptr<KvMemory> create_memory(const ReplayOptions& options, Policy policy, std::uint64_t max_seq_len) {
  const std::uint32_t max_seqs = options.scheduler.max_seqs;
  if (policy == Policy::kPaged) {
    return std::make_unique<PagedMemory>(options.capacity_tokens, options.page_size, max_seqs);
  }
  const Sizing sizing = policy == Policy::kMaxLen ? Sizing::kMaxLen : Sizing::kDoubling;
  return std::make_unique<ContiguousMemory>(sizing, options.capacity_tokens, max_seq_len, /*unit=*/1, max_seqs);
}

}  // namespace

Policy parse_policy(const std::string& name) {
  if (name == "paged") return Policy::kPaged;
  if (name == "max-len") return Policy::kMaxLen;
  if (name == "doubling") return Policy::kDoubling;
  throw BadInput(fmt::format("unknown policy {}: paged, max-len or doubling", name));
}

const char* to_string(Policy policy) {
  switch (policy) {
    case Policy::kPaged: return "paged";
    case Policy::kMaxLen: return "max-len";
    case Policy::kDoubling: return "doubling";
  }
  return "?";
}

double ReplayReport::mean_sequences() const {
  return ratio(static_cast<double>(counts.sequence_steps), static_cast<double>(counts.steps));
}
double ReplayReport::tail_waste() const {
  return ratio(counts.reserved_slot_steps - counts.token_steps, counts.reserved_slot_steps);
}
double ReplayReport::utilization() const {
  return ratio(counts.token_steps, static_cast<double>(capacity_tokens) * static_cast<double>(counts.steps));
}
double ReplayReport::tokens_per_s() const {
  return wall_s > 0 ? static_cast<double>(counts.computed_tokens) / wall_s : 0;
}
double ReplayReport::attention_gb_per_s() const {
  return totals.attention_s > 0 ? static_cast<double>(totals.attention_kv_bytes) / totals.attention_s * 1e-9 : 0;
}

Json ReplayReport::to_json() const {
  Json json = {{"policy", to_string(policy)},
               {"requests", counts.requests},
               {"completed", counts.completed},
               {"rejected", counts.rejected},
               {"steps", counts.steps},
               {"peak_concurrent_sequences", counts.peak_sequences},
               {"mean_concurrent_sequences", mean_sequences()},
               {"tail_waste", tail_waste()},
               {"utilization", utilization()},
               {"bytes_copied", totals.copied_tokens * bytes_per_token},
               {"preemptions", counts.preemptions},
               {"peak_tokens", counts.peak_tokens},
               {"prompt_tokens", counts.prompt_tokens},
               {"output_tokens", counts.output_tokens},
               {"computed_tokens", counts.computed_tokens},
               {"recomputed_tokens", counts.recomputed_tokens},
               {"virtual_s", counts.virtual_s},
               {"wall_s", wall_s}};
  if (attention) {
    json["tokens_per_s"] = tokens_per_s();
    json["attention_gb_per_s"] = attention_gb_per_s();
    json["attention_s"] = totals.attention_s;
    json["output_checksum"] = fmt::format("{:016x}", totals.output_checksum);
  }
  return json;
}

ReplayReport replay(const ReplayOptions& options, Policy policy, const SourceSummary& summary) {
  const std::uint64_t max_seq_len = options.max_seq_len != 0 ? options.max_seq_len : summary.longest_tokens;
  const std::unique_ptr<KvMemory> memory = create_memory(options, policy, max_seq_len);
  Arrivals arrivals(options.open_source(), options.arrivals, options.scheduler.max_seqs);
  Scheduler scheduler(options.scheduler, arrivals, *memory);
  Progress progress(fmt::format("{:8}", to_string(policy)), summary.requests);

  ReplayReport report;
  report.policy = policy;
  report.attention = options.attention;
  report.capacity_tokens = options.capacity_tokens;
  report.bytes_per_token = options.shape.bytes_per_token();
  StepObserver observer;
  if (options.progress) {
    observer = [&](const ReplayCounts& counts, const MemoryUsage&) {
      progress.update(counts.completed + counts.rejected);
    };
  }
  const auto begun = std::chrono::steady_clock::now();
  try {
    report.counts = scheduler.run(observer);
  } catch (const std::logic_error& error) {
    throw CheckFailed(fmt::format("replay with policy {}: {}", to_string(policy), error.what()));
  }
  report.wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  report.totals = memory->totals();
  if (report.counts.requests != summary.requests) throw CheckFailed("the replay did not see every request");
  return report;
}

std::string format_reports(const std::vector<ReplayReport>& reports) {
  std::vector<std::string> header = {""};
  for (const ReplayReport& report : reports) header.emplace_back(to_string(report.policy));
  Table table(std::move(header));
  const auto row = [&](const char* name, const std::function<std::string(const ReplayReport&)>& cell) {
    std::vector<std::string> cells = {name};
    for (const ReplayReport& report : reports) cells.push_back(cell(report));
    table.add(std::move(cells));
  };
  using R = const ReplayReport&;
  row("requests completed", [](R r) { return with_thousands(r.counts.completed); });
  row("requests too long", [](R r) { return with_thousands(r.counts.rejected); });
  row("concurrent sequences, mean", [](R r) { return fmt::format("{:.1f}", r.mean_sequences()); });
  row("concurrent sequences, peak", [](R r) { return with_thousands(r.counts.peak_sequences); });
  row("reserved slots without a token", [](R r) { return with_percent(r.tail_waste()); });
  row("capacity that holds tokens", [](R r) { return with_percent(r.utilization()); });
  row("peak tokens", [](R r) { return with_thousands(r.counts.peak_tokens); });
  row("bytes copied", [](R r) { return with_bytes(static_cast<double>(r.totals.copied_tokens * r.bytes_per_token)); });
  row("preemptions", [](R r) { return with_thousands(r.counts.preemptions); });
  row("tokens computed again", [](R r) { return with_thousands(r.counts.recomputed_tokens); });
  row("steps", [](R r) { return with_thousands(r.counts.steps); });
  row("virtual time", [](R r) { return fmt::format("{:.1f} s", r.counts.virtual_s); });
  row("wall time", [](R r) { return fmt::format("{:.2f} s", r.wall_s); });
  if (!reports.empty() && reports[0].attention) {
    row("tokens/s", [](R r) { return with_thousands(static_cast<unsigned long long>(r.tokens_per_s())); });
    row("attention, K and V read", [](R r) { return fmt::format("{:.2f} GB/s", r.attention_gb_per_s()); });
    row("checksum of outputs", [](R r) { return fmt::format("{:08x}", r.totals.output_checksum >> 32); });
  }
  return table.to_string();
}

}  // namespace pagedkv::tool
